"""The demo's training is the one it was: 50 steps against the losses kept in demo_curve.json.

They were written at 6b69872, before processes became tables, by the commands below on an AMD EPYC with AVX2, and were
the same with one thread and with two to 1e-7. Rounding differs between instruction sets and torch versions, and
training amplifies it: 1e-4 after 50 steps is what that leaves.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from run_commands import ROOT, TRAIN, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXPECTED = json.loads((Path(__file__).parent / "demo_curve.json").read_text())["losses"]
CHANGES = {
    "data.expect": "null",
    "training.steps": "50",
    "training.warmup_steps": "20",
    "training.log_every_steps": "1",
    "training.validate_every_steps": "0",
}


@pytest.mark.slow
def test_fifty_steps_of_the_demo_lose_what_they_lost(tmp_path):
    shards = tmp_path / "shards"
    command = [sys.executable, "tools/make_shards.py", "turbulence", "--out", shards]
    made = run([*command, "--train", 64, "--valid", 8, "--test", 8])
    assert made.returncode == 0, made.stderr
    places = {
        "data.train": shards / "train",
        "data.valid": shards / "valid",
        "output_dir": tmp_path / "run",
    }
    changes = [f"{key}={value}" for key, value in {**CHANGES, **places}.items()]
    trained = run([sys.executable, TRAIN, ROOT / "configs" / "turbulence_small.json", *changes], timeout=600)
    assert trained.returncode == 0, trained.stderr
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss/train")]
    np.testing.assert_allclose(losses, EXPECTED, rtol=1e-4)
    assert losses[-1] < 0.25 < 0.99 < losses[0]
