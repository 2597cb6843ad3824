"""Windows of time series against direct slicing."""

import gzip
import json
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from dydiff_dist.data.augment import SampleTransform
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.convert import convert
from dydiff_dist.data.inspection import save_pictures
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources import timeseries
from dydiff_dist.data.sources.timeseries import TimeseriesSource, TimeseriesSourceConfig
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.forecasting import Forecaster
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.frame_space import PlainFrames


def windows(folder):
    shards = ShardSet.open(folder)
    return np.stack([shards.read(shards.address(number)).frames[:, :, 0, 0] for number in range(len(shards))])


def test_exchange_windows_equal_slices_of_the_text(sample_data, tmp_path):
    path = sample_data / "timeseries" / "exchange_rate.txt.gz"
    config = TimeseriesSourceConfig(train_file=str(path), protocol="exchange", train_step=50, scaling="none")
    convert(TimeseriesSource(config), tmp_path)
    with gzip.open(path, "rt") as file:
        series = np.array([[float(value) for value in line.split(",")] for line in file]).astype(np.float32)
    test = windows(tmp_path / "test")
    assert test.shape == (5, 60, 8)
    for number, window in enumerate(test):
        stop = 7588 - 30 * (4 - number)
        assert np.array_equal(window, series[stop - 60 : stop])
    valid = windows(tmp_path / "valid")
    assert np.array_equal(valid[-1, 30:], series[7588 - 180 : 7588 - 150])
    train = windows(tmp_path / "train")
    assert np.array_equal(train[3], series[150:210])
    assert 50 * (len(train) - 1) + 60 <= 7588 - 150 - 60


@pytest.fixture
def ramps(tmp_path):
    """Shards of three ramps, one of them constant zero, with context 3 and horizon 2."""
    values = np.arange(1, 41, dtype=float)[:, None] * [1.0, -10.0, 0.0]
    np.savetxt(tmp_path / "series.txt", values, delimiter=",")
    config = TimeseriesSourceConfig(train_file=str(tmp_path / "series.txt"), horizon=2, context=3, valid_windows=0)
    convert(TimeseriesSource(config), tmp_path / "out")
    return tmp_path / "out"


def test_mean_scaling_leaves_the_files_values_and_divides_by_the_context_when_read(ramps):
    assert np.array_equal(windows(ramps / "train")[0], np.arange(1, 6)[:, None] * np.float32([1, -10, 0]))
    shards = ShardSet.open(ramps / "train")
    config = DataConfig(train="-", num_history_frames=3, num_future_frames=2, shuffle_window_bytes=0, num_workers=0)
    batch = next(iter(TrainStream(shards, config, 0, 2, 2)))
    shift, scale = (np.float32(x) for x in (shards.manifest.shift, shards.manifest.scale))
    ramp = np.arange(1, 6, dtype=np.float32)
    for first, frames in zip((1, 2), batch["frames"].numpy()[..., 0, 0], strict=True):
        scaled = (ramp + first - 1) / (first + 1)  # the context's mean is its middle value
        expected = (np.stack([scaled, -scaled, 0 * scaled], 1) - shift) / scale
        np.testing.assert_allclose(frames, expected, rtol=2e-6, atol=1e-6)


