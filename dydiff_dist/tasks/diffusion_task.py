"""Training of a denoising network: noise, network, loss; forecasts as validation; a model that forecasts as result.

Letters: B batch, S frames, C channels, H W height and width, A action channels, N diffusion timesteps.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.diffusion import loss_by_timestep_bin
from dydiff_dist.engine.protocol import Engines
from dydiff_dist.forecasting import save_model
from dydiff_dist.models import ExecutionConfig, VideoTransformer, build_network, drop_history
from dydiff_dist.models.attention import resolve_attention
from dydiff_dist.models.flops import training_flops
from dydiff_dist.models.sequence_parallel import check_sequence_parallel
from dydiff_dist.ranks.collectives import sample_group
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.latents import check_latent_data, open_latents
from dydiff_dist.tasks.validation import NUM_LOSS_BINS, Validation
from dydiff_dist.training.metrics import Work
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.run_plan import RunPlan
from dydiff_dist.training.task import MicroLoss, Task, sum_and_count
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, normal, uniform

_ON_DEVICE = ("frames", "logvar", "actions")


class DiffusionTask(Task[RunConfig]):
    """Trains the network to undo the noise of `dydiff_dist.diffusion.DynamicalDiffusion`."""

    config_type = RunConfig

    def __init__(self, plan: RunPlan[RunConfig]):
        super().__init__(plan)
        model, execution = self.config.model, self.config.execution
        resolve_attention(execution.attention_backend, plan.world.device.type, plan.network_dtype, model.head_width)
        check_sequence_parallel(
            execution.sequence_parallel_size, num_frames=self.config.data.num_frames, num_heads=model.num_heads
        )
        self.latents = open_latents(plan)
        if self.latents is not None:
            self.plan = plan = self.latents.plan
        _check_patches(self.config.model.patch_size, self.frame_shape)
        _check_validation_cases(plan)
        covariance = plan.frame_autocovariance if self.latents is None else self.latents.frame_autocovariance
        self.diffusion = self.config.diffusion.build(covariance, backend=self.config.kernels.backend)
        self._noised: tuple[Tensor, ...] | None = None  # of the last micro-batch, whose backward pass is over

    def check_data(self) -> None:
        """As for any task; what is trained on may be latents, and what is validated on are frames all the same."""
        check_latent_data(self.plan)

    def facts(self) -> dict[str, str]:
        """The network's sizes and the process."""
        model, diffusion = self.config.model, self.config.diffusion
        latents = {} if self.latents is None else {"latents": self.latents.fact()}
        return latents | {
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

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the frames that the network sees."""
        if self.latents is not None:
            return self.latents.frame_shape
        schema = self.plan.train_shards.schema
        return schema.shape[0], *(self.config.data.crop_size or schema.shape[1:])

    def work(self) -> Work:
        """By the network's formula; recomputed blocks and the autoencoder don't count."""
        data, model = self.config.data, self.config.model
        channels, height, width = self.frame_shape
        flops = training_flops(
            model,
            num_frames=data.num_frames,
            height=height,
            width=width,
            num_channels=channels,
            num_action_channels=self.plan.train_shards.schema.num_actions,
        )
        return Work(flops=flops, tokens=data.num_frames * (height // model.patch_size) * (width // model.patch_size))

    def losses(self, engines: Engines, batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """Noising, network, loss."""
        device, dtype = self.plan.world.device, self.plan.network_dtype
        batch = {k: v.to(device, non_blocking=True) if k in _ON_DEVICE else v for k, v in batch.items()}
        if self.latents is not None:
            batch = self.latents.encoded(batch)
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
        """Forecasts of validation cases."""
        self._validation.run(step, weights, log)

    def exported_facts(self) -> dict[str, Any]:
        """The data's schema and the autoencoder's folder, as `save_model` takes them."""
        if self.latents is None:
            return {"data_schema": self.plan.data_schema}
        return {"data_schema": self.latents.data_schema, "autoencoder": self.config.autoencoder.path}

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
        autoencoder = None if self.latents is None else self.latents.autoencoder
        return Validation(self.plan, self.diffusion, lambda: self._build_network(execution), autoencoder)

    def _build_network(self, execution: ExecutionConfig) -> VideoTransformer:
        return build_network(
            self.config.model,
            num_channels=self.frame_shape[0],
            num_action_channels=self.plan.train_shards.schema.num_actions,
            execution=execution,
            kernels=self.config.kernels.backend,
        )

    def _noise(self, batch: dict[str, Any], timesteps: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(z, target, clean frames); latents are drawn from their posterior in the same pass."""
        frames, index = batch["frames"], batch["sample_index"]
        counter = self._counter(index, step, Stream.DIFFUSION)
        if "logvar" not in batch:
            self._noised = self.diffusion.add_noise(frames, timesteps, counter, spent=self._noised)
            return *self._noised, frames
        draw = self._counter(index, step, Stream.LATENT_POSTERIOR)
        posterior = LatentPosterior(frames, batch["logvar"], draw)
        self._noised = self.diffusion.add_noise_to_draw(posterior, timesteps, counter, spent=self._noised)
        return self._noised

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


def _check_patches(patch: int, frame_shape: tuple[int, int, int]) -> None:
    """The patch size must divide the frames as the network sees them."""
    _, height, width = frame_shape
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
