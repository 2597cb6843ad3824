"""Training of a denoising network: noise, network, loss; forecasts as validation; a model that forecasts as result.

Letters: B batch, S frames, C channels, H W height and width, A action channels, N diffusion timesteps.
"""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dydiff_dist.diffusion import Workspace, loss_by_timestep_bin
from dydiff_dist.engine.protocol import Engines
from dydiff_dist.forecasting import save_model
from dydiff_dist.forecasting.frame_space import input_sizes
from dydiff_dist.models import ExecutionConfig, SharesFrames, drop_history
from dydiff_dist.ranks.collectives import sample_group
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.latents import check_latent_data, open_frames
from dydiff_dist.tasks.validation import NUM_LOSS_BINS, Validation
from dydiff_dist.training.metrics import SampleCost
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.run_plan import RunPlan
from dydiff_dist.training.task import MicroLoss, Task, sum_and_count
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, uniform

_ON_DEVICE = ("frames", "logvar", "actions")


class DiffusionTask(Task[RunConfig]):
    """Trains the network to undo the noise of `dydiff_dist.diffusion.DiffusionProcess`.

    Attributes:
        frames: what is trained on: frames or latents.
        sizes: of a sample as the network sees it.
        diffusion: the process.
    """

    config_type: ClassVar[type[RunConfig]] = RunConfig
    denoises: ClassVar[bool] = True
    """Whether the network is to undo noise at any timestep, which validation then judges."""

    def __init__(self, plan: RunPlan[RunConfig]):
        super().__init__(plan)
        self.frames = open_frames(plan)
        self.plan = self.frames.plan
        data, schema = self.config.data, self.plan.train_shards.schema
        self.sizes = input_sizes(data, self.frames.shape, schema.num_actions if data.use_actions else 0)
        self.config.model.check(self.sizes, self.config.execution, plan.world.device.type, plan.network_dtype)
        _check_validation_cases(plan)
        self.diffusion = self.config.diffusion.build(
            self.frames.autocovariance,
            backend=self.config.kernels.backend,
            num_history_frames=data.num_history_frames,
        )
        self.config.sampling.check(self.diffusion.table, self.sizes.num_frames)
        self._workspace = Workspace()  # results for the last micro-batch, whose backward pass is over

    def check_data(self) -> None:
        """As for any task; what is trained on may be latents, and what is validated on are frames all the same."""
        check_latent_data(self.plan)

    def facts(self) -> dict[str, str]:
        """As `Task.facts`: the latents, the network's sizes and the process."""
        return self.frames.facts() | {
            "model": self.config.model.describe(),
            "process": self.config.diffusion.describe(),
        }

    def build_networks(self) -> dict[str, nn.Module]:
        """The denoising network, as ``model``."""
        return {"model": self._build_network(self.config.execution)}

    def join_ranks(self, networks: dict[str, nn.Module]) -> None:
        """Shares the frames of each sample between ranks, where configured."""
        if self.plan.world.ranks_per_sample > 1:
            network = networks["model"]
            assert isinstance(network, SharesFrames), "its configuration's check refuses ranks that share frames"
            network.share_frames(sample_group(self.plan.world))

    def sample_cost(self) -> SampleCost:
        """Recomputed blocks and the autoencoder don't count."""
        model = self.config.model
        return SampleCost(flops=model.training_flops(self.sizes), tokens=model.num_tokens(self.sizes))

    def losses(self, engines: Engines, batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """As `Task.losses`: one, at timesteps drawn for each sample, which ``per_sample`` holds too, for `scalars`."""
        device, dtype = self.plan.world.device, self.plan.network_dtype
        batch = self.on_device(batch)
        index, actions = batch["sample_index"], batch.get("actions")
        timesteps = self.draw_timesteps(index, step).to(device)
        z, target, x0 = self._noise(batch, timesteps, step)
        output = engines["model"](
            self.diffusion.model_input(z, timesteps).to(dtype),
            timesteps,
            history=self._history(x0, index, step).to(dtype),
            actions=actions,
        )
        loss, per_sample = self.diffusion.loss(
            output.float(), target, timesteps, num_history_frames=self.config.data.num_history_frames
        )
        yield MicroLoss(loss=loss, per_sample={"loss/train": per_sample.detach(), "timestep": timesteps})

    def scalars(self, parts: list[MicroLoss]) -> dict[str, Tensor]:
        """The loss, also over equal ranges of timesteps."""
        per_sample, timesteps = (
            torch.cat([part.per_sample[name] for part in parts]) for name in ("loss/train", "timestep")
        )
        bins = loss_by_timestep_bin(per_sample, timesteps, self.diffusion.num_timesteps, NUM_LOSS_BINS)
        by_bin = torch.stack(bins).T.cpu()
        return {
            "loss/train": sum_and_count(per_sample),
            **{f"loss/timestep_bin_{number}": pair for number, pair in enumerate(by_bin)},
        }

    def validate(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """As `Task.validate`: forecasts validation cases and logs loss, CRPS and MSE, and a picture."""
        self._validation.run(step, weights, log)

    def exported_facts(self) -> dict[str, Any]:
        """The data's schema and the autoencoder's folder, as `save_model` takes them."""
        return self.frames.exported()

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """As `Task.export`: a model for `dydiff_dist.forecasting.load_forecaster`."""
        save_model(folder, weights, self.config.model_dump(mode="json"), **self.exported_facts())

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The stream's batch with tensors where the network is, frames as it sees them."""
        device = self.plan.world.device
        return self.frames.encoded(
            {name: v.to(device, non_blocking=True) if name in _ON_DEVICE else v for name, v in batch.items()}
        )

    def clean_frames(self, batch: dict[str, Any], step: int) -> Tensor:
        """Frames (B, S, C, H, W) of a batch `on_device`; latents are drawn from their posterior, as at ``step``."""
        if "logvar" not in batch:
            return batch["frames"]
        return self._noise(batch, torch.zeros_like(batch["sample_index"]), step)[2]

    def draw_timesteps(self, sample_index: Tensor, step: int) -> Tensor:
        """Timesteps, (B,) int64, from the counter: the same on any number of ranks."""
        return self.diffusion.table.timesteps_at(uniform(self._counter(sample_index, step, Stream.TIMESTEP), 1)[:, 0])

    @cached_property
    def _validation(self) -> Validation:
        # few passes at other shapes: compiling them would take longer than they do
        execution = self.config.execution.model_copy(update={"compile_blocks": False})
        build_network = partial(self._build_network, execution)
        channels = self.sizes.num_action_channels
        return Validation(self.plan, self.diffusion, build_network, self.frames.space, channels, self.denoises)

    def _build_network(self, execution: ExecutionConfig) -> nn.Module:
        return self.config.model.build(self.sizes, execution, self.config.kernels.backend)

    def _noise(self, batch: dict[str, Any], timesteps: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(z, target, clean frames); latents are drawn from their posterior in the same pass."""
        frames, index = batch["frames"], batch["sample_index"]
        counter = self._counter(index, step, Stream.DIFFUSION)
        latents: Tensor | LatentPosterior = frames
        if "logvar" in batch:
            draw = self._counter(index, step, Stream.LATENT_POSTERIOR)
            latents = LatentPosterior(frames, batch["logvar"], draw)
        return self.diffusion.add_noise(latents, timesteps, counter, workspace=self._workspace)

    def _counter(self, sample_index: Tensor, step: int, stream: Stream) -> NoiseCounter:
        return NoiseCounter(seed=self.config.seed, sample_index=sample_index, step=step, stream=stream)

    def _history(self, x0: Tensor, sample_index: Tensor, step: int) -> Tensor:
        """Clean history frames; zeros instead in the share of samples that trains the unconditional branch."""
        history = x0[:, : self.config.data.num_history_frames]
        probability = self.config.training.conditioning_dropout
        if probability == 0:
            return history
        counter = self._counter(sample_index, step, Stream.CONDITIONING_DROPOUT)
        dropped = (uniform(counter, 1)[:, 0] < probability).to(history.device)
        return drop_history(history, dropped)


def _check_validation_cases(plan: RunPlan) -> None:
    training, valid = plan.config.training, plan.valid_shards
    if valid is not None and training.validate_every_steps and training.num_validation_cases > len(valid):
        raise ValueError(
            f"training.num_validation_cases is {training.num_validation_cases}, {valid.folder} has {len(valid)} "
            "samples; lower it"
        )
