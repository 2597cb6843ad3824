"""A tiny data set and a tiny run for the training tests."""

import json
from pathlib import Path

import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """24 training and 5 validation trajectories of 6 frames, 16x16."""
    folder = tmp_path_factory.mktemp("shards")
    flow = TurbulenceConfig(resolution=16, force_max_wavenumber=5.0, spin_up_frames=2)
    convert(TurbulenceSource(TurbulenceSourceConfig(train=24, valid=5, test=4, num_frames=6, flow=flow)), folder)
    return folder


@pytest.fixture
def tiny_config(tiny_shards, tmp_path) -> Path:
    """A run of 6 steps on `tiny_shards`, checkpoints after every third."""
    tree = {
        "output_dir": str(tmp_path / "run"),
        "data": {
            "train": str(tiny_shards / "train"),
            "valid": str(tiny_shards / "valid"),
            "num_history_frames": 2,
            "num_future_frames": 4,
            "augmentation": {"periodic_shift": True},
            "num_workers": 0,
        },
        "model": {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
        "diffusion": {"prediction": "x0"},
        "sampling": {"num_steps": 2},
        "training": {
            "steps": 6,
            "global_batch_size": 4,
            "micro_batch_per_gpu": 2,
            "learning_rate": 1e-2,
            "log_every_steps": 1,
            "checkpoint_every_steps": 3,
            "validate_every_steps": 4,
            "num_validation_cases": 3,
            "num_validation_members": 2,
        },
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tree))
    return path
