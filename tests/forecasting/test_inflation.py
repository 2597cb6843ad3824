"""Calibration after the fact: what is fitted on validation cases, kept beside the model and applied by a forecast."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig
from dydiff_dist.evaluation.calibration import calibration_suite
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.evaluate import Evaluation, evaluate
from dydiff_dist.forecasting import ForecastRun, ForecastStore, Verification
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.inflation import check_calibration, fit_inflation, inflate, write_inflation

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def valid_shards(tmp_path_factory) -> Path:
    """4 validation trajectories like the test ones."""
    folder = tmp_path_factory.mktemp("valid")
    flow = TurbulenceConfig(resolution=16, spin_up_frames=1, steps_per_frame=2, force_max_wavenumber=5.0)
    config = TurbulenceSourceConfig(train=2, valid=4, test=0, num_frames=7, runs_per_shard=2, flow=flow)
    convert(TurbulenceSource(config), folder, 1)
    return folder / "valid"


def _forecast(model, shards, out, **options) -> ForecastRun:
    run = ForecastRun(model, shards, out, **({"num_members": 4, "device": "cpu"} | options))
    run.run()
    return run


def _raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def _scored(folder: Path) -> tuple[Verification, Evaluation]:
    verification = Verification.open(folder)
    return verification, verification.evaluate(suites=verification.choose_suites(["calibration"]))


@pytest.fixture
def model(flow_model, tmp_path) -> Path:
    return shutil.copytree(flow_model / "model", tmp_path / "model")


@pytest.mark.parametrize(("num_members", "level"), [(9, "coverage_80"), (3, "coverage_50")])
def test_intervals_of_validation_cases_hold_their_share_afterwards(
    model, flow_shards, valid_shards, tmp_path, num_members: int, level: str
) -> None:
    _forecast(model, valid_shards, tmp_path / "raw", num_members=num_members)
    verification, raw = _scored(tmp_path / "raw")
    nominal = int(level[-2:]) / 100  # of 3 members the widest interval
    assert (np.abs(raw.by_lead("forecast")[level] - nominal) > 0.05).any()  # random weights know nothing of their error
    inflation = fit_inflation(verification, raw)
    path = write_inflation(inflation, model)
    assert path == model / "calibration.json" and json.loads(path.read_text())["num_cases"] == 4
    _forecast(model, valid_shards, tmp_path / "calibrated", calibrated=True, num_members=num_members)
    _, calibrated = _scored(tmp_path / "calibrated")
    np.testing.assert_allclose(calibrated.by_lead("forecast")[level], nominal, atol=2e-3)
    ratios = (scores.by_lead("forecast")["spread_skill_ratio"] for scores in (calibrated, raw))
    np.testing.assert_allclose(next(ratios) / next(ratios), inflation.factors, rtol=1e-4)  # members are in float32
    np.testing.assert_allclose(calibrated.by_lead("forecast")["mse"], raw.by_lead("forecast")["mse"], rtol=1e-4)
    assert calibrated.protocol["calibration"] == {"inflation": list(inflation.factors)}
    assert "calibration" not in raw.protocol  # off unless it is asked for
    long = _forecast(model, flow_shards / "test", tmp_path / "long", calibrated=True, num_frames=6, num_cases=1)
    plain = _forecast(model, flow_shards / "test", tmp_path / "plain", num_frames=6, num_cases=1)
    one, other = (run.store.read(0)[1] for run in (long, plain))
    factors = np.array([*inflation.factors, *inflation.factors[-1:] * 2])[:, None, None, None]
    # the last factor goes on
    mean = other.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(one, mean + factors * (other - mean), rtol=1e-5, atol=1e-5)


def test_what_does_not_belong_together_is_refused(model, image_model, flow_shards, valid_shards, tmp_path) -> None:
    with _raises(FileNotFoundError, "calibration.json does not exist; make it: forecast validation cases, then tools"):
        _forecast(model, valid_shards, tmp_path / "out", calibrated=True)
    _forecast(model, flow_shards / "test", tmp_path / "test", num_cases=2)
    with _raises(ValueError, "holds test cases; calibrate on forecasts of validation cases"):
        fit_inflation(*_scored(tmp_path / "test"))
    with _raises(ValueError, "holds test cases; calibrate on forecasts of validation cases"):
        check_calibration(Verification.open(tmp_path / "test"), model)
    _forecast(model, valid_shards, tmp_path / "one", num_members=1)
    with _raises(ValueError, "has no spread to calibrate; forecast more than one member"):
        fit_inflation(*_scored(tmp_path / "one"))
    _forecast(model, valid_shards, tmp_path / "raw")
    inflation = fit_inflation(*_scored(tmp_path / "raw"))
    check_calibration(Verification.open(tmp_path / "raw"), model)
    write_inflation(inflation, model)
    with _raises(ValueError, "calibration.json was fitted with sampling.num_steps = 3, not 2; forecast alike, or fit"):
        _forecast(model, valid_shards, tmp_path / "out", calibrated=True, sampling={"num_steps": 2})
    with _raises(ValueError, "is another model than the forecasts were made with"):
        check_calibration(Verification.open(tmp_path / "raw"), image_model)
    with _raises(ValueError, "is another model than the forecasts were made with"):
        write_inflation(inflation.model_copy(update={"weights_sha256": "0"}), model)
    _forecast(model, valid_shards, tmp_path / "calibrated", calibrated=True)
    with _raises(ValueError, "is calibrated already; forecast without --calibrated"):
        fit_inflation(*_scored(tmp_path / "calibrated"))
    with _raises(ValueError, "holds forecasts with inflation = "):
        _forecast(model, valid_shards, tmp_path / "calibrated")
    assert ForecastStore.open(tmp_path / "calibrated").request.inflation == inflation.factors
    (model / "calibration.json").write_text("{}")
    with _raises(ValueError, "calibration.json: key 'factors' is required (and 6 more); the file is damaged or of"):
        _forecast(model, valid_shards, tmp_path / "out", calibrated=True)


def test_members_keep_their_mean_and_get_the_spread() -> None:
    members = np.random.default_rng(0).normal(size=(5, 2, 1, 3, 3))
    frames = FrameSchema(num_frames=3, shape=(1, 3, 3), dtype="float32")
    np.testing.assert_allclose(inflate(members, (1.0, 1.0), frames), members, rtol=1e-12)
    wider = inflate(members, (2.0, 0.5), frames)
    np.testing.assert_allclose(wider.std(axis=0) / members.std(axis=0), [[[[2.0]]], [[[0.5]]]] * np.ones((2, 1, 3, 3)))
    np.testing.assert_allclose(wider.mean(axis=0), members.mean(axis=0), rtol=1e-9, atol=1e-12)


class FewCases:
    """What `fit_inflation` asks of a `Verification`, of ensembles and truths in memory."""

    def __init__(self, cases: list[ForecastCase], frames: FrameSchema):
        num_members = len(cases[0].members)
        request = SimpleNamespace(
            inflation=None, num_members=num_members, frames=frames, weights_sha256="0", sampling=SamplingConfig()
        )
        request.shards, request.shards_sha256 = "valid", "1"
        self.store = SimpleNamespace(request=request, folder="forecasts")
        self.reader = SimpleNamespace(shards=SimpleNamespace(manifest=SimpleNamespace(split="valid")))
        self.case, self.evaluation = cases.__getitem__, evaluate(cases, suites=[calibration_suite()])


def _rain(narrowing: float, dry_lead: bool = False) -> FewCases:
    """Ten members and a truth of one distribution, mostly dry, members nearer to their mean by a factor."""
    random, cases = np.random.default_rng(0), []
    for number in range(12):
        middle = random.normal(-1, 2, (2, 1, 24, 24))  # what is known of each pixel
        drawn = middle + random.gumbel(0, 1, (11, 2, 1, 24, 24))
        drawn[1:] = middle + narrowing * (drawn[1:] - middle)
        drawn = np.maximum(drawn, 0)
        drawn[:, 1] *= not dry_lead
        cases.append(ForecastCase(number, f"e{number}-0", drawn[0, :1], drawn[0], drawn[1:]))
    return FewCases(cases, FrameSchema(num_frames=3, shape=(1, 24, 24), dtype="float32", bounds=((0, None),)))


def test_of_rain_intervals_hold_their_share_where_most_is_dry() -> None:
    narrow = _rain(0.4)
    assert (narrow.evaluation.by_lead("forecast")["coverage_80"] < 0.7).all()
    factors = fit_inflation(narrow, narrow.evaluation).factors
    wider = [
        replace(c, members=inflate(c.members, factors, narrow.store.request.frames))
        for c in map(narrow.case, range(12))
    ]
    held = evaluate(wider, suites=[calibration_suite()]).by_lead("forecast")["coverage_80"]
    np.testing.assert_allclose(held, 0.8, atol=2e-3)
    # with nothing to mend, or at a lead time where all is dry, members stay
    calibrated = _rain(1.0, dry_lead=True)
    np.testing.assert_allclose(fit_inflation(calibrated, calibrated.evaluation).factors, 1, atol=0.05)
    assert fit_inflation(calibrated, calibrated.evaluation).factors[1] == 1


def test_what_no_factor_mends_is_said() -> None:
    cases = [replace(c, members=c.members + 1e4) for c in map(_rain(1.0).case, range(12))]
    far = FewCases(cases, FrameSchema(num_frames=3, shape=(1, 24, 24), dtype="float32"))
    with _raises(ValueError, "forecasts: at +1 no factor from 0.0625 to 16 makes 80% intervals hold 80%; train the"):
        fit_inflation(far, far.evaluation)


@pytest.mark.slow
def test_the_command_lines_fit_and_apply(model, valid_shards, tmp_path) -> None:
    def command(tool: str, *arguments) -> subprocess.CompletedProcess:
        words = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, timeout=240)

    forecast = (model, "--shards", valid_shards, "--members", "3", "--device", "cpu", "--out")
    assert command("forecast", *forecast, tmp_path / "raw").returncode == 0
    fitted = command("evaluate", tmp_path / "raw", "--scores", "calibration", "--pictures", "--calibrate", model)
    assert fitted.returncode == 0, fitted.stderr
    assert re.search(r"calibration.json: members from their mean, times \+1: [\d.]+, .*\+4: [\d.]+\n", fitted.stdout)
    applied = command("forecast", *forecast, tmp_path / "calibrated", "--calibrated")
    assert applied.returncode == 0, applied.stderr
    record = json.loads((tmp_path / "calibrated" / "forecast.json").read_text())
    assert len(record["inflation"]) == 4
    refused = command("evaluate", tmp_path / "raw", "--pictures", "9")
    assert refused.returncode == 2 and refused.stderr == "error: there is no case 9 to picture; choose 0 to 3\n"
