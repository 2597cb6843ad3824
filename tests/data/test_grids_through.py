"""Weather and PDEBench through the commands that a user gives, with their ready configurations, on files that are
written here as the data sets have them."""

import json

import h5py
import numpy as np
import pytest
from test_field_inputs import make_shards
from test_samples_through import SMALLER, command

from dydiff_dist.data.inspection import audit
from dydiff_dist.data.shard_set import ShardSet


def write_era5(path):
    """WeatherBench 2's 64x32 grid, axes (time, level, longitude, latitude), waves that travel east; 64 times."""
    xarray = pytest.importorskip("xarray", reason="xarray is an extra")
    pytest.importorskip("zarr", reason="zarr is an extra")
    axes = {
        "time": np.datetime64("2017-12-20", "ns") + np.arange(64) * np.timedelta64(6, "h"),
        "level": [500, 850],
        "longitude": np.arange(64) * 5.625,
        "latitude": np.linspace(-87.1875, 87.1875, 32),
    }
    phase = np.deg2rad(3 * axes["longitude"])[:, None] - 0.4 * np.arange(64)[:, None, None]
    waves = np.cos(np.deg2rad(axes["latitude"])) * np.sin(phase)
    upper = (waves[:, None] * np.array([1.0, 0.7])[:, None, None]).astype(np.float32)
    surface = ("time", "longitude", "latitude")
    data = xarray.Dataset(
        {
            "geopotential": (tuple(axes), 5e4 + 2e3 * upper, {"units": "m**2 s**-2"}),
            "temperature": (tuple(axes), 270 + 9 * upper, {"units": "K"}),
            "2m_temperature": (surface, (285 + 9 * waves).astype(np.float32), {"units": "K"}),
        },
        axes,
    )
    data.to_zarr(path, zarr_format=2)


def write_reaction(path):
    """As PDEBench's generator: 3 seeds of 101 times on 128x128 points."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 128, dtype=np.float32)
    with h5py.File(path, "w") as file:
        for seed in range(3):
            waves = np.sin(4 * x[:, None] + np.arange(101)[:, None, None] / 9 + seed) * np.cos(3 * x)
            data = np.stack([waves, waves**2], axis=-1) + rng.normal(size=(101, 128, 128, 2)) / 20
            file.create_dataset(f"{seed:04d}/data", data=data.astype(np.float32), compression="lzf")
            for axis, values in (("x", x), ("y", x), ("t", np.arange(101) / 20)):
                file.create_dataset(f"{seed:04d}/grid/{axis}", data=values.astype(np.float32), compression="lzf")


def train(name, shards, run, valid):
    changes = {**SMALLER, "output_dir": run, "data.train": shards / "train", "data.valid": shards / valid}
    said = command("dydiff_dist/train.py", f"configs/{name}_small.json", *(f"{k}={v}" for k, v in changes.items()))
    assert "step 3/3: loss" in said and "nan" not in said


def assert_audited(folder, num_samples):
    shards = ShardSet.open(folder, check="sha256")
    found = audit(shards, 2, 0)
    assert found.exact and found.num_samples == num_samples


@pytest.mark.slow
def test_era5_converts_trains_forecasts_and_is_scored_by_latitude(tmp_path):
    write_era5(tmp_path / "era5.zarr")
    words = "--variables 2m_temperature geopotential:500 temperature:850 --num-frames 12 --window-step 4"
    split = "--valid-start 2017-12-29 --test-start 2018-01-01"
    out = tmp_path / "shards"
    done, line = make_shards(
        "weather", "--root", tmp_path / "era5.zarr", *words.split(), *split.split(), "--out", out, "--processes", 1
    )
    assert done, line
    assert_audited(out / "train", 7)
    run, forecasts = tmp_path / "run", tmp_path / "forecasts"
    train("era5", out, run, "test")
    said = command("tools/forecast.py", run, "--shards", out / "test", "--cases", 1, "--members", 2, "--out", forecasts)
    members = np.load(forecasts / "case_000000.npz")["members"]
    assert members.shape == (2, 8, 3, 32, 64) and np.isfinite(members).all(), said
    said = command("tools/evaluate.py", forecasts, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]["forecast"]
    for name in ("lat_weighted_rmse", "lat_weighted_rmse_geopotential_500", "lat_weighted_crps_2m_temperature"):
        assert len(scores[name]["by_lead"]) == 8 and name in said


@pytest.mark.slow
def test_pdebench_converts_and_trains(tmp_path):
    (tmp_path / "in" / "train").mkdir(parents=True)
    (tmp_path / "in" / "valid").mkdir()
    write_reaction(tmp_path / "in" / "train" / "2D_diff-react_NA_NA.h5")
    write_reaction(tmp_path / "in" / "valid" / "2D_diff-react_NA_NA.h5")
    words = ["--num-frames", 20, "--space-stride", 2, "--processes", 1]
    done, line = make_shards("pdebench", "--root", tmp_path / "in", *words, "--out", tmp_path / "shards")
    assert done, line
    assert_audited(tmp_path / "shards" / "train", 15)
    train("pdebench", tmp_path / "shards", tmp_path / "run", "valid")
