"""Windows of time series against direct slicing."""

import gzip
import json

import numpy as np
import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.timeseries import TimeseriesSource, TimeseriesSourceConfig


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


def test_mean_scaling_divides_by_the_context(tmp_path):
    values = np.arange(1, 41, dtype=float)[:, None] * [1.0, -10.0, 0.0]
    np.savetxt(tmp_path / "series.txt", values, delimiter=",")
    config = TimeseriesSourceConfig(train_file=str(tmp_path / "series.txt"), horizon=2, context=3, valid_windows=0)
    convert(TimeseriesSource(config), tmp_path / "out")
    first = windows(tmp_path / "out" / "train")[0]
    np.testing.assert_allclose(first[:, 0], np.arange(1, 6) / 2, rtol=1e-6)
    np.testing.assert_allclose(first[:, 1], -np.arange(1, 6) / 2, rtol=1e-6)
    assert not first[:, 2].any()


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
        ("1,2\n3,x\n", {"horizon": 1}, "is not comma-separated numbers"),
        ("1,2\n3,4\n", {"horizon": 1}, "has 2 times, too few for 1 test and 2 validation windows"),
        ("1,2\n3,4\n", {}, "neither --protocol nor --horizon is given"),
    ],
)
def test_user_errors_are_one_line(tmp_path, text, options, message):
    (tmp_path / "series.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TimeseriesSource(TimeseriesSourceConfig(train_file=str(tmp_path / "series.txt"), **options)).plan()
    assert "\n" not in str(caught.value)
