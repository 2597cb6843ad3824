"""Forecasts of the validation set during training, scored with the same functions as any evaluation."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dydiff_dist.autoencoders.description import pixel_data
from dydiff_dist.diffusion import DiffusionProcess, loss_by_timestep_bin
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.evaluate import Evaluation, evaluate
from dydiff_dist.evaluation.figures import forecast_figure
from dydiff_dist.forecasting import Forecaster
from dydiff_dist.forecasting.cases import CaseReader, stack_cases
from dydiff_dist.forecasting.frame_space import FrameSpace
from dydiff_dist.ranks.collectives import gather_objects, sum_over_ranks
from dydiff_dist.tasks.fixed_loss import NUM_TIMESTEPS, fixed_losses, fixed_timesteps
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.run_plan import RunPlan

_SCORES = ("crps", "mse")
NUM_LOSS_BINS = 4
"""Equal ranges of timesteps by which losses are logged."""


class Validation:
    """Forecasts the first cases of the validation shards, shared over the ranks, and logs scores and a picture.

    It runs on a copy of the network with the averaged weights, outside the engine: no forward pass waits for another
    rank, so uneven shares of cases can't hang a run whose weights are divided between ranks.
    """

    def __init__(
        self,
        plan: RunPlan,
        diffusion: DiffusionProcess,
        build_network: Callable[[], nn.Module],
        frames: FrameSpace,
        num_action_channels: int,
        denoises: bool = True,
    ):
        """
        Args:
            plan: has validation shards.
            diffusion: the process.
            build_network: a new network for the averaged weights.
            frames: what the network's frames are.
            num_action_channels: that the network takes.
            denoises: whether the loss at fixed timesteps is written too.
        """
        self.plan, self.diffusion, self.build_network = plan, diffusion, build_network
        self.frames, self.num_action_channels, self.denoises = frames, num_action_channels, denoises
        assert plan.valid_shards is not None
        self.cases = CaseReader(plan.valid_shards, pixel_data(plan.config.data, frames.temporal_ratio))

    def run(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """Writes the loss at fixed timesteps and noise, and CRPS and MSE over all lead times beside persistence's, with
        ``weights``. Collective."""
        first: list[ForecastCase] = []
        forecaster = self._forecaster(weights)
        loss = f", loss at fixed noise {self._log_loss(step, forecaster, log):.4f}" if self.denoises else ""
        evaluation = self._merge(evaluate(self._forecasts(forecaster, first)))
        for case, reason in evaluation.errors.items():
            log.say(f"step {step}: validation case {case} is not scored: {reason}")
        if not log.enabled or evaluation.num_cases == 0:
            return
        for name, table in evaluation.tables.items():
            log.scalars(step, {f"validation/{score}_{name}": table.overall(score) for score in _SCORES})
        log.figure(step, "forecast", forecast_figure(first[0], self.cases.style()))
        log.say(
            f"step {step}: validation CRPS {evaluation.tables['forecast'].overall('crps'):.4f}, "
            f"{evaluation.skill('persistence'):.3f} of persistence's{loss}"
        )

    def _log_loss(self, step: int, forecaster: Forecaster, log: RunLog) -> float:
        """Writes the fixed loss of all ranks' cases, also by timestep; returns its mean. Collective."""
        losses = torch.zeros(NUM_TIMESTEPS)
        for number in self._numbers():
            losses += fixed_losses(forecaster, self.cases.read(number), self.plan.config.seed)
        losses = sum_over_ranks(losses) / self.plan.config.training.num_validation_cases
        timesteps, num_timesteps = fixed_timesteps(self.diffusion.num_timesteps), self.diffusion.num_timesteps
        sums, counts = loss_by_timestep_bin(losses, timesteps, num_timesteps, NUM_LOSS_BINS)
        bins = {f"validation/loss_timestep_bin_{i}": float(mean) for i, mean in enumerate(sums / counts)}
        log.scalars(step, {"validation/loss": float(losses.mean()), **bins})
        return float(losses.mean())

    def _numbers(self) -> range:
        """This rank's cases."""
        world = self.plan.world
        return range(world.rank, self.plan.config.training.num_validation_cases, world.world_size)

    def _forecaster(self, weights: dict[str, Tensor]) -> Forecaster:
        """A forecaster with these weights on this rank's device."""
        config = self.plan.config
        return Forecaster.of_weights(
            self.build_network(),
            weights,
            data=config.data,
            frames=self.frames,
            device=self.plan.world.device,
            dtype=self.plan.network_dtype,
            diffusion=self.diffusion,
            sampling=config.sampling,
            num_action_channels=self.num_action_channels,
            max_batch=config.training.micro_batch_per_gpu,
        )

    def _forecasts(self, forecaster: Forecaster, first: list[ForecastCase]) -> Iterator[ForecastCase]:
        """This rank's cases with their forecasts; the first one is also left in ``first`` for a picture."""
        training = self.plan.config.training
        for number in self._numbers():
            case = self.cases.read(number)
            history, actions, case_index = stack_cases([case])
            members = forecaster.forecast(
                history,
                actions=actions,
                case_index=case_index,
                num_members=training.num_validation_members,
                seed=self.plan.config.seed,
            )
            forecast = ForecastCase(number, case.key, case.history, case.truth, members[0].numpy())
            first[:] = first or [forecast]
            yield forecast

    @staticmethod
    def _merge(evaluation: Evaluation) -> Evaluation:
        """The evaluation of all ranks' cases, on every rank."""
        parts = gather_objects(evaluation.tables)
        return Evaluation({name: table.merge(part[name] for part in parts[1:]) for name, table in parts[0].items()})
