"""The demo's training is the one it was: 50 steps against the losses kept in demo_curve.json.

They were written at 6b69872, before processes became tables, by the commands below on an AMD EPYC with AVX2, with the
network of the demo of that day, and were the same with one thread and with two to 1e-7. Rounding differs between
instruction sets and torch versions, and training amplifies it: 1e-4 after 50 steps is what that leaves.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from run_commands import ROOT, TRAIN, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXPECTED = json.loads((Path(__file__).parent / "demo_curve.json").read_text())["losses"]
BAND = 0.003
"""By how much the loss of a step may differ in bf16; 0.0004 was found (AVX-512), the mean difference was 0.00005."""
CHANGES = {
    "data.expect": "null",
    "model.patch_overlap": "0",
    "model.periodic": "false",
    "model.mlp_ratio": "4",
    "model.patch_skip": "false",
    "model.skip_differences": "0",
    "diffusion.prediction": "x0",
    "diffusion.loss_space": "target",
    "training.steps": "50",
    "training.warmup_steps": "20",
    "training.log_every_steps": "1",
    "training.validate_every_steps": "0",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "shards"
    command = [sys.executable, "tools/make_shards.py", "turbulence", "--out", folder]
    made = run([*command, "--train", 64, "--valid", 8, "--test", 8])
    assert made.returncode == 0, made.stderr
    return folder


def losses(shards: Path, folder: Path, precision: str) -> np.ndarray:
    """Of 50 steps of the demo's training."""
    places = {"data.train": shards / "train", "data.valid": shards / "valid", "output_dir": folder}
    changes = [f"{key}={value}" for key, value in {**CHANGES, **places, "training.precision": precision}.items()]
    trained = run([sys.executable, TRAIN, ROOT / "configs" / "turbulence_small.json", *changes], timeout=600)
    assert trained.returncode == 0, trained.stderr
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return np.array([event.value for event in events.Scalars("loss/train")])


@pytest.mark.slow
def test_fifty_steps_of_the_demo_lose_what_they_lost(shards, tmp_path):
    found = losses(shards, tmp_path / "run", "fp32")
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-4)
    assert found[-1] < 0.25 < 0.99 < found[0]


@pytest.mark.long
def test_bf16_trains_what_fp32_trains(shards, tmp_path):
    """Weights and activations in bf16, the optimizer's in float32; data, timesteps and noise are those of fp32."""
    found, expected = losses(shards, tmp_path / "run", "bf16"), np.array(EXPECTED)
    difference = found / expected - 1
    print("largest", abs(difference).max(), "mean", difference.mean())
    assert abs(difference).max() < BAND and abs(difference.mean()) < BAND / 4
