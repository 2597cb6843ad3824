"""Small autoencoders with random weights: what they do to frames is senseless, but exactly defined."""

from pathlib import Path

import torch

from dydiff_dist.autoencoders import AutoencoderDescription, AutoencoderModelConfig, build_network, save_autoencoder
from dydiff_dist.data.manifest import FrameSchema


def small_autoencoder(
    folder: Path,
    num_channels: int = 2,
    size: tuple[int, int] = (16, 16),
    seed: int = 0,
    periodic: bool = False,
    levels: int = 3,
    **fields,
) -> AutoencoderDescription:
    """Writes an autoencoder with 3 latent channels, with three levels a quarter of the frame's height and width, into
    ``folder``."""
    config = AutoencoderModelConfig(
        latent_channels=3,
        channels=(8,) * levels,
        layers_per_block=1,
        norm_groups=4,
        mid_attention=False,
        periodic=periodic,
    )
    torch.manual_seed(seed)
    network = build_network(config, num_channels=num_channels, frame_size=size[0])
    defaults = {
        "periodic": periodic,
        "frames": FrameSchema(num_frames=6, shape=(num_channels, *size), dtype="float32"),
        "pixel_shift": tuple(0.1 * channel for channel in range(num_channels)),
        "pixel_scale": tuple(1.0 + channel for channel in range(num_channels)),
        "latent_channels": 3,
        "spatial_ratio": config.spatial_ratio,
        "latent_shift": (0.1, -0.2, 0.3),
        "latent_scale": (0.5, 0.25, 2.0),
    }
    return save_autoencoder(folder, network, **{**defaults, **fields})
