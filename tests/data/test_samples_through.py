"""Each of the real samples through the commands that a user gives: shards, audit, training, forecast, pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

ROOT = Path(__file__).parents[2]

SMALLER = {
    "model.width": 32,
    "model.depth": 1,
    "training.steps": 3,
    "training.warmup_steps": 1,
    "training.global_batch_size": 4,
    "training.micro_batch_per_gpu": 2,
    "training.log_every_steps": 1,
    "training.validate_every_steps": 0,
    "sampling.num_steps": 2,
}
"""Changes to the ready configurations, whose data, process and sampler stay."""

SAMPLES = {
    "robonet": ("robonet --root {data}/robonet/hdf5 --num-frames 12 --normalisation standard", (10, 3, 64, 64)),
    "sevir": (
        "sevir --root {data}/sevir --window-frames 13 --window-step 6 --downsample 6 --valid-start 2010-08-26T05:00 "
        "--test-start 2010-08-26T06:15",
        (8, 1, 64, 64),
    ),
    "bair": (
        "bair --root {data}/bair/softmotion30_44k --normalisation standard --valid-fraction 0.1",
        (10, 3, 64, 64),
    ),
    "exchange": (
        "timeseries --train-file {data}/timeseries/exchange_rate.txt.gz --protocol exchange --train-step 100",
        (30, 8, 1, 1),
    ),
}
"""What makes the shards, after the documentation, and the shape of a forecast."""


def command(*words) -> str:
    """What a command of the repository says; it must go well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def assert_shows_something(path: Path) -> None:
    """Every picture of a file has shades, none of them all over it."""
    with Image.open(path) as file:
        for picture in ImageSequence.Iterator(file):
            values = np.asarray(picture.convert("L"))
            _, counts = np.unique(values, return_counts=True)
            assert values.std() > 5 and counts.max() < 0.98 * values.size, path


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_converts_audits_trains_forecasts_and_is_shown(sample_data, tmp_path, name):
    options, forecast_shape = SAMPLES[name]
    folder = sample_data / {"exchange": "timeseries"}.get(name, name)
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}")
    shards, run, out = tmp_path / "shards", tmp_path / "run", tmp_path / "forecasts"
    command("tools/make_shards.py", *options.format(data=sample_data).split(), "--out", shards, "--processes", 1)

    pictures = tmp_path / "samples.png"
    said = command("tools/inspect_shards.py", shards / "train", "--audit", 2, 0, "--pictures", pictures)
    assert said.count("2 ranks x 0 workers") == 2 and said.count(": exact") == 2 and "NOT EXACT" not in said
    assert_shows_something(pictures)

    changes = {**SMALLER, "output_dir": run, "data.train": shards / "train", "data.valid": shards / "valid"}
    settings = [f"{key}={value}" for key, value in changes.items()]
    said = command("dydiff_dist/train.py", f"configs/{name}_small.json", *settings)
    assert "step 3/3: loss" in said and "nan" not in said

    cases = ("--shards", shards / "test", "--cases", 1, "--members", 2, "--gif", 1)
    said = command("tools/forecast.py", run, *cases, "--out", out)
    members = np.load(out / "case_000000.npz")["members"]
    assert members.shape == (2, *forecast_shape) and np.isfinite(members).all()
    assert not np.array_equal(members[0], members[1])
    (animation,) = [Path(line) for line in said.splitlines() if line.endswith(".gif")]
    assert_shows_something(animation)
