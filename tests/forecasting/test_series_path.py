"""Time series through the whole path, with the commands that a user gives: text file to CRPS-sum report."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dydiff_dist.evaluation.series import QUANTILES

REPOSITORY = Path(__file__).resolve().parents[2]


def _command(*arguments) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _crps_sum(members_MSD: list[np.ndarray], truth_SD: list[np.ndarray]) -> float:
    """By its definition, over all windows: sums over variates first, then quantile losses over the sum of |target|."""
    loss = total = 0.0
    for members, truth in zip(members_MSD, truth_SD, strict=True):
        ordered, target = np.sort(members.sum(axis=2), axis=0), truth.sum(axis=1)
        total += np.abs(target).sum()
        for q in QUANTILES:
            forecast = ordered[round((len(ordered) - 1) * q)]
            loss += 2 * ((target - forecast) * (q - (target < forecast))).sum() / len(QUANTILES)
    return loss / total


@pytest.mark.slow
def test_exchange_rates_from_the_text_to_the_report(sample_data, tmp_path) -> None:
    text = sample_data / "timeseries" / "exchange_rate.txt.gz"
    shards, run, out = tmp_path / "shards", tmp_path / "run", tmp_path / "forecasts"
    options = ("--train-file", text, "--protocol", "exchange", "--train-step", 40, "--out", shards)
    _command("tools/make_shards.py", "timeseries", *options)
    changes = {"output_dir": run, "data.train": shards / "train", "data.valid": shards / "valid"}
    changes |= {"training.steps": 15, "training.warmup_steps": 2, "training.validate_every_steps": 15}
    changes |= {"training.num_validation_members": 4, "model.width": 16, "model.num_heads": 2, "sampling.num_steps": 4}
    settings = (f"{key}={value}" for key, value in changes.items())
    _command("dydiff_dist/train.py", "configs/exchange_small.json", *settings)
    _command("tools/forecast.py", run, "--shards", shards / "test", "--out", out, "--members", 20, "--device", "cpu")
    said = _command("tools/evaluate.py", out, "--climatology", shards / "train", "--season", 5, "--out", tmp_path / "s")
    assert "of seasonal naive's, over all lead times, 5 cases" in said

    with gzip.open(text, "rt") as file:
        series = np.array([[float(value) for value in line.split(",")] for line in file])
    stops = [len(series) - 30 * (4 - window) for window in range(5)]
    truth = [series[stop - 30 : stop] for stop in stops]
    members = [np.load(out / f"case_{window:06d}.npz")["members"][..., 0, 0].astype(np.float64) for window in range(5)]
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())["scores"]
    # shards hold the file's values as float32
    assert scores["forecast"]["crps_sum"]["overall"] == pytest.approx(_crps_sum(members, truth), rel=1e-5)
    naive = [series[stop - 35 : stop - 30][np.arange(30) % 5][None] for stop in stops]
    assert scores["seasonal_naive"]["crps_sum"]["overall"] == pytest.approx(_crps_sum(naive, truth), rel=1e-5)
    # even a hardly trained forecast is in the units of the file: it is scaled by each window's own history
    for forecast, actual in zip(members, truth, strict=True):
        np.testing.assert_allclose(forecast.mean(axis=(0, 1)), actual.mean(axis=0), rtol=0.3)
    page = (tmp_path / "s" / "report.html").read_text()
    payload = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(payload["series"]) == 4 and len(payload["series"][0]["channels"]) == 8
