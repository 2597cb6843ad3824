"""A tiny data set and a tiny model of random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.arrays import ArraysSource, ArraysSourceConfig
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig
from dydiff_dist.forecasting import save_model
from dydiff_dist.forecasting.frame_space import input_sizes
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import parse_config


@pytest.fixture(scope="session")
def flow_shards(tmp_path_factory) -> Path:
    """8 training and 5 test trajectories of 7 frames, 16x16 velocity."""
    folder = tmp_path_factory.mktemp("flow_shards")
    flow = TurbulenceConfig(resolution=16, spin_up_frames=1, steps_per_frame=2, force_max_wavenumber=5.0)
    config = TurbulenceSourceConfig(train=8, valid=0, test=5, num_frames=7, runs_per_shard=2, flow=flow)
    convert(TurbulenceSource(config), folder, 1)
    return folder


@pytest.fixture(scope="session")
def flow_model(flow_shards, tmp_path_factory) -> Path:
    """A run's folder with an exported model of random weights: 3 history and 4 future frames."""
    return _random_model(flow_shards, tmp_path_factory.mktemp("flow_run"))


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory) -> Path:
    """3 training and 4 test clips of 7 frames, 32x32 in 8-bit colours: a pattern that moves two pixels a frame."""
    root, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("image_shards")
    for split, count in (("train", 3), ("test", 4)):
        (root / split).mkdir()
        noise = np.random.default_rng(count).normal(size=(count, 3, 32, 32))
        pattern = gaussian_filter(noise, (0, 0, 2, 2), mode="wrap")
        pattern = np.clip(128 + 60 * pattern / pattern.std(), 0, 255).astype(np.uint8)
        np.save(root / split / "clips.npy", np.stack([np.roll(pattern, 2 * s, axis=-1) for s in range(7)], axis=1))
    convert(ArraysSource(ArraysSourceConfig(root=str(root), num_frames=7)), folder, 1)
    return folder


@pytest.fixture(scope="session")
def image_model(image_shards, tmp_path_factory) -> Path:
    """As ``flow_model``, for images."""
    return _random_model(image_shards, tmp_path_factory.mktemp("image_run"))


def _random_model(shards: Path, folder: Path) -> Path:
    config = parse_config(
        {
            "output_dir": str(folder),
            "data": {"train": str(shards / "train"), "num_history_frames": 3, "num_future_frames": 4},
            "model": {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
            "diffusion": {"prediction": "v"},
            "sampling": {"num_steps": 3},
            "training": {"steps": 1, "global_batch_size": 1, "micro_batch_per_gpu": 1, "learning_rate": 1e-3},
        },
        "test",
        RunConfig,
    )
    manifest = ShardSet.open(shards / "train").manifest
    torch.manual_seed(0)
    network = config.model.build(input_sizes(config.data, manifest.frames.shape, 0))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    schema = manifest.frames.model_dump(mode="json") | {"shift": list(manifest.shift), "scale": list(manifest.scale)}
    save_model(folder / "model", network.state_dict(), config.model_dump(mode="json"), schema)
    return folder
