"""Whole forecasts: exported models, folders of forecasts, their scores, and the two command lines."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_commands import chatter

from dydiff_dist.diffusion.samplers import SAMPLERS
from dydiff_dist.files import seal
from dydiff_dist.forecasting import ForecastRun, ForecastStore, Verification, load_forecaster, write_evaluation
from dydiff_dist.forecasting.cases import CaseReader

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(flow_model, flow_shards, out, **options) -> ForecastRun:
    return ForecastRun(flow_model, flow_shards / "test", out, **({"num_members": 3, "device": "cpu"} | options))


@pytest.fixture
def forecasts(flow_model, flow_shards, tmp_path) -> Path:
    """All five cases, three members each."""
    _run(flow_model, flow_shards, tmp_path / "forecasts").run()
    return tmp_path / "forecasts"


def _raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def _command(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_a_stopped_run_goes_on_and_ends_with_the_same_numbers(flow_model, flow_shards, forecasts, tmp_path) -> None:
    out = tmp_path / "stopped"
    _run(flow_model, flow_shards, out, num_cases=2).run()
    heard = []
    rest = _run(flow_model, flow_shards, out, batch=1)
    assert (rest.missing, rest.num_reused) == ([2, 3, 4], 2)
    rest.run(heard.append)
    assert heard == [1, 1, 1]
    whole, parts = ForecastStore.open(forecasts), ForecastStore.open(out)
    for case in range(5):
        assert whole.read(case)[0] == parts.read(case)[0]
        # batches of 3 and of 1 differ by the network's rounding only
        np.testing.assert_allclose(whole.read(case)[1], parts.read(case)[1], rtol=1e-4, atol=1e-4)


def test_ranks_share_the_cases_and_meet_in_one_folder(flow_model, flow_shards, forecasts, tmp_path) -> None:
    ranks = [_run(flow_model, flow_shards, tmp_path / "shared", rank=r, world_size=2) for r in (1, 0)]
    assert [run.missing for run in ranks] == [[1, 3], [0, 2, 4]]
    for run in ranks:
        run.run()
    shared, alone = ForecastStore.open(tmp_path / "shared"), ForecastStore.open(forecasts)
    assert shared.cases() == alone.cases() == [0, 1, 2, 3, 4]
    for case in range(5):
        np.testing.assert_allclose(shared.read(case)[1], alone.read(case)[1], rtol=1e-4, atol=1e-4)


def test_a_folder_holds_one_request(flow_model, flow_shards, forecasts) -> None:
    with _raises(ValueError, "holds forecasts with seed = 0, now 1 is asked for; write to another folder"):
        _run(flow_model, flow_shards, forecasts, seed=1)
    with _raises(ValueError, "holds forecasts with sampling.num_steps = 3, now 2 is asked for"):
        _run(flow_model, flow_shards, forecasts, sampling={"num_steps": 2})


def test_errors_before_the_first_forecast(flow_model, flow_shards, tmp_path) -> None:
    for name in ("num_members", "num_frames", "batch"):
        with _raises(ValueError, f"{name} is 0; ask for at least 1"):
            _run(flow_model, flow_shards, tmp_path, **{name: 0})
    with _raises(ValueError, "seed is -1; choose 0 to 2**64 - 1"):
        _run(flow_model, flow_shards, tmp_path, seed=-1)
    with _raises(ValueError, "6 cases were asked for"):
        _run(flow_model, flow_shards, tmp_path, num_cases=6)
    with _raises(ValueError, "sampling: unknown key 'steps'; did you mean 'num_steps'?"):
        _run(flow_model, flow_shards, tmp_path, sampling={"steps": 6})
    with _raises(FileNotFoundError, "no model in"):
        _run(tmp_path, flow_shards, tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_damaged_models_are_refused(flow_model, tmp_path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((flow_model / "model" / name).read_bytes())
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with _raises(ValueError, "model.safetensors was altered or cut off"):
        load_forecaster(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 1}')
    with _raises(ValueError, "config.json is damaged (KeyError: 'run'); export the model again"):
        load_forecaster(tmp_path)


def test_cases_come_in_stored_units(flow_shards, forecasts) -> None:
    reader = CaseReader.open(flow_shards / "test", ForecastStore.open(forecasts).request.data)
    stored = reader.shards.read(reader.shards.address(2)).frames
    case = reader.read(2)
    np.testing.assert_array_equal(np.concatenate([case.history, case.truth]), stored)
    np.testing.assert_array_equal(reader.frames(2), stored)


def test_scores_pictures_and_protocol(flow_shards, forecasts, tmp_path) -> None:
    verification = Verification.open(forecasts)
    evaluation = verification.evaluate(verification.climatology(flow_shards / "train"))
    with _raises(ValueError, "there is no case 99 to picture; choose 0 to 4"):
        write_evaluation(verification, evaluation, tmp_path / "scores", picture_cases=(1, 99))
    assert not (tmp_path / "scores").exists()
    written = write_evaluation(verification, evaluation, tmp_path / "scores", picture_cases=(1,))
    assert [path.name for path in written] == [
        "scores.json",
        "cases.csv",
        "report.html",
        "scores.png",
        "forecast_000001.png",
        "forecast_000001.gif",
    ]
    record = json.loads(written[0].read_text())
    assert (
        record["protocol"]["num_cases"] == 5 and record["protocol"]["baselines"]["climatology"]["num_trajectories"] == 8
    )
    direct = np.mean([np.abs(c.truth - c.history[-1]).mean() for c in map(verification.case, verification.numbers)])
    assert record["scores"]["persistence"]["crps"]["overall"] == pytest.approx(direct, rel=1e-6)
    assert record["skill"]["crps"]["persistence"] == pytest.approx(
        record["scores"]["forecast"]["crps"]["overall"] / direct, rel=1e-6
    )
    with Image.open(written[5]) as animation:
        assert animation.n_frames == 7


def test_blockiness_is_that_of_the_models_patches(forecasts) -> None:
    verification = Verification.open(forecasts)
    (suite,) = (suite for suite in verification.choose_suites() if suite.name == "blockiness")
    assert suite.protocol["patch_pixels"] == 4
    found = verification.evaluate(suites=[suite]).overall("forecast")
    cases = [verification.case(number) for number in verification.numbers]
    for name, frames in (("", [case.members for case in cases]), ("_truth", [case.truth for case in cases])):
        rows, columns = (np.abs(np.diff(np.stack(frames).astype(np.float64), axis=axis)) for axis in (-2, -1))
        across = (rows[..., 3::4, :].sum() + columns[..., 3::4].sum()) / (2 * rows[..., 3::4, :].size)
        total = (rows.sum() + columns.sum()) / (2 * rows.size)
        inside = (total * 15 - across * 3) / 12  # of 15 pairs along an edge of 16 pixels, 3 meet across patches of 4
        assert found[f"blockiness{name}"] == pytest.approx(across / inside, rel=1e-9)
    record = json.loads((forecasts / "forecast.json").read_text())
    assert record.pop("patch_pixels") == 4
    (forecasts / "forecast.json").write_text(json.dumps(seal(record)))  # as an earlier version wrote it
    assert "blockiness" not in [suite.name for suite in Verification.open(forecasts).choose_suites()]


def test_scoring_refuses_what_does_not_belong_together(flow_shards, forecasts) -> None:
    with _raises(ValueError, "was made from other shards"):
        Verification.open(forecasts, flow_shards / "train")
    for num_cases in (0, 6):
        with _raises(ValueError, f"num_cases is {num_cases}; score 1 to 5, as many as the shards have"):
            Verification.open(forecasts, num_cases=num_cases)
    for path in forecasts.glob("case_*.npz"):
        path.unlink()
    with _raises(ValueError, "lacks every case; run tools/forecast.py to its end"):
        Verification.open(forecasts)


def test_an_unfinished_folder_is_scored_with_its_missing_cases_counted(flow_model, flow_shards, tmp_path) -> None:
    """20 of 30 cases must not pass for all: the folder knows what was asked for."""
    out = tmp_path / "forecasts"
    run = _run(flow_model, flow_shards, out)
    del run.missing[3:]  # stopped here
    run.run()
    verification = Verification.open(out)
    assert verification.numbers == [0, 1, 2, 3, 4]
    unfinished = verification.unfinished()
    assert unfinished is not None and "is unfinished: 3 of 5 cases are forecast; finish it with the same" in unfinished
    evaluation = verification.evaluate()
    assert evaluation.num_cases == 3 and sorted(evaluation.errors) == [3, 4]
    fewer = Verification.open(out, num_cases=3)
    assert fewer.unfinished() is None and fewer.evaluate().errors == {}
    _run(flow_model, flow_shards, out, num_cases=2)  # a smaller request takes nothing back
    assert len(Verification.open(out).numbers) == 5
    record = json.loads((out / "forecast.json").read_text())
    assert record.pop("num_cases") == 5
    (out / "forecast.json").write_text(json.dumps(seal(record)))  # as an earlier version wrote it
    assert Verification.open(out).numbers == [0, 1, 2]


def test_forecasts_made_with_relative_paths_say_what_to_give_elsewhere(
    flow_model, flow_shards, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(flow_shards)
    ForecastRun(flow_model, "test", tmp_path / "out", num_members=2, num_cases=1, device="cpu").run()
    monkeypatch.chdir(tmp_path)
    with _raises(
        FileNotFoundError,
        f"out was made from test, which is not there (as seen from {tmp_path}); give these shards with --shards DIR",
    ):
        Verification.open("out")
    assert Verification.open("out", flow_shards / "test").evaluate().num_cases == 1


def test_cases_that_are_missing_damaged_or_of_another_shape_are_named_and_counted(forecasts, tmp_path) -> None:
    store = ForecastStore.open(forecasts)
    store.path(0).unlink()
    store.path(1).write_bytes(store.path(3).read_bytes())
    store.path(2).write_bytes(store.path(2).read_bytes()[:1000])
    key, members = store.read(4)
    store.write(4, key, members[:, :3])
    verification = Verification.open(forecasts)
    evaluation = verification.evaluate()
    assert evaluation.num_cases == 1 and sorted(evaluation.errors) == [0, 1, 2, 4]
    for number, reason in {
        0: "case_000000.npz does not exist; run tools/forecast.py with more cases",
        1: "case_000001.npz is of sample",
        2: "case_000002.npz is damaged",
        4: f"case 4 ({key}): members have shape (3, 3, 2, 16, 16), the truth (4, 2, 16, 16)",
    }.items():
        assert reason in evaluation.errors[number] and f"case {number}" in evaluation.errors[number]
    record = json.loads(write_evaluation(verification, evaluation, tmp_path / "scores")[0].read_text())
    assert list(record["errors"]) == ["0", "1", "2", "4"] and list(record["cases"]) == ["3"]
    assert (record["protocol"]["num_cases"], record["protocol"]["num_cases_in_shards"]) == (1, 5)


def test_case_scores_are_written_one_by_one(flow_shards, forecasts, tmp_path) -> None:
    verification = Verification.open(forecasts)
    evaluation = verification.evaluate(verification.climatology(flow_shards / "train"))
    write_evaluation(verification, evaluation, tmp_path)
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 3
    ours = [float(row["crps"]) for row in rows if row["forecaster"] == "forecast"]
    assert np.mean(ours) == pytest.approx(evaluation.tables["forecast"].overall("crps"), rel=1e-12)
    assert rows[0]["key"] == evaluation.keys[0] and rows[1]["spread"] == ""  # persistence has no spread


def test_bfloat16_forecasts_are_near_float32_ones(flow_model) -> None:
    history = torch.randn(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = load_forecaster(flow_model, device="cpu").forecast(history, num_members=2)
    rounded = load_forecaster(flow_model, device="cpu", dtype=torch.bfloat16).forecast(history, num_members=2)
    assert 0 < (exact - rounded).abs().mean() < 0.05 * exact.std()


@pytest.mark.slow
def test_the_command_lines_forecast_and_score(flow_model, flow_shards, tmp_path) -> None:
    out = tmp_path / "forecasts"
    arguments = ("tools/forecast.py", flow_model, "--shards", flow_shards / "test", "--out", out, "--members", 2)
    made = _command(*arguments, "--cases", 2)
    assert made.returncode == 0, made.stderr
    assert "forecast: 2/2 cases" in made.stdout and str(out) in made.stdout
    scored = _command("tools/evaluate.py", out, "--climatology", flow_shards / "train")
    assert scored.returncode == 0, scored.stderr
    assert "of climatology's, over all lead times, 2 cases" in scored.stdout
    refused = _command(*arguments, "--seed", 3)
    assert refused.returncode == 2
    assert (
        refused.stderr == f"error: {out} holds forecasts with seed = 0, now 3 is asked for; write to another folder\n"
    )


def test_the_command_line_offers_every_sampler_also_a_registered_one(tmp_path, monkeypatch) -> None:
    imports = "from dydiff_dist.diffusion import Sampler, register_sampler"
    call = "register_sampler('mine', Sampler(lambda levels, eta: [], order=1))"
    (tmp_path / "my_sampler.py").write_text(f"{imports}\n{call}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    shown = _command("tools/forecast.py", "--import", "my_sampler", "--help").stdout
    assert f"--sampler {{{','.join([*SAMPLERS, 'mine'])}}}" in shown


@pytest.mark.slow
def test_a_forecast_with_nan_fails_the_command_line_by_name(forecasts, tmp_path) -> None:
    store = ForecastStore.open(forecasts)
    key, members = store.read(2)
    members = members.copy()
    members[1, 3, 0, 0, 0] = np.nan
    store.write(2, key, members)
    scored = _command("tools/evaluate.py", forecasts, "--out", tmp_path / "scores")
    assert scored.returncode == 1
    assert f"not scored: case 2 ({key}): 1 of 6144 values of the forecast are NaN or infinite" in scored.stderr
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["protocol"]["num_cases"] == 4


@pytest.mark.slow
@pytest.mark.distributed
def test_scores_on_two_processes_equal_those_on_one_to_the_last_bit(flow_shards, forecasts, tmp_path) -> None:
    options = ("tools/evaluate.py", forecasts, "--climatology", flow_shards / "train", "--pictures", "--out")
    one = _command(*options, tmp_path / "one")
    two = _command("-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone", *options, tmp_path / "two")
    assert one.returncode == two.returncode == 0 and not chatter(two), one.stderr + two.stderr
    assert (tmp_path / "one" / "scores.json").read_bytes() == (tmp_path / "two" / "scores.json").read_bytes()
    assert two.stdout.count("over all lead times, 5 cases") == 2  # one process speaks, of two baselines


@pytest.mark.slow
@pytest.mark.distributed
def test_a_forecast_by_two_processes_prints_nothing_of_the_launcher(flow_model, flow_shards, tmp_path) -> None:
    options = ("--shards", flow_shards / "test", "--out", tmp_path / "forecasts", "--members", 1, "--cases", 2)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone")
    made = _command(*launcher, "tools/forecast.py", flow_model, *options)
    assert made.returncode == 0 and not chatter(made), made.stdout + made.stderr
    assert ForecastStore.open(tmp_path / "forecasts").cases() == [0, 1]


def test_forecasts_stay_within_the_bounds_that_the_schema_states(flow_model, flow_shards, tmp_path) -> None:
    model = shutil.copytree(flow_model / "model", tmp_path / "model")
    record = json.loads((model / "config.json").read_text())
    record["data_schema"]["bounds"] = [[-0.05, None], [None, None]]
    (model / "config.json").write_text(json.dumps(seal(record)))
    free, bounded = (
        load_forecaster(path, device="cpu").forecast(torch.zeros(1, 3, 2, 16, 16), num_members=2)
        for path in (flow_model, model)
    )
    assert free[:, :, :, 0].min() < -0.05
    torch.testing.assert_close(bounded[:, :, :, 0], free[:, :, :, 0].clamp(min=-0.05), rtol=0, atol=0)
    torch.testing.assert_close(bounded[:, :, :, 1], free[:, :, :, 1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("said", "asked", "independent"),
    [("key_prefix", None, "key_prefix"), ("case", None, "case"), (None, None, "case"), ("key_prefix", "case", "case")],
)
def test_who_is_independent_is_what_the_shards_say_unless_the_user_does(
    flow_model, flow_shards, tmp_path, said, asked, independent
) -> None:
    """Manifests of earlier versions say nothing; then the keys decide, which agree in one group here."""
    ForecastRun(flow_model, flow_shards / "test", tmp_path, num_members=2, device="cpu").run()
    verification = Verification.open(tmp_path)
    shards = verification.reader.shards
    shards.manifest = shards.manifest.model_copy(update={"independent": said})
    assert verification.evaluate(independent=asked).resampling()["independent"] == independent


def test_more_noise_than_the_process_has_is_said_in_the_protocol(flow_model, flow_shards, tmp_path) -> None:
    for eta, caution in ((1.0, None), (1.5, "eta 1.5 is above 1, ancestral sampling: steps add more noise than the")):
        out = tmp_path / str(eta)
        _run(flow_model, flow_shards, out, num_cases=1, sampling={"sampler": "ddim", "eta": eta}).run()
        said = Verification.open(out).evaluate().protocol.get("caution")
        assert said is None if caution is None else said.startswith(caution)
