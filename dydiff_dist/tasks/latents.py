"""What a run trains on: frames, latents from shards, or latents of frames that are encoded in every step.

Letters: C pixel channels, c latent channels, H W frame size, h w latent size.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from dydiff_dist.autoencoders import load_autoencoder
from dydiff_dist.autoencoders.description import pixel_data
from dydiff_dist.autoencoders.verify import check_latents
from dydiff_dist.data.expected import check_expectation
from dydiff_dist.forecasting.frame_space import FrameSpace, LatentFrames, PlainFrames
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.run_plan import RunPlan, check_validation_frames


@dataclass(frozen=True)
class TrainingFrames:
    """The data's own frames, which the stream gives as the network sees them."""

    plan: RunPlan[RunConfig]
    """The run's plan, with shards whose stream is to be trained on."""

    @property
    def space(self) -> FrameSpace:
        """How forecasts of the network come from stored frames and become such."""
        manifest = self.plan.train_shards.manifest
        scaling = manifest.frames.sample_scaling, manifest.frames.bounds, manifest.frames.empty_history_scale
        return PlainFrames(manifest.shift, manifest.scale, *scaling)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) as the network sees it."""
        return self.plan.config.data.frame_shape(self.plan.train_shards.schema.shape)

    @property
    def autocovariance(self) -> tuple[float, ...] | None:
        """Of the network's frames, at its lags; None where it is not known."""
        return self.plan.frame_autocovariance

    def facts(self) -> dict[str, str]:
        """Lines for the printed plan, name -> text; none for plain frames."""
        return {}

    def encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The stream's batch with network frames as ``frames``, and ``logvar`` where they are a posterior's mean."""
        return batch

    def exported(self) -> dict[str, Any]:
        """What an exported model must know, as arguments of `dydiff_dist.forecasting.save_model`."""
        return {"data_schema": self.plan.data_schema}


@dataclass(frozen=True)
class StoredLatents(TrainingFrames):
    """Latent shards."""

    folder: str
    """Of the autoencoder."""
    latents: LatentFrames | None
    """None only in a plan whose data are absent."""
    when: ClassVar[str] = "pre-encoded"

    @property
    def space(self) -> FrameSpace:
        """The autoencoder's latents; not in a plan whose data are absent."""
        assert self.latents is not None, "a run whose data are absent is described, not trained"
        return self.latents

    def facts(self) -> dict[str, str]:
        """Of which autoencoder, and when they are made."""
        name = "absent" if self.latents is None else f"{self.latents.autoencoder.description.sha256[:12]}…"
        return {"latents": f"(c, h, w) = {self.shape} of autoencoder {name}, {self.when}"}

    def exported(self) -> dict[str, Any]:
        """The schema is that of the frames to be forecast; the autocovariance is the latents'."""
        assert self.latents is not None, "a run whose data are absent is described, not trained"
        description, manifest = self.latents.autoencoder.description, self.plan.train_shards.manifest
        frames = manifest.frames if manifest.latents is None else manifest.latents.source_frames
        autocovariance = self.autocovariance
        data_schema = {
            **self.plan.data_schema,
            **frames.model_dump(mode="json"),
            "num_actions": frames.num_actions if self.plan.config.data.use_actions else 0,
            "shift": list(description.pixel_shift),
            "scale": list(description.pixel_scale),
            "frame_autocovariance": None if autocovariance is None else list(autocovariance),
        }
        return {"data_schema": data_schema, "autoencoder": self.folder}


@dataclass(frozen=True)
class EncodedFrames(StoredLatents):
    """Frames, in the autoencoder's own units, that are encoded in every step."""

    latents: LatentFrames
    when: ClassVar[str] = "encoded in every step"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents that the frames are encoded to."""
        return self.latents.network_shape(super().shape)

    @property
    def autocovariance(self) -> None:
        """Not known before they are encoded."""

    def encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the posterior's mean (B, s, c, h, w) as ``frames`` and its ``logvar`` beside it."""
        posterior = self.latents.autoencoder.encode(batch["frames"])
        return {**batch, "frames": posterior.mean, "logvar": posterior.logvar}


def check_latent_data(plan: RunPlan[RunConfig]) -> None:
    """Refuses shards unlike the run's, where it may train on latents and validates on the frames that they are of.

    Raises:
        ValueError: the key of ``data`` or ``data.expect``, and what the shards have.
    """
    data, train, valid = plan.config.data, plan.train_shards, plan.valid_shards
    latents, trained_on = train.manifest.latents, train.schema
    if data.expect is not None:
        # latents are expected and frames are given, which are encoded in every step
        encodes = plan.config.autoencoder is not None and data.expect.frames.has_logvar and latents is None
        if not encodes:
            check_expectation(data.expect, train)
    if valid is None:
        return
    if valid.manifest.latents is not None:
        raise ValueError(
            f"data.valid {valid.folder} holds latents; forecasts are decoded and scored as frames, so give the shards "
            "that those latents were made from"
        )
    if latents is not None:
        data, trained_on = pixel_data(data, latents.temporal_ratio), latents.source_frames
    check_validation_frames(valid, data, trained_on)


def open_frames(plan: RunPlan[RunConfig]) -> TrainingFrames:
    """What a run trains on.

    Raises:
        ValueError, FileNotFoundError: latents without their autoencoder or with another one, or frames that the
            configured autoencoder doesn't take.
    """
    config, shards = plan.config.autoencoder, plan.train_shards
    latents = shards.manifest.latents
    if config is None:
        if latents is not None:
            raise ValueError(
                f"{shards.folder} holds latents of autoencoder {latents.autoencoder_sha256}; set autoencoder.path to "
                "its folder (encode_latents leaves it beside them)"
            )
        return TrainingFrames(plan)
    if plan.data_is_absent and shards.schema.has_logvar:
        return StoredLatents(plan, config.path, None)
    autoencoder = load_autoencoder(config.path, device=plan.world.device, max_frames=config.max_frames)
    space = LatentFrames(autoencoder, (shards.schema if latents is None else latents.source_frames).bounds)
    if latents is not None:
        check_latents(shards, space.autoencoder.description.sha256)
        _check_window(plan)
        return StoredLatents(plan, config.path, space)
    if space.temporal_ratio > 1:
        raise ValueError(
            f"autoencoder.path {config.path!r} compresses time; encode the shards first, with tools/encode_latents.py"
        )
    return EncodedFrames(_in_pixel_units(plan, space), config.path, space)


def _check_window(plan: RunPlan[RunConfig]) -> None:
    """Latents that compress time are those of whole samples: a part of them is not what encoding that part gives."""
    data, shards = plan.config.data, plan.train_shards
    latents = shards.manifest.latents
    compresses = latents is not None and latents.temporal_ratio > 1
    if compresses and (data.num_frames, data.frame_stride) != (shards.schema.num_frames, 1):
        raise ValueError(
            f"{shards.folder} holds latents that compress time, {shards.schema.num_frames} per sample, to be taken "
            f"whole: data.num_history_frames + data.num_future_frames is {data.num_frames}, data.frame_stride "
            f"{data.frame_stride}; encode samples of the length that you need"
        )


def _in_pixel_units(plan: RunPlan[RunConfig], space: LatentFrames) -> RunPlan[RunConfig]:
    """A plan whose stream gives frames as the autoencoder takes them."""
    description, shards = space.autoencoder.description, plan.train_shards
    try:
        space.network_shape(plan.config.data.frame_shape(shards.schema.shape))
    except ValueError as error:
        raise ValueError(f"{shards.folder}: {error}") from None
    return replace(plan, train_shards=shards.in_units(description.pixel_shift, description.pixel_scale))
