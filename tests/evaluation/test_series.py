"""Time-series scores against GluonTS's numbers and a direct calculation, and their picture."""

import numpy as np
import pytest

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.choice import ForecastKind, choose_suites
from dydiff_dist.evaluation.figures import save_figure, series_figure
from dydiff_dist.evaluation.series import QUANTILES, sample_quantiles, series_suite


def _cases() -> list[ForecastCase]:
    """7 cases, 100 members, 6 lead times, 4 channels, from numpy's frozen legacy generator."""
    rng = np.random.RandomState(0)
    truth = rng.gamma(2.0, 3.0, (7, 6, 4, 1, 1))
    members = rng.gamma(2.0, 3.0, (7, 100, 6, 4, 1, 1)) + 0.3
    return [ForecastCase(i, str(i), truth[i, :2], truth[i], members[i]) for i in range(7)]


def test_scores_equal_gluonts() -> None:
    overall = evaluate(_cases(), suites=[series_suite()]).overall("forecast")
    # MultivariateEvaluator of GluonTS 0.17.0 on these samples, quantiles 0.05..0.95, target_agg_funcs={"sum": np.sum}
    wanted = {
        "crps_sum": 0.19538249173481964,
        "nd_sum": 0.27092042906531516,
        "nrmse_sum": 0.320698416250373,
        "crps_quantile": 0.39758828095461957,
        "nd": 0.5343924092189194,
        "nrmse": 0.6934131959498806,
    }
    assert {name: float(overall[name]) for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_crps_sum_equals_a_direct_calculation() -> None:
    cases = _cases()
    total_loss = total = 0.0
    for case in cases:
        for lead in range(6):
            y = case.truth[lead].sum()
            ordered = sorted(member[lead].sum() for member in case.members)
            total += abs(y)
            for q in QUANTILES:
                forecast = ordered[round(99 * q)]
                total_loss += 2 * (q * (y - forecast) if y > forecast else (1 - q) * (forecast - y)) / len(QUANTILES)
    overall = evaluate(cases, suites=[series_suite()]).overall("forecast")
    assert overall["crps_sum"] == pytest.approx(total_loss / total, rel=1e-12)


def test_quantiles_of_few_members_are_members() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert sample_quantiles(values)[[0, 9, 18]].tolist() == [1.0, 2.0, 3.0]


def test_a_target_of_zeros_is_undefined() -> None:
    case = _cases()[0]
    overall = evaluate(
        [ForecastCase(0, "0", case.history, case.truth * 0, case.members)], suites=[series_suite()]
    ).overall("forecast")
    assert np.isnan(overall["crps_sum"]) and np.isnan(overall["nd"])


def test_series_get_series_scores_and_no_spectrum(tmp_path) -> None:
    def kind(*shape: int) -> ForecastKind:
        schema = FrameSchema(num_frames=8, shape=shape[1:], dtype="float32", channels=("a",))
        return ForecastKind(schema=schema, shape=shape, num_history_frames=2, num_members=8, periodic=False)

    assert [s.name for s in choose_suites(None, "default", kind(6, 4, 1, 1))] == ["ensemble", "calibration", "series"]
    with pytest.raises(ValueError, match="series scores are of frames of one pixel, these have"):
        choose_suites(["series"], "default", kind(6, 4, 8, 8))
    path = save_figure(series_figure(_cases()[0], ("a", "b", "c", "d")), tmp_path / "series.png")
    assert path.stat().st_size > 10_000
