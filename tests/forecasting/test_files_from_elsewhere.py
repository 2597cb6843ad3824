"""Models and forecasts that were altered, or made by somebody who means harm: one line, and nothing outside changes."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dydiff_dist.diffusion.samplers import SAMPLERS, register_sampler
from dydiff_dist.evaluation.score_files import STRIPS_NAME, ScoredRun, write_shown_cases
from dydiff_dist.files import SEAL, TensorSpec, file_sha256, seal
from dydiff_dist.forecasting import ForecastRun, ForecastStore, Verification, load_forecaster
from dydiff_dist.forecasting.exported import INDEX_NAME, case_data, read_description, stream_model


@pytest.fixture
def model(flow_model, tmp_path) -> Path:
    return Path(shutil.copytree(flow_model / "model", tmp_path / "model"))


@pytest.fixture
def forecasts(flow_model, flow_shards, tmp_path) -> Path:
    _run(flow_model, flow_shards, tmp_path / "forecasts")
    return tmp_path / "forecasts"


def _run(model: Path, shards: Path, out: Path, **options) -> None:
    ForecastRun(model, shards / "test", out, **({"num_members": 2, "device": "cpu"} | options)).run()


def _change(path: Path, place: str, value: object = None, *, sealed: bool = True, remove: bool = False) -> None:
    """Sets or removes a value, and seals the document again where it is to look right."""
    tree = json.loads(path.read_text())
    *sections, key = place.split(".")
    section = tree
    for name in sections:
        section = section[name]
    if remove:
        del section[key]
    else:
        section[key] = value
    path.write_text(json.dumps(seal(tree) if sealed else tree))


def test_one_changed_value_of_a_model_is_noticed(model):
    _change(model / "config.json", "run.sampling.num_steps", 4, sealed=False)
    with pytest.raises(ValueError, match=r"config.json was altered: its checksum does not fit its content; restore it"):
        load_forecaster(model)


def test_a_model_without_a_seal_still_loads_and_says_so_once(model, caplog):
    _change(model / "config.json", SEAL, remove=True, sealed=False)
    with caplog.at_level(logging.WARNING):
        load_forecaster(model, device="cpu")
        read_description(model)
    assert [record.getMessage() for record in caplog.records] == [
        f"{model}/config.json has no checksum, so a changed value in it goes unnoticed; export the model again"
    ]


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("data_schema.shape", None, "data_schema: key 'shape' is required"),
        ("data_schema.num_actions", None, "data_schema: key 'num_actions' is required"),
        ("data_schema.shift", None, "data_schema: key 'shift' is required"),
        ("data_schema.scale", [1.0, 0.0], "data_schema: shift and scale must hold 2 numbers each"),
        ("data_schema.shape", [2, 10**9, 16], "data_schema: shape.1 is 1000000000"),
        ("data_schema.dtype", "object", "data_schema: dtype is 'object'"),
        ("data_schema", [], "data_schema is []"),
        ("run.data", None, "is damaged (KeyError: 'data'); export the model again"),
        ("run.data.train", "s3://key:secret@bucket/x", "data.train: s3://***@bucket/x was given with credentials"),
        ("run.model.network", "x" * 7316, "xxx"),
    ],
)
def test_a_hand_damaged_model_is_one_line(model, place, value, reason):
    _change(model / "config.json", place, value, remove=value is None)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        load_forecaster(model, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900 and "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", ".x", "", "a/b.safetensors"])
def test_an_index_of_weights_names_files_of_its_folder_only(flow_model, tmp_path, name):
    record = json.loads((flow_model / "model" / "config.json").read_text())
    weights = {f"w{n}": torch.zeros(4) for n in range(2)}
    specs = {key: TensorSpec(dtype=w.dtype, shape=tuple(w.shape)) for key, w in weights.items()}
    folder = stream_model(tmp_path / "m", specs, weights.get, record["run"], record["data_schema"], max_file_bytes=16)
    index = json.loads((folder / INDEX_NAME).read_text())
    index["metadata"]["sha256"] = {name: "0" * 64}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    _change(folder / "config.json", "weights_sha256", file_sha256(folder / INDEX_NAME))
    with pytest.raises(ValueError, match="is no plain file name"):
        load_forecaster(folder, device="cpu")


def test_a_header_of_weights_that_lies_is_one_line(model):
    path = model / "model.safetensors"
    data = path.read_bytes()
    for header in (b"\xff" * 8, (10**13).to_bytes(8, "little"), (len(data)).to_bytes(8, "little")):
        path.write_bytes(header + data[8:])
        _change(model / "config.json", "weights_sha256", file_sha256(path))
        with pytest.raises(ValueError, match=r"model.safetensors is not a safetensors file: ") as caught:
            load_forecaster(model, device="cpu")
        assert "\n" not in str(caught.value)


def test_no_cache_is_made_where_a_model_or_forecasts_say(model, forecasts, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    _change(model / "config.json", "run.data.remote.cache_dir", elsewhere)
    assert case_data(read_description(model)[0], model).remote.cache_dir is None
    _change(forecasts / "forecast.json", "data.remote.cache_dir", elsewhere)
    assert ForecastStore.open(forecasts).request.data.remote.cache_dir is None
    assert not Path(elsewhere).exists()


def test_a_changed_forecast_request_is_noticed(forecasts):
    _change(forecasts / "forecast.json", "seed", 5, sealed=False)
    with pytest.raises(ValueError, match=r"forecast.json was altered: its checksum"):
        ForecastStore.open(forecasts)


def test_forecasts_with_a_sampler_that_is_not_registered_say_what_to_import(flow_model, flow_shards, tmp_path):
    register_sampler("of_my_own", SAMPLERS["ddim"])
    try:
        _run(flow_model, flow_shards, tmp_path / "out", sampling={"sampler": "of_my_own"}, num_cases=1)
    finally:
        del SAMPLERS["of_my_own"]
    with pytest.raises(
        ValueError, match=r"sampler is 'of_my_own'.*; import the module that registers it with --import"
    ):
        Verification.open(tmp_path / "out")


@pytest.mark.parametrize("file_format", ["npz", "zarr"])
def test_damaged_and_exchanged_cases_are_named_and_counted(flow_model, flow_shards, tmp_path, file_format):
    out = tmp_path / "out"
    _run(flow_model, flow_shards, out, file_format=file_format)
    one, other = (ForecastStore.open(out).path(case) for case in (1, 3))
    if file_format == "zarr":
        one, other = (path / "0" / "0" / "0" / "0" / "0" for path in (one, other))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)
    evaluation = Verification.open(out).evaluate()
    assert sorted(evaluation.errors) == [1, 3] and evaluation.num_cases == 3
    reason = {"npz": "is of sample", "zarr": "differs from its CRC-32"}[file_format]
    assert all(reason in message for message in evaluation.errors.values())
    one.write_bytes(first[: len(first) // 2]), other.write_bytes(second[:200] + b"!" + second[201:])
    evaluation = Verification.open(out).evaluate()
    assert sorted(evaluation.errors) == [1, 3] and all("\n" not in text for text in evaluation.errors.values())


def test_an_npz_whose_header_claims_more_is_refused(forecasts):
    """A flipped length of the npy header would shift the data: the member's CRC-32 comes first."""
    path = ForecastStore.open(forecasts).path(0)
    data = path.read_bytes()
    place = data.index(b"\x93NUMPY") + 8
    path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"case_000000.npz is damaged \(.*CRC-32"):
        ForecastStore.open(forecasts).read(0)
    huge = {"members": np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**20,), (0,))}
    np.savez_compressed(path, **huge)  # a thousandth of what it unpacks to, and no more is believed
    with pytest.raises(ValueError, match=r"it lacks 'key'"):
        ForecastStore.open(forecasts).read(0)


def test_zarr_forecasts_of_before_there_were_checksums_are_read(flow_model, flow_shards, tmp_path, caplog):
    out = tmp_path / "out"
    _run(flow_model, flow_shards, out, file_format="zarr", num_cases=2)
    expected = ForecastStore.open(out).read(1)[1]
    shutil.rmtree(out / "forecasts.zarr" / "crc32")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ForecastStore.open(out).read(1)[1], expected)
    assert "forecasts.zarr has no checksums" in caplog.text
    _run(flow_model, flow_shards, out, file_format="zarr", num_cases=3)
    assert [ForecastStore.open(out).read(case)[0] for case in range(3)]


def test_strips_name_pictures_beside_them_only(tmp_path):
    (tmp_path / "cases").mkdir()
    case = {"number": 0, "key": "a", "num_given": 1, "num_frames": 2, "rows": [{"label": "truth", "file": "../x.png"}]}
    write_shown_cases(tmp_path / STRIPS_NAME, [case])
    with pytest.raises(ValueError, match=r"strips.json holds no cases \(0.rows.0.file: .*is no plain file name"):
        ScoredRun("run", tmp_path).shown_cases(STRIPS_NAME)
