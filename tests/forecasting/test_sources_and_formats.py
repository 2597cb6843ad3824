"""Forecasts from arrays, beyond the truth, as zarr, and animated."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.forecasting import CaseReader, ForecastRun, ForecastStore, Verification

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(flow_model, source, out, **options) -> ForecastRun:
    return ForecastRun(flow_model, source, out, **({"num_members": 2, "device": "cpu"} | options))


def _raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


@pytest.fixture(scope="module")
def histories(flow_model, flow_shards) -> np.ndarray:
    """(5, 3, 2, 16, 16): what the cases of the shards give."""
    reader = CaseReader.for_model(flow_model, flow_shards / "test")
    return np.stack([reader.read(number).history for number in range(len(reader))])


@pytest.fixture(scope="module")
def from_shards(flow_model, flow_shards, tmp_path_factory) -> ForecastStore:
    out = tmp_path_factory.mktemp("from_shards")
    _run(flow_model, flow_shards / "test", out).run()
    return ForecastStore.open(out)


def test_an_array_is_forecast_as_the_shards_that_it_came_from(flow_model, from_shards, histories, tmp_path) -> None:
    np.savez(tmp_path / "given.npz", history=histories, key=np.array([f"k{n}" for n in range(5)]))
    run = _run(flow_model, tmp_path / "given.npz", tmp_path / "out")
    run.run()
    store = ForecastStore.open(tmp_path / "out")
    for case in range(5):
        key, members = store.read(case)
        assert key == f"k{case}"
        np.testing.assert_array_equal(members, from_shards.read(case)[1])
    assert store.request.frames.units == from_shards.request.frames.units
    with _raises(ValueError, "given.npz, which holds no truth; nothing to score"):
        Verification.open(tmp_path / "out")


def test_a_single_history_is_a_case_and_goes_on_where_it_stopped(flow_model, from_shards, histories, tmp_path) -> None:
    np.save(tmp_path / "now.npy", histories[0])
    _run(flow_model, tmp_path / "now.npy", tmp_path / "out").run()
    again = _run(flow_model, tmp_path / "now.npy", tmp_path / "out")
    assert (again.missing, again.num_reused) == ([], 1)
    # batches of one case and of five differ by the network's rounding only
    np.testing.assert_allclose(again.store.read(0)[1], from_shards.read(0)[1], rtol=1e-4, atol=1e-4)
    np.save(tmp_path / "now.npy", histories[1])
    with _raises(ValueError, "holds forecasts with shards_sha256"):
        _run(flow_model, tmp_path / "now.npy", tmp_path / "out")


def test_arrays_that_do_not_fit_are_refused(flow_model, histories, tmp_path) -> None:
    def refused(message: str, name: str = "given.npz", error: type[Exception] = ValueError) -> None:
        with _raises(error, message):
            _run(flow_model, tmp_path / name, tmp_path / "out").run()

    refused("none.npy does not exist", "none.npy", FileNotFoundError)
    np.savez(tmp_path / "given.npz", frames=histories)
    refused("it holds frames, no array called history")
    np.savez(tmp_path / "given.npz", history=histories[:, :2])
    refused("has shape (5, 2, 2, 16, 16), the model takes (N, 3, 2, H, W)")
    np.savez(tmp_path / "given.npz", history=histories, key=np.array(["a"]))
    refused("has 1 of key and 5 histories; give one for each")
    np.savez(tmp_path / "given.npz", history=histories, actions=np.zeros((5, 7, 4)))
    refused("has 2 channels and 4 actions")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    refused("objects.npy can't be used: Object arrays cannot be loaded", "objects.npy")
    np.savez(tmp_path / "given.npz", history=histories[:0])
    refused("given.npz holds no case: history has shape (0, 3, 2, 16, 16); give at least one")
    np.savez(tmp_path / "given.npz", history=histories.astype(complex))
    refused("given.npz is of type complex128; give real numbers")


@pytest.mark.parametrize("file_format", ["npz", "zarr"])
def test_a_history_with_nan_is_named_and_the_others_are_forecast(
    flow_model, from_shards, histories, tmp_path, file_format
) -> None:
    if file_format == "zarr":
        pytest.importorskip("zarr", reason="zarr is not installed (pip install 'dydiff_dist[zarr]')")
    given = histories.copy()
    given[1, 0, 0, 0, :2] = np.nan
    np.save(tmp_path / "given.npy", given)
    run = _run(flow_model, tmp_path / "given.npy", tmp_path / "out", file_format=file_format)
    heard = []
    run.run(heard.append)
    assert run.problems == {1: "case 1 (given_000001): 2 of 1536 values of its history are NaN or infinite"}
    assert sum(heard) == 5 and run.store.cases() == [0, 2, 3, 4]
    for case in (0, 2, 3, 4):
        # batches of four and of five differ by the network's rounding only
        np.testing.assert_allclose(run.store.read(case)[1], from_shards.read(case)[1], rtol=1e-4, atol=1e-4)
    assert [path.name for path in run.animate(2, "gif")] == ["case_000000.gif"]
    np.save(tmp_path / "none.npy", histories * np.nan)
    none = _run(flow_model, tmp_path / "none.npy", tmp_path / "nothing", file_format=file_format)
    none.run()
    assert sorted(none.problems) == [0, 1, 2, 3, 4] and none.store.cases() == []


def test_a_damaged_sample_is_named_and_the_others_are_forecast(flow_model, flow_shards, tmp_path) -> None:
    shards = shutil.copytree(flow_shards / "test", tmp_path / "shards")
    address = ShardSet.open(shards).address(3)
    entry = ShardSet.open(shards).manifest.shards[address.shard]
    offset = json.loads((shards / entry.name.replace(".tar", ".index.json")).read_text())["offsets"][address.item]
    with open(shards / entry.name, "r+b") as file:
        file.seek(offset + 700)
        file.write(b"damaged")
    run = _run(flow_model, shards, tmp_path / "out")
    run.run()
    assert list(run.problems) == [3] and run.problems[3].startswith("case 3: ")
    assert run.store.cases() == [0, 1, 2, 4]


@pytest.mark.slow
def test_the_command_line_ends_with_status_1_where_a_history_is_nan(flow_model, histories, tmp_path) -> None:
    given = histories[:2].copy()
    given[0] = np.nan
    np.save(tmp_path / "given.npy", given)
    command = [sys.executable, "tools/forecast.py", flow_model, "--history", tmp_path / "given.npy"]
    more = ["--out", tmp_path / "out", "--members", "2", "--device", "cpu"]
    done = subprocess.run([*map(str, command + more)], capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 1, done.stderr
    assert (
        done.stderr == "not forecast: case 0 (given_000000): 1536 of 1536 values of its history are NaN or infinite\n"
    )
    assert (tmp_path / "out" / "case_000001.npz").is_file()


def test_a_forecast_goes_on_beyond_the_truth_and_is_scored_as_far_as_there_is_one(
    flow_model, flow_shards, from_shards, tmp_path
) -> None:
    _run(flow_model, flow_shards / "test", tmp_path, num_frames=9).run()
    verification = Verification.open(tmp_path)
    assert verification.store.read(0)[1].shape == (2, 9, 2, 16, 16)
    case = verification.case(0)
    assert case.members.shape == (2, 4, 2, 16, 16)
    np.testing.assert_array_equal(case.members, from_shards.read(0)[1])
    evaluation = verification.evaluate()
    assert evaluation.num_cases == 5 and evaluation.protocol["frames_without_truth"] == 5


def test_zarr_holds_the_same_numbers_and_goes_on_too(flow_model, flow_shards, from_shards, tmp_path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed (pip install 'dydiff_dist[zarr]')")
    ranks = [
        _run(flow_model, flow_shards / "test", tmp_path, file_format="zarr", num_cases=3, rank=r, world_size=2)
        for r in range(2)
    ]
    ranks[1].run()
    store = ForecastStore.open(tmp_path)
    assert store.cases() == [1]
    with _raises(FileNotFoundError, "does not exist; run tools/forecast.py with more cases"):
        store.read(0)
    rest = _run(flow_model, flow_shards / "test", tmp_path, file_format="zarr")
    assert rest.missing == [0, 2, 3, 4]
    rest.run()
    store = ForecastStore.open(tmp_path)
    group = zarr.open_group(tmp_path / "forecasts.zarr", mode="r")
    assert group["members"].shape == (5, 2, 4, 2, 16, 16) and group["lead_frames"][:].tolist() == [1, 2, 3, 4]
    assert group["members"].metadata.dimension_names == ("case", "member", "lead", "channel", "y", "x")
    for case in range(5):
        key, members = from_shards.read(case)
        assert store.read(case)[0] == key
        # other batches: float32 sums of the network in another order
        np.testing.assert_allclose(group["members"][case], members, rtol=1e-4, atol=1e-4)
    assert Verification.open(tmp_path).evaluate().num_cases == 5
    chunk = next(path for path in store.path(2).rglob("*") if path.is_file())
    chunk.write_bytes(b"damaged")
    evaluation = Verification.open(tmp_path).evaluate()
    assert list(evaluation.errors) == [2] and "is damaged" in evaluation.errors[2]
    with _raises(ValueError, "holds forecasts with file_format = 'zarr', now 'npz' is asked for"):
        _run(flow_model, flow_shards / "test", tmp_path)


@pytest.mark.slow
def test_the_command_animates_arrays_and_shards(flow_model, flow_shards, histories, tmp_path) -> None:
    np.save(tmp_path / "given.npy", histories[:2])
    command = [sys.executable, "tools/forecast.py", flow_model, "--out", tmp_path / "out", "--members", "2"]
    more = ["--history", tmp_path / "given.npy", "--gif", "1", "--mp4", "2", "--device", "cpu"]
    done = subprocess.run([*map(str, command + more)], capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "forecast: 2/2 cases" in done.stdout and "score them" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case_000000.gif",
        "case_000000.mp4",
        "case_000000.npz",
        "case_000001.mp4",
        "case_000001.npz",
        "forecast.json",
    ]
    assert json.loads((tmp_path / "out" / "forecast.json").read_text())["num_frames"] == 4
    with Image.open(tmp_path / "out" / "case_000000.gif") as animation:
        assert animation.n_frames == 3 + 4
    with av.open(str(tmp_path / "out" / "case_000000.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 7 + 3  # the last frame rests
    assert frames[0].std() > 10
