"""Few-step training: a sampler of few steps is unrolled, and the ensemble that it draws is scored against the truth.

What is trained is the forecast itself: every pass of the network is differentiated, with the shifts, the clamped
history and the noise of `Forecaster`. Letters: B samples, M members, S frames, C channels, H W height and width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.autoencoders import read_description as read_autoencoder_description
from dydiff_dist.diffusion.ensemble_score import ensemble_scores
from dydiff_dist.engine.protocol import Engines
from dydiff_dist.forecasting import Forecaster, find_model
from dydiff_dist.forecasting.exported import ModelDescription, read_description, read_weights
from dydiff_dist.forecasting.forecaster import MEMBER_STRIDE
from dydiff_dist.tasks.config import FewStepRunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.metrics import SampleCost
from dydiff_dist.training.run_plan import RunPlan, differences
from dydiff_dist.training.task import MicroLoss, Task


class FewStepTask(DiffusionTask):
    """Trains the network so that the configured sampler's ensembles score well; all else is as in `DiffusionTask`.

    Raises:
        ValueError, FileNotFoundError: ``init_from`` is no model, or one of another network, process or data's units.
    """

    config_type = FewStepRunConfig
    config: FewStepRunConfig
    denoises = False

    def __init__(self, plan: RunPlan[Any]):
        super().__init__(plan)
        self.config.score.check(*self.frames.shape[1:])
        self._num_passes = self.config.sampling.num_passes(self.diffusion.table)
        if self.config.init_from is not None:
            self._folder = find_model(self.config.init_from)
            description, self._weights_sha256 = read_description(self._folder)
            self._check_init(description)

    def facts(self) -> dict[str, str]:
        """As `Task.facts`, with what is unrolled and scored."""
        training, score, sampling = self.config.training, self.config.score, self.config.sampling
        unrolled = f"{training.num_members} members of {sampling.sampler}, {self._num_passes} passes each"
        weights = " + ".join(f"{weight:g} {name}" for name, weight in score.weights().items())
        start = self.config.init_from or "new weights"
        return super().facts() | {"unrolled": unrolled, "score": f"{weights}, alpha {score.alpha:g}", "start": start}

    def build_networks(self) -> dict[str, nn.Module]:
        """As `DiffusionTask.build_networks`, with the weights of ``init_from``."""
        networks = super().build_networks()
        network = networks["model"]
        if self.config.init_from is not None and not next(network.parameters()).is_meta:
            network.load_state_dict(read_weights(self._folder, self._weights_sha256))
        return networks

    def sample_cost(self) -> SampleCost:
        """Of all passes and members."""
        one, times = super().sample_cost(), self._num_passes * self.config.training.num_members
        return SampleCost(flops=one.flops * times, tokens=one.tokens * times)

    def losses(self, engines: Engines, batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """As `Task.losses`: one, the weighted score; member m of sample i draws noise as m · 2³² + i."""
        num_members, num_history = self.config.training.num_members, self.config.data.num_history_frames
        batch = self.on_device(batch)
        x0, actions = self.clean_frames(batch, step), batch.get("actions")
        member = torch.arange(num_members).repeat(len(x0))
        numbers = MEMBER_STRIDE * member + batch["sample_index"].repeat_interleave(num_members)
        window = self._forecaster(engines).sample_window(
            x0[:, :num_history].repeat_interleave(num_members, dim=0),
            None if actions is None else actions.repeat_interleave(num_members, dim=0),
            numbers,
            self.config.seed,
            step,
        )
        members = window.unflatten(0, (-1, num_members))[:, :, num_history:]
        weights = self.config.score.weights()
        scores = ensemble_scores(members, x0[:, num_history:].float(), self.config.score.alpha, weights)
        total = sum((weight * scores[name] for name, weight in weights.items()), start=members.new_zeros(len(x0)))
        parts = {f"loss/{name}": values for name, values in scores.items()}
        yield MicroLoss(
            loss=total.mean(), per_sample={name: v.detach() for name, v in {"loss/train": total, **parts}.items()}
        )

    def scalars(self, parts: list[MicroLoss]) -> dict[str, Tensor]:
        """The weighted score and its parts."""
        return Task.scalars(self, parts)

    def _forecaster(self, engines: Engines) -> Forecaster:
        """The run's sampler around the network that is trained."""
        return Forecaster.around(
            engines["model"],
            data=self.config.data,
            frames=self.frames.space,
            device=self.plan.world.device,
            dtype=self.plan.network_dtype,
            diffusion=self.diffusion,
            sampling=self.config.sampling,
            num_action_channels=self.sizes.num_action_channels,
        )

    def _check_init(self, description: ModelDescription) -> None:
        """What the weights mean there is what they mean here."""
        alike = ("model", "diffusion")
        theirs: dict[str, Any] = {name: getattr(description, name).model_dump(mode="json") for name in alike}
        ours: dict[str, Any] = {name: getattr(self.config, name).model_dump(mode="json") for name in alike}
        if not self.plan.data_is_absent:
            exported = self.exported_facts()
            autoencoder = exported.get("autoencoder")
            sha256 = None if autoencoder is None else read_autoencoder_description(autoencoder).sha256
            measured = ("frame_autocovariance",) if self.config.diffusion.follows_from_data else ()
            names = ("num_actions", "shift", "scale", *measured)
            ours["data"] = {name: exported["data_schema"][name] for name in names} | {"autoencoder": sha256}
            theirs["data"] = {name: description.data_schema.get(name) for name in names}
            theirs["data"]["autoencoder"] = description.autoencoder_sha256
        for key, before, now in differences(theirs, ours, ""):
            raise ValueError(
                f"init_from {self.config.init_from!r} has {key[1:]} = {before!r}, this run has {now!r}; let them agree"
            )
