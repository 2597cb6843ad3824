"""Scores of fields on the globe, against sums over rows in numpy."""

import numpy as np
import pytest

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation.baselines import Climatology
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.choice import ForecastKind, choose_suites
from dydiff_dist.evaluation.evaluate import evaluate
from dydiff_dist.evaluation.suites import latitude_suite

LATITUDES = np.array([90.0, 61.5, 30.0, 0.0, -45.25, -90.0])
RNG = np.random.default_rng(0)


def _cases(num_members: int = 5, num_cases: int = 3) -> list[ForecastCase]:
    def fields(*axes: int) -> np.ndarray:
        return RNG.normal(size=(*axes, 2, 6, 4)).astype(np.float32) * [[[1.0]], [[1e3]]]

    return [ForecastCase(n, f"c-{n}", fields(2), fields(3), fields(num_members, 3)) for n in range(num_cases)]


def _weighted(values: np.ndarray) -> np.ndarray:
    """Mean over the last two axes, rows weighted."""
    total = np.zeros(values.shape[:-2])
    for row, latitude in enumerate(LATITUDES):
        total += np.cos(np.pi / 180 * latitude) * values[..., row, :].sum(axis=-1)
    return total / values.shape[-1] / sum(np.cos(np.pi / 180 * latitude) for latitude in LATITUDES)


def _crps(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """E|X - y| - 1/2 E|X - X'| of each pixel, over all pairs."""
    pairs = np.abs(members[:, None] - members[None]).mean(axis=(0, 1))
    return np.abs(members - truth).mean(axis=0) - pairs / 2


@pytest.mark.parametrize("num_members", [1, 5])
def test_weighted_scores_equal_numpys(num_members: int) -> None:
    cases = _cases(num_members)
    evaluation = evaluate(cases, suites=[latitude_suite(LATITUDES, 2, ("t", "z"))])
    crps = np.mean([_weighted(_crps(case.members, case.truth)) for case in cases], axis=0)  # (S, C)
    mse = np.mean([_weighted((case.members.mean(axis=0) - case.truth) ** 2) for case in cases], axis=0)
    wanted = {
        "lat_weighted_crps": crps.mean(axis=1),
        "lat_weighted_mse": mse.mean(axis=1),
        "lat_weighted_rmse": np.sqrt(mse.mean(axis=1)),
        **{f"lat_weighted_crps_{name}": crps[:, c] for c, name in enumerate("tz")},
        **{f"lat_weighted_rmse_{name}": np.sqrt(mse[:, c]) for c, name in enumerate("tz")},
    }
    by_lead = evaluation.by_lead("forecast")
    assert {name for name in by_lead if name.startswith("lat_")} == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(by_lead[name], values, rtol=1e-12)
    rmse = evaluation.overall("forecast")["lat_weighted_rmse_z"]
    np.testing.assert_allclose(rmse, np.sqrt(mse[:, 1].mean()), rtol=1e-12)


def test_equal_rows_have_the_plain_mean() -> None:
    overall = evaluate(_cases(), suites=[latitude_suite([45.0, -45.0] * 3, 2)]).overall("forecast")
    assert overall["lat_weighted_mse"] == pytest.approx(overall["mse"], rel=1e-12)
    assert overall["lat_weighted_crps"] == pytest.approx(overall["crps"], rel=1e-12)


def test_the_climatology_has_the_error_of_its_mean_frame() -> None:
    frames = RNG.normal(size=(2, 4, 2, 6, 4)).astype(np.float32)
    climatology = Climatology(lambda number: frames[number], 2, 0, 3)
    (case,) = _cases(num_cases=1)
    overall = evaluate([case], climatology, suites=[latitude_suite(LATITUDES, 2)]).overall("climatology")
    mean = frames.mean(axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(overall["lat_weighted_mse"], _weighted((mean - case.truth) ** 2).mean(), rtol=1e-6)
    assert np.isnan(overall["spread_skill_ratio"]) and overall["spread"] > 0


def test_rows_cut_from_the_centre_have_their_own_latitudes() -> None:
    schema = FrameSchema(num_frames=3, shape=(1, 6, 4), dtype="float32", latitudes=tuple(LATITUDES))
    cut = ForecastKind(schema=schema, shape=(1, 1, 2, 4), num_history_frames=2, num_members=2, periodic=False)
    assert cut.latitudes == (30.0, 0.0)
    plain = ForecastKind(
        schema=schema.model_copy(update={"latitudes": ()}),
        shape=(1, 1, 6, 4),
        num_history_frames=2,
        num_members=2,
        periodic=False,
    )
    with pytest.raises(ValueError, match="need latitudes in the shards' manifest; leave 'latitude' out"):
        choose_suites(["latitude"], "default", plain)


@pytest.mark.parametrize("latitudes", [(10.0,) * 5, (91.0,) * 6])
def test_latitudes_that_cannot_be_are_refused(latitudes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"latitudes"):
        FrameSchema(num_frames=3, shape=(1, 6, 4), dtype="float32", latitudes=latitudes)
