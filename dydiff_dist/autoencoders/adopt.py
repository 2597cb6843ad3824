"""Taking an autoencoder into use: its ratios, the units of its frames, and the units of its latents from data.

Letters: C pixel channels, c latent channels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.description import AutoencoderDescription
from dydiff_dist.autoencoders.files import check_foreign, load_network, save_autoencoder
from dydiff_dist.autoencoders.networks import VIDEO_NETWORKS, DiffusersNetwork, fetch_network
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.statistics import FrameMoments

Units = tuple[tuple[float, ...], tuple[float, ...]]
"""(shift, scale), each per channel."""

_IMAGE_UNITS = (127.5, 127.5)
"""Published image autoencoders take 8-bit values as -1..1."""

_PROBE_PIXELS = 64
_PROBE_FRAMES = 17
"""1 + 16: whole groups of 2, 4, 8 or 16 frames."""
_LOOK_AHEAD_TOLERANCE = 1e-3
"""Change of the first latent frame, whose units are about 1, that rounding may cause but later frames may not."""


def adopt_autoencoder(
    name: str, shards: ShardSet, folder: Path, num_samples: int = 64, device: torch.device | str = "cpu"
) -> AutoencoderDescription:
    """Fetches an autoencoder that was not trained here and writes it to ``folder`` with units for these data.

    Args:
        name: as for ``fetch_network``.
        shards: training data; frames of 8 bits are taken as -1..1, others by the manifest's shift and scale.
        folder: where autoencoder.json and the weights are written.
        num_samples: samples, evenly spaced, from which the latents' shift and scale are measured.
        device: where they are measured.

    Raises:
        FileNotFoundError, ValueError: no such autoencoder, it takes other frames than these, or it is one that was
            trained here and has lost its units.
    """
    files = fetch_network(name)
    network = load_network(files).to(device)
    check_foreign(files)
    num_channels, takes = shards.schema.shape[0], int(network.config["in_channels"])
    if takes != num_channels:
        raise ValueError(
            f"{name} takes frames of {takes} channels, {shards.folder} has {num_channels}; use an autoencoder that was "
            "trained on such data (tools/train_vae.py)"
        )
    units: Units = (shards.manifest.shift, shards.manifest.scale)
    if shards.schema.dtype == "uint8":
        units = (_IMAGE_UNITS[0],) * num_channels, (_IMAGE_UNITS[1],) * num_channels
    bare = bare_autoencoder(network, shards, units, measure_ratios(network, num_channels, device), device)
    return save_measured(folder, bare, shards, num_samples, {"fetched_from": name})


def save_measured(
    folder: Path, autoencoder: Autoencoder, shards: ShardSet, num_samples: int, facts: dict[str, Any]
) -> AutoencoderDescription:
    """Writes a bare autoencoder with the units of its latents, which are measured.

    Args:
        folder: where autoencoder.json and the weights are written.
        autoencoder: from `bare_autoencoder`.
        shards: frames whose latents give the units.
        num_samples: samples that are measured; at most as many as there are.
        facts: for the record.
    """
    num_samples = min(num_samples, len(shards))
    shift, scale = measure_latent_units(autoencoder, shards, num_samples)
    facts = {**facts, "latent_units_from_samples": num_samples}
    fields = {**dict(autoencoder.description), "latent_shift": shift, "latent_scale": scale, "facts": facts}
    return save_autoencoder(folder, autoencoder.network, **fields)


def bare_autoencoder(
    network: DiffusersNetwork,
    shards: ShardSet,
    pixel_units: Units,
    ratios: tuple[int, int, int],
    device: torch.device | str = "cpu",
    *,
    periodic: bool = False,
) -> Autoencoder:
    """An autoencoder of which only the network is there yet: latents in the network's own units, no hash.

    Args:
        network: in evaluation mode on ``device``.
        shards: the frames it is for.
        pixel_units: (shift, scale) of the frames.
        ratios: latent channels, pixels per latent pixel, frames per latent frame.
        device: where it runs.
        periodic: whether its convolutions wrap around.
    """
    latent_channels, spatial_ratio, temporal_ratio = ratios
    description = AutoencoderDescription(
        network=type(network).__name__,
        weights_sha256="",
        config_sha256="",
        periodic=periodic,
        frames=shards.schema,
        pixel_shift=pixel_units[0],
        pixel_scale=pixel_units[1],
        latent_channels=latent_channels,
        spatial_ratio=spatial_ratio,
        temporal_ratio=temporal_ratio,
        latent_shift=(0.0,) * latent_channels,
        latent_scale=(1.0,) * latent_channels,
    )
    return Autoencoder(network=network, description=description, device=torch.device(device))


@torch.no_grad()
def measure_ratios(
    network: DiffusersNetwork, num_channels: int, device: torch.device | str = "cpu"
) -> tuple[int, int, int]:
    """(latent channels, pixels per latent pixel, frames per latent frame), by encoding noise.

    Raises:
        ValueError: a video autoencoder whose latents of the first frames depend on later ones.
    """
    is_video = type(network).__name__ in VIDEO_NETWORKS
    shape = (1, num_channels, *((_PROBE_FRAMES,) if is_video else ()), _PROBE_PIXELS, _PROBE_PIXELS)
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    mean = network.encode(probe).latent_dist.mean
    if not is_video:
        return mean.shape[1], _PROBE_PIXELS // mean.shape[-1], 1
    temporal = (_PROBE_FRAMES - 1) // (mean.shape[2] - 1)
    alone = network.encode(probe[:, :, : 1 + temporal]).latent_dist.mean
    change = float((alone - mean[:, :, :2]).abs().max())
    if change > _LOOK_AHEAD_TOLERANCE:
        raise ValueError(
            f"{type(network).__name__} gives the first frames other latents when more frames follow (by {change:.2g}), "
            "so a history cannot be encoded on its own; use one that looks back only, such as AutoencoderKLLTXVideo"
        )
    return mean.shape[1], _PROBE_PIXELS // mean.shape[-1], temporal


def measure_latent_units(autoencoder: Autoencoder, shards: ShardSet, num_samples: int) -> Units:
    """(mean, standard deviation) of the posterior's draws per latent channel, in the network's own units, over
    ``num_samples`` samples evenly spaced through ``shards``; 1 where a channel does not vary."""
    moments = FrameMoments()
    for number in np.unique(np.linspace(0, len(shards) - 1, num_samples).round().astype(int)):
        sample = shards.read(shards.address(int(number)))
        frames = torch.from_numpy(sample.frames[None].astype(np.float32))
        posterior = autoencoder.encode_raw(autoencoder.to_pixels(frames))
        moments.add(*(tensor[0].cpu().numpy() for tensor in posterior))
    mean, std = moments.mean_and_std()
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
