"""Training on latents: of latent shards, or encoding frames in every step.

Letters: C pixel channels, c latent channels, H W frame size, h w latent size.
"""

from dataclasses import dataclass, replace
from typing import Any

from dydiff_dist.autoencoders import Autoencoder, load_autoencoder
from dydiff_dist.autoencoders.description import pixel_data
from dydiff_dist.autoencoders.verify import check_latents
from dydiff_dist.data.expected import check_expectation
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.run_plan import RunPlan, check_validation_frames


@dataclass(frozen=True)
class LatentInput:
    """What a run on latents has in place of frames."""

    plan: RunPlan[RunConfig]
    """The run's plan; frames that are encoded in every step come in the autoencoder's own units."""
    autoencoder: Autoencoder | None
    """None only in a plan whose data are absent."""
    is_online: bool
    """Whether frames are encoded in every step."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent frame."""
        schema = self.plan.train_shards.schema
        if not self.is_online:
            return schema.shape
        size = self.plan.config.data.crop_size or schema.shape[1:]
        return self.autoencoder.description.latent_shape((schema.shape[0], *size))

    @property
    def frame_autocovariance(self) -> tuple[float, ...] | None:
        """Of the latents; known of latent shards alone."""
        return None if self.is_online else self.plan.frame_autocovariance

    @property
    def data_schema(self) -> dict[str, Any]:
        """What an exported model must know about the frames it forecasts; the autocovariance is the latents'."""
        manifest, description = self.plan.train_shards.manifest, self.autoencoder.description
        frames = manifest.frames if self.is_online else manifest.latents.source_frames
        return {
            **self.plan.data_schema,
            **frames.model_dump(mode="json"),
            "num_actions": frames.num_actions if self.plan.config.data.use_actions else 0,
            "shift": list(description.pixel_shift),
            "scale": list(description.pixel_scale),
            "frame_autocovariance": None if self.is_online else list(self.plan.frame_autocovariance),
        }

    def fact(self) -> str:
        """Of which autoencoder, and when they are made."""
        shape, when = self.frame_shape, "encoded in every step" if self.is_online else "pre-encoded"
        name = "absent" if self.autoencoder is None else f"{self.autoencoder.description.sha256[:12]}…"
        return f"(c, h, w) = {shape} of autoencoder {name}, {when}"

    def encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with latents as ``frames``, and ``logvar`` where they are a posterior's mean."""
        if not self.is_online:
            return batch
        posterior = self.autoencoder.encode(batch["frames"])
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


def open_latents(plan: RunPlan[RunConfig]) -> LatentInput | None:
    """What a run trains on if that are latents, None if it trains on frames.

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
        return None
    if plan.data_is_absent and shards.schema.has_logvar:
        return LatentInput(plan, None, is_online=False)
    autoencoder = load_autoencoder(config.path, device=plan.world.device, max_frames=config.max_frames)
    if latents is not None:
        check_latents(shards, autoencoder.description.sha256)
        _check_window(plan)
        return LatentInput(plan, autoencoder, is_online=False)
    return LatentInput(_in_pixel_units(plan, autoencoder), autoencoder, is_online=True)


def _check_window(plan: RunPlan[RunConfig]) -> None:
    """Latents that compress time are those of whole samples: a part of them is not what encoding that part gives."""
    data, shards = plan.config.data, plan.train_shards
    compresses = shards.manifest.latents.temporal_ratio > 1
    if compresses and (data.num_frames, data.frame_stride) != (shards.schema.num_frames, 1):
        raise ValueError(
            f"{shards.folder} holds latents that compress time, {shards.schema.num_frames} per sample, to be taken "
            f"whole: data.num_history_frames + data.num_future_frames is {data.num_frames}, data.frame_stride "
            f"{data.frame_stride}; encode samples of the length that you need"
        )


def _in_pixel_units(plan: RunPlan[RunConfig], autoencoder: Autoencoder) -> RunPlan[RunConfig]:
    """A plan whose stream gives frames as the autoencoder takes them."""
    description, shards = autoencoder.description, plan.train_shards
    if not autoencoder.is_framewise:
        raise ValueError(
            f"autoencoder.path {plan.config.autoencoder.path!r} compresses time; encode the shards first, with "
            "tools/encode_latents.py"
        )
    try:
        description.latent_shape((shards.schema.shape[0], *(plan.config.data.crop_size or shards.schema.shape[1:])))
    except ValueError as error:
        raise ValueError(f"{shards.folder}: {error}") from None
    return replace(plan, train_shards=shards.in_units(description.pixel_shift, description.pixel_scale))
