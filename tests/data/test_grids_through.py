"""Weather and PDEBench through the commands that a user gives, with their ready configurations, on files that are
written here as the data sets have them."""

import json

import numpy as np
import pytest
from moving_inputs import write_pdebench, write_weather
from test_field_inputs import make_shards
from test_samples_through import SMALLER, command

from dydiff_dist.data.inspection import audit
from dydiff_dist.data.shard_set import ShardSet


def write_climatology(path):
    """What ``write_weather`` is like on each day of a year of its own, as WeatherBench 2's climatologies have it."""
    xarray = pytest.importorskip("xarray", reason="xarray is an extra")
    write_weather(path.with_name("year.zarr"), 366, "2016-01-01")
    data = xarray.load_dataset(path.with_name("year.zarr"), engine="zarr")
    data = data.assign_coords(dayofyear=data.time.dt.dayofyear, hour=data.time.dt.hour)
    data.set_index(time=("dayofyear", "hour")).unstack("time").to_zarr(path, zarr_format=2)


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
    pytest.importorskip("xarray", reason="xarray is an extra")
    pytest.importorskip("zarr", reason="zarr is an extra")
    write_weather(tmp_path / "era5.zarr", 16, "2017-12-20")
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
    write_climatology(tmp_path / "climate.zarr")
    climatology = ("--daily-climatology", tmp_path / "climate.zarr")
    said = command("tools/evaluate.py", forecasts, *climatology, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    assert np.isfinite(scores["daily_climatology"]["lat_weighted_rmse"]["by_lead"]).all()
    scores = scores["forecast"]
    for name in ("lat_weighted_rmse", "lat_weighted_rmse_geopotential_500", "lat_weighted_crps_2m_temperature"):
        assert len(scores[name]["by_lead"]) == 8 and name in said


@pytest.mark.slow
def test_pdebench_converts_and_trains(tmp_path):
    write_pdebench(tmp_path / "in", num_runs=3)
    words = ["--num-frames", 20, "--space-stride", 2, "--processes", 1]
    done, line = make_shards("pdebench", "--root", tmp_path / "in", *words, "--out", tmp_path / "shards")
    assert done, line
    assert_audited(tmp_path / "shards" / "train", 15)
    train("pdebench", tmp_path / "shards", tmp_path / "run", "valid")
