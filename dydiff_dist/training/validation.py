"""Forecasts of the validation set during training, scored with the same functions as any evaluation.

Letters: M members, S_f future frames, C channels, H W height and width.
"""

import numpy as np
import torch
from torch import Tensor

from dydiff_dist.data.stream import EvalStream
from dydiff_dist.diffusion import DynamicalDiffusion
from dydiff_dist.evaluation.baselines import persistence
from dydiff_dist.evaluation.figures import forecast_figure
from dydiff_dist.evaluation.scores import case_scores
from dydiff_dist.forecasting import Forecaster
from dydiff_dist.models import build_network
from dydiff_dist.training.distributed import sum_over_ranks
from dydiff_dist.training.plan import RunPlan
from dydiff_dist.training.progress import RunLog

_SCORES = ("crps", "mse")


class Validation:
    """Forecasts the first cases of the validation shards, shared over the ranks, and logs scores and a picture.

    It runs on a copy of the network with the averaged weights, outside DeepSpeed: no forward pass waits for another
    rank, so uneven shares of cases can't hang a sharded run.
    """

    def __init__(self, plan: RunPlan, diffusion: DynamicalDiffusion):
        self.plan, self.diffusion = plan, diffusion

    def run(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """Forecasts with ``weights`` and writes CRPS and MSE, over all lead times, beside persistence. Collective."""
        if self.plan.valid_shards is None:
            return
        sums = torch.zeros(2, len(_SCORES), dtype=torch.float64)  # ours and persistence
        num_cases = torch.zeros(1, dtype=torch.float64)
        picture = None
        for history, truth, members in self._forecasts(self._forecaster(weights)):
            num_cases += 1
            for row, forecast in enumerate((members, persistence(history, len(truth)))):
                scores = case_scores(forecast, truth)
                sums[row] += torch.tensor([scores[name].mean() for name in _SCORES])
            picture = picture or (history, truth, members)
        means = sum_over_ranks(sums) / sum_over_ranks(num_cases)
        names = [f"validation/{name}" for name in _SCORES]
        log.scalars(step, dict(zip(names, means[0].tolist(), strict=True)))
        log.scalars(step, {f"{name}_persistence": value for name, value in zip(names, means[1].tolist(), strict=True)})
        if picture is not None and log.enabled:
            log.figure(step, "forecast", forecast_figure(*picture, schema=self.plan.data_schema))
        ratio = float(means[0, 0] / means[1, 0])
        log.say(f"step {step}: validation CRPS {float(means[0, 0]):.4f} {self._units}, {ratio:.2f} of persistence's")

    @property
    def _units(self) -> str:
        return self.plan.train_shards.schema.units

    def _forecaster(self, weights: dict[str, Tensor]) -> Forecaster:
        """A forecaster with these weights on this rank's device."""
        config, manifest = self.plan.config, self.plan.train_shards.manifest
        network = build_network(config.model, **self.plan.network_sizes)
        network.load_state_dict(weights)
        device = self.plan.world.device
        return Forecaster(
            network=network.eval().requires_grad_(False).to(device, self.plan.network_dtype),
            diffusion=self.diffusion,
            sampling=config.sampling,
            num_history_frames=config.data.num_history_frames,
            num_future_frames=config.data.num_future_frames,
            shift=manifest.shift,
            scale=manifest.scale,
            num_action_channels=manifest.frames.num_actions,
            device=device,
            dtype=self.plan.network_dtype,
            max_batch=config.training.micro_batch_per_gpu,
        )

    def _forecasts(self, forecaster: Forecaster):
        """(history, truth, members), numpy in stored units, of each of this rank's cases."""
        config, manifest, world = self.plan.config, self.plan.train_shards.manifest, self.plan.world
        stream = EvalStream(
            self.plan.valid_shards,
            config.data,
            batch_size=1,
            num_samples=config.training.num_validation_cases,
            rank=world.rank,
            world_size=world.world_size,
        )
        shift, scale = (torch.tensor(values)[:, None, None] for values in (manifest.shift, manifest.scale))
        for batch in stream:
            if not bool(batch["mask"][0]):
                continue
            frames = batch["frames"] * scale + shift
            history, truth = frames.split([config.data.num_history_frames, config.data.num_future_frames], dim=1)
            members = forecaster.forecast(
                history,
                actions=batch.get("actions"),
                case_index=batch["sample_index"],
                num_members=config.training.num_validation_members,
                seed=config.seed,
            )
            yield tuple(np.asarray(t[0]) for t in (history, truth, members))
