"""A tiny study on a tiny data set."""

import json
from pathlib import Path

import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig


@pytest.fixture(scope="session")
def study_shards(tmp_path_factory) -> Path:
    """8 training and 4 test trajectories of 4 frames, 16x16."""
    folder = tmp_path_factory.mktemp("study_shards")
    flow = TurbulenceConfig(resolution=16, spin_up_frames=1, steps_per_frame=2, force_max_wavenumber=5.0)
    convert(TurbulenceSource(TurbulenceSourceConfig(train=8, valid=0, test=4, num_frames=4, flow=flow)), folder, 1)
    return folder


@pytest.fixture
def study_tree(study_shards, tmp_path) -> dict:
    """Standard diffusion (a) and DyDiff (b), two steps each, as JSON types."""
    base = tmp_path / "base.json"
    run = {
        "output_dir": "unused",
        "data": {
            "train": str(study_shards / "train"),
            "num_history_frames": 2,
            "num_future_frames": 2,
            "num_workers": 0,
        },
        "model": {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
        "diffusion": {"prediction": "x0"},
        "sampling": {"num_steps": 2},
        "training": {
            "steps": 2,
            "global_batch_size": 2,
            "micro_batch_per_gpu": 2,
            "learning_rate": 1e-3,
            "validate_every_steps": 0,
        },
    }
    base.write_text(json.dumps(run))
    return {
        "title": "Tiny",
        "base": str(base),
        "arms": {
            "a": {"label": "standard", "set": {"diffusion.gamma_ratio": 0}},
            "b": {"label": "DyDiff", "set": {"diffusion.gamma_ratio": 0.5}},
        },
        "shards": str(study_shards / "test"),
        "forecasts": {"main": {"members": 2, "cases": 3}},
        "comparisons": [{"title": "DyDiff or not", "reference": "a", "against": ["b"], "curves": "lead"}],
    }