def test_statistics_are_of_scaled_windows(ramps):
    shards = ShardSet.open(ramps / "train")
    scaled = np.stack(
        [window / np.abs(window[:3]).mean(0) for window in windows(ramps / "train")[:, :, :2].astype(float)]
    )
    np.testing.assert_allclose(shards.manifest.shift[:2], scaled.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(shards.manifest.scale[:2], scaled.std((0, 1)), rtol=1e-6)


def test_series_are_drawn_as_curves(ramps, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axis, values, **_: drawn.append(values))
    save_pictures(ShardSet.open(ramps / "train"), tmp_path / "series.png", num_samples=2)
    assert len(drawn) == 6 and all(len(values) == 5 for values in drawn) and (tmp_path / "series.png").exists()


class ContinuesTheMean(torch.nn.Module):
    """Predicts x0 = 0 in network units: the mean of the data, whatever the noise."""

    def forward(self, z, timesteps, history, actions=None):
        return torch.zeros_like(z)


def test_forecasts_come_out_in_the_files_units(ramps):
    """A network that forecasts the mean gives shift times the context's mean, for each variate and case."""
    manifest = ShardSet.open(ramps / "train").manifest
    forecaster = Forecaster(
        network=ContinuesTheMean(),
        diffusion=DiffusionConfig(prediction="x0").build(None),
        sampling=SamplingConfig(num_steps=3),
        num_history_frames=3,
        num_future_frames=2,
        frames=PlainFrames(manifest.shift, manifest.scale, manifest.frames.sample_scaling),
    )
    history = torch.from_numpy(windows(ramps / "train")[[0, 7], :3, :, None, None])
    forecast = forecaster.forecast(history, num_members=2)
    expected = history.abs().mean((1, 3, 4)) * torch.tensor(manifest.shift)
    for member in forecast.unbind(1):
        torch.testing.assert_close(
            member[:, :, :2, 0, 0], expected[:, None, :2].expand(2, 2, 2).float(), rtol=1e-5, atol=0
        )


def test_json_lines_with_rolling_test_series(tmp_path):
    rng = np.random.default_rng(0)
    series = rng.standard_normal((50, 2))
    lines = [json.dumps({"start": "2020-01-01", "target": series[:40, d].tolist()}) for d in range(2)]
    (tmp_path / "train.json").write_text("\n".join(lines))
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        for stop in (50, 45):
            for d in range(2):
                file.write(json.dumps({"start": "2020-01-01", "target": series[:stop, d].tolist()}) + "\n")
    config = TimeseriesSourceConfig(
        train_file=str(tmp_path / "train.json"),
        test_file=str(tmp_path / "test.jsonl.gz"),
        horizon=5,
        context=7,
        scaling="none",
    )
    convert(TimeseriesSource(config), tmp_path / "out")
    test = windows(tmp_path / "out" / "test")
    assert np.array_equal(test, np.stack([series[33:45], series[38:50]]).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1,2\n3,x\n", {"horizon": 1}, "line 2, column 2: 'x' is no number"),
        ("1.0,2\n3,4\n", {"horizon": 1}, "has 2 times, too few for 1 test and 2 validation windows"),
        ("1,2\n3,4\n", {}, "neither --protocol nor --horizon is given"),
    ],
)
def test_user_errors_are_one_line(tmp_path, text, options, message):
    (tmp_path / "series.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TimeseriesSource(TimeseriesSourceConfig(train_file=str(tmp_path / "series.txt"), **options)).plan()
    assert "\n" not in str(caught.value)


def plan_and_summary(path, **options):
    source = TimeseriesSource(TimeseriesSourceConfig(train_file=str(path), **{"horizon": 2, "context": 3, **options}))
    return source, source.summary(source.plan())


def late_series(tmp_path):
    """Three loads of which the second begins after 60 of 120 times."""
    values = (100 + np.arange(120) % 7)[:, None] * [1.0, 50.0, 2.0]
    values[:60, 1] = 0
    np.savetxt(tmp_path / "loads.txt", values, "%.2f", ",")
    return values


def test_a_context_of_zeros_is_scaled_by_the_training_mean_everywhere(tmp_path):
    """GluonTS's rule for a series that begins late; in statistics, in batches and in forecasts alike."""
    values = late_series(tmp_path)
    source, lines = plan_and_summary(tmp_path / "loads.txt")
    assert any(line.startswith("variate_1: the context of 58 windows is zero throughout") for line in lines)
    convert(source, tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "train")
    empty_scale = shards.schema.empty_history_scale
    np.testing.assert_allclose(empty_scale, values[:114].mean(0), rtol=1e-12)
    assert shards.manifest.statistics.max[1] < 4  # one value of three: its own thrice; not 5000, the value itself
    frames = shards.read(shards.address(58)).frames
    assert not frames[:2, 1].any() and frames[2:, 1].all()  # its context has one value
    first = shards.read(shards.address(57)).frames.copy()  # its context has none
    config = DataConfig(train="-", num_history_frames=3, num_future_frames=2, num_workers=0)
    transform = SampleTransform(config, shards.schema, (0.0,) * 3, (1.0,) * 3)
    read = np.empty((5, 3, 1, 1), np.float32)
    transform.write_frames(first, None, read)
    expected = first[3:, 1, 0, 0] / values[:114, 1].mean()
    np.testing.assert_allclose(read[3:, 1, 0, 0], expected, rtol=1e-6)
    space = PlainFrames((0.0,) * 3, (1.0,) * 3, "history_mean", empty_history_scale=empty_scale)
    history, future = torch.from_numpy(first[None, :3]), torch.from_numpy(first[None, 3:])
    encoded = space.encode(history, future)
    np.testing.assert_array_equal(encoded[0].numpy(), read)
    decoded = space.decode(encoded[:, None, 3:], history, encoded[:, :3])
    torch.testing.assert_close(decoded[:, 0], future, rtol=1e-6, atol=0)


def test_the_training_mean_is_taken_once_for_all_windows(tmp_path, monkeypatch):
    late_series(tmp_path)
    taken, mean_absolute = [], timeseries.mean_absolute
    monkeypatch.setattr(timeseries, "mean_absolute", lambda values: taken.append(len(values)) or mean_absolute(values))
    report = convert(plan_and_summary(tmp_path / "loads.txt")[0], tmp_path / "out")
    assert taken == [114] and len(windows(report.manifests["train"].parent)) == 110


def test_a_series_close_to_zero_is_named_with_what_it_reaches(tmp_path):
    values = np.ones((60, 2))
    values[20:24, 1] = 1e-3
    np.savetxt(tmp_path / "near_zero.csv", values, delimiter=",", header="load,current", comments="")
    _, lines = plan_and_summary(tmp_path / "near_zero.csv")
    assert [line for line in lines if "warning" in line] == [
        "warning: current is close to zero in some contexts; scaled by their mean absolute value it reaches 1,000 "
        "(window from line 22): consider --scaling none"
    ]
    assert not any("warning" in line for line in plan_and_summary(tmp_path / "near_zero.csv", scaling="none")[1])


def test_windows_that_hold_a_missing_value_are_rejected_together_by_its_place(tmp_path):
    values = [[f"{t}.5", f"{t}.25"] for t in range(40)]
    values[11][1] = ""
    (tmp_path / "gap.csv").write_text("a,b\n" + "\n".join(map(",".join, values)))
    source, lines = plan_and_summary(tmp_path / "gap.csv")
    assert "1 value is missing, the first at line 13: no value of b (variate 2)" in lines
    report = convert(source, tmp_path / "out")
    assert [(item.name, item.reason) for item in report.bad_items] == [
        ("5 windows at times 7 to 11", "line 13: no value of b (variate 2)")
    ]


def dated(days, header="date,load"):
    """A table with a row per day, numbered from 2020-01-01."""
    first = datetime(2020, 1, 1)
    return header + "\n" + "".join(f"{first + timedelta(day):%Y-%m-%d},{day}.5\n" for day in days)


def test_no_window_crosses_a_gap_in_time(tmp_path):
    (tmp_path / "days.csv").write_text(dated([*range(20), *range(25, 45)]))
    source, lines = plan_and_summary(tmp_path / "days.csv")
    assert "1 gaps in time, the first before line 22 (6 days after the row before it, elsewhere 1 days)" in lines[1]
    report = convert(source, tmp_path / "out")
    assert report.left_out == {"a window would cross the gap in time before line 22": 4}
    for window in windows(tmp_path / "out" / "train"):
        assert np.array_equal(np.diff(window[:, 0]), np.ones(4))


def test_trading_days_are_equal_steps_and_said_to_be(tmp_path):
    (tmp_path / "days.csv").write_text(dated([day for day in range(60) if day % 7 < 5]))
    source, lines = plan_and_summary(tmp_path / "days.csv")
    assert "rows are unevenly spaced (1 days, 3 days, ...) and are taken as equal steps, as of trading days" in lines
    assert not convert(source, tmp_path / "out").left_out
