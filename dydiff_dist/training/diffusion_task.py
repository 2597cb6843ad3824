"""Training of a denoising network: noise, network, loss; forecasts as validation; a model that forecasts as result.

Letters: B batch, S frames, C channels, H W height and width, A action channels, N diffusion timesteps.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.config import RunConfig
from dydiff_dist.diffusion import loss_by_timestep_bin
from dydiff_dist.forecasting import save_model
from dydiff_dist.models import ExecutionConfig, VideoTransformer, build_network, drop_history
from dydiff_dist.models.attention import resolve_attention
from dydiff_dist.models.flops import training_flops
from dydiff_dist.models.sequence_parallel import check_sequence_parallel
from dydiff_dist.training.distributed import sample_group
from dydiff_dist.training.metrics import Work
from dydiff_dist.training.plan import RunPlan
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.task import MicroLoss, Task, sum_and_count
from dydiff_dist.training.validation import Validation
from dydiff_kernels import NoiseCounter, Stream, normal, uniform

_NUM_LOSS_BINS = 4


class DiffusionTask(Task):
    """Trains the network to undo the noise of `dydiff_dist.diffusion.DynamicalDiffusion`."""

    config_type = RunConfig

    def __init__(self, plan: RunPlan):
        super().__init__(plan)
        self.config: RunConfig = plan.config
        model, execution = self.config.model, self.config.execution
        resolve_attention(execution.attention_backend, plan.world.device.type, plan.network_dtype, model.head_width)
        check_sequence_parallel(
            execution.sequence_parallel_size, num_frames=self.config.data.num_frames, num_heads=model.num_heads
        )
        _check_patches(plan)
        _check_validation_cases(plan)
        self.diffusion = self.config.diffusion.build(plan.frame_autocovariance, backend=self.config.kernels.backend)
        self._noised: tuple[Tensor, Tensor] | None = None  # of the last micro-batch, whose backward pass is over

    def facts(self) -> dict[str, str]:
        """The network's sizes and the process."""
        model, diffusion = self.config.model, self.config.diffusion
        return {
            "model": f"width {model.width}, depth {model.depth}, {model.num_heads} heads, patches of "
            f"{model.patch_size}",
            "process": f"gamma {diffusion.gamma_schedule} (ratio {diffusion.gamma_ratio}), predicts "
            f"{diffusion.prediction}",
        }

    def build_networks(self) -> dict[str, nn.Module]:
        """The denoising network."""
        return {"model": self._build_network(self.config.execution)}

    def join_ranks(self, networks: dict[str, nn.Module]) -> None:
        """Shares the frames of each sample between ranks, where configured."""
        if self.plan.world.ranks_per_sample > 1:
            networks["model"].share_frames(sample_group(self.plan.world))

    def work(self) -> Work:
        """By the network's formula; recomputed blocks don't count."""
        data, model, schema = self.config.data, self.config.model, self.plan.train_shards.schema
        height, width = data.crop_size or schema.shape[1:]
        flops = training_flops(
            model,
            num_frames=data.num_frames,
            height=height,
            width=width,
            num_channels=schema.shape[0],
            num_action_channels=schema.num_actions,
        )
        return Work(flops=flops, tokens=data.num_frames * (height // model.patch_size) * (width // model.patch_size))

    def losses(self, engines: Mapping[str, Any], batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """Noising, network, loss."""
        device, dtype = self.plan.world.device, self.plan.network_dtype
        x0, index = batch["frames"].to(device, non_blocking=True), batch["sample_index"]
        actions = batch["actions"].to(device, non_blocking=True) if "actions" in batch else None
        timesteps = self.draw_timesteps(index, step).to(device)
        counter = self._counter(index, step, Stream.DIFFUSION)
        z, target = self._noised = self.diffusion.add_noise(x0, timesteps, counter, spent=self._noised)
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
        bins = loss_by_timestep_bin(per_sample, timesteps, self.diffusion.num_timesteps, _NUM_LOSS_BINS)
        by_bin = torch.stack(bins).T.cpu()
        return {
            "loss/train": sum_and_count(per_sample),
            **{f"loss/timestep_bin_{number}": pair for number, pair in enumerate(by_bin)},
        }

    def validate(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """Forecasts of validation cases."""
        self._validation.run(step, weights, log)

    def exported_facts(self) -> dict[str, Any]:
        """The data's schema, as `save_model` takes it."""
        return {"data_schema": self.plan.data_schema}

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """A model for `dydiff_dist.forecasting.load_forecaster`."""
        save_model(folder, weights, self.config.model_dump(mode="json"), **self.exported_facts())

    def draw_timesteps(self, sample_index: Tensor, step: int) -> Tensor:
        """Uniform timesteps, (B,) int64, from the counter: the same on any number of ranks."""
        draw = uniform(self._counter(sample_index, step, Stream.TIMESTEP), 1)[:, 0]
        num_timesteps = self.diffusion.num_timesteps
        return (draw.double() * num_timesteps).long().clamp(max=num_timesteps - 1)

    @cached_property
    def _validation(self) -> Validation:
        # few passes at other shapes: compiling them would take longer than they do
        execution = self.config.execution.model_copy(update={"compile_blocks": False})
        return Validation(self.plan, self.diffusion, lambda: self._build_network(execution))

    def _build_network(self, execution: ExecutionConfig) -> VideoTransformer:
        schema = self.plan.train_shards.schema
        return build_network(
            self.config.model,
            num_channels=schema.shape[0],
            num_action_channels=schema.num_actions,
            execution=execution,
            kernels=self.config.kernels.backend,
        )

    def _counter(self, sample_index: Tensor, step: int, stream: Stream) -> NoiseCounter:
        return NoiseCounter(seed=self.config.seed, sample_index=sample_index, step=step, stream=stream)

    def _history(self, x0: Tensor, sample_index: Tensor, step: int) -> Tensor:
        """Clean history frames; noise instead in the share of samples that trains the unconditional branch."""
        history = x0[:, : self.config.data.num_history_frames]
        probability = self.config.training.conditioning_dropout
        if probability == 0:
            return history
        counter = self._counter(sample_index, step, Stream.CONDITIONING_DROPOUT)
        dropped = (uniform(counter, 1)[:, 0] < probability).to(history.device)
        # the noise comes of another stream than the decision, so that the two are independent
        noise = normal(self._counter(sample_index, step, Stream.HISTORY_NOISE), history.shape, device=history.device)
        return drop_history(history, noise, dropped)


def _check_patches(plan: RunPlan) -> None:
    """The patch size must divide the frames as the network sees them."""
    height, width = plan.config.data.crop_size or plan.train_shards.schema.shape[1:]
    patch = plan.config.model.patch_size
    if height % patch or width % patch:
        raise ValueError(
            f"model.patch_size {patch} does not divide frames of {height}x{width}; change it or data.crop_size"
        )


def _check_validation_cases(plan: RunPlan) -> None:
    training, valid = plan.config.training, plan.valid_shards
    if valid is not None and training.validate_every_steps and training.num_validation_cases > len(valid):
        raise ValueError(
            f"training.num_validation_cases is {training.num_validation_cases}, {valid.folder} has {len(valid)} "
            "samples; lower it"
        )
