"""Scores against independent formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from dydiff_dist.evaluation import ForecastCase, evaluate, scores

SHAPE_SCHW = (3, 2, 5, 4)


def _ensemble(num_members: int, seed: int = 0, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    members, truth = rng.normal(size=(num_members, *SHAPE_SCHW)), rng.normal(0.3, 1.4, SHAPE_SCHW)
    if decimals is not None:
        members, truth = members.round(decimals), truth.round(decimals)
    return members, truth


def _crps_double_sum(members: np.ndarray, truth: np.ndarray, pairs: int) -> np.ndarray:
    """E|X - y| - ½ E|X - X'| as written, the second mean over ``pairs``."""
    between = np.abs(members[:, None] - members[None]).sum(axis=(0, 1))
    return (np.abs(members - truth).mean(axis=0) - between / (2 * pairs)).mean(axis=(1, 2, 3))


def _crps_sorted(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Closed form over the sorted sample (Jordan et al. 2019): 2/M² Σ (x_(i) - y)(M 1{y < x_(i)} - i + ½)."""
    num_members = len(members)
    ordered = np.sort(members, axis=0)
    rank = np.arange(1, num_members + 1).reshape(-1, 1, 1, 1, 1)
    terms = (ordered - truth) * (num_members * (truth < ordered) - rank + 0.5)
    return (2 / num_members**2 * terms.sum(axis=0)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("num_members", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("decimals", [None, 0], ids=["continuous", "ties"])
def test_crps_equals_two_independent_formulas(num_members: int, decimals: int | None) -> None:
    members, truth = _ensemble(num_members, decimals=decimals)
    ensemble, fair = scores.crps(members, truth)
    # 1e-12: sums of at most 17² terms of order 1 in float64
    np.testing.assert_allclose(ensemble, _crps_double_sum(members, truth, num_members**2), atol=1e-12)
    np.testing.assert_allclose(ensemble, _crps_sorted(members, truth), atol=1e-12)
    pairs = max(1, num_members * (num_members - 1))
    np.testing.assert_allclose(fair, _crps_double_sum(members, truth, pairs), atol=1e-12)


def test_crps_equals_the_integral_of_squared_distribution_differences() -> None:
    members, truth = np.array([-1.0, 0.2, 0.7, 2.0]), 0.4

    def integrand(x: float) -> float:
        return (np.mean(members <= x) - (truth <= x)) ** 2

    integral = quad(integrand, -2, 3, points=[*members, truth], epsabs=1e-9)[0]
    ensemble, _ = scores.crps(members.reshape(4, 1, 1, 1, 1), np.full((1, 1, 1, 1), truth))
    assert ensemble[0] == pytest.approx(integral, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_crps_moves_with_shift_and_scale(num_members: int, seed: int, shift: float, scale: float) -> None:
    members, truth = _ensemble(num_members, seed)
    moved = scores.crps(members * scale + shift, truth * scale + shift)
    for before, after in zip(scores.crps(members, truth), moved, strict=True):
        np.testing.assert_allclose(after, before * scale, rtol=1e-9, atol=1e-9)


def test_crps_of_float32_members_is_calculated_in_float64() -> None:
    members, truth = (a.astype(np.float32) for a in _ensemble(8))
    ensemble, fair = scores.crps(members + np.float32(0), truth)
    wanted = _crps_double_sum(members.astype(np.float64), truth.astype(np.float64), 64)
    np.testing.assert_allclose(ensemble, wanted, atol=1e-12)
    assert ensemble.dtype == fair.dtype == np.float64


def test_mse_mae_and_variance_follow_their_definitions() -> None:
    members, truth = _ensemble(5)
    error = members.mean(axis=0) - truth
    np.testing.assert_allclose(scores.mse_of_mean(members, truth), (error**2).mean(axis=(1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(scores.mae_of_mean(members, truth), np.abs(error).mean(axis=(1, 2, 3)), rtol=1e-12)
    variance = ((members - members.mean(axis=0)) ** 2).sum(axis=0) / 4
    np.testing.assert_allclose(scores.ensemble_variance(members), variance.mean(axis=(1, 2, 3)), rtol=1e-12)
    assert np.isnan(scores.ensemble_variance(members[:1])).all()


def test_spread_skill_ratio_is_one_for_an_exchangeable_ensemble() -> None:
    rng = np.random.default_rng(0)
    members, truth = rng.normal(size=(8, 1, 1, 400, 400)), rng.normal(size=(1, 1, 400, 400))
    overall = evaluate([ForecastCase(0, "k", truth, truth, members)]).overall("forecast")
    # 160,000 pixels: the relative standard error of either variance is below 0.4 %
    assert overall["spread_skill_ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("decimals", [None, 0], ids=["continuous", "ties"])
def test_rank_counts_equal_a_direct_count(decimals: int | None) -> None:
    members, truth = _ensemble(4, decimals=decimals)
    wanted = np.zeros((3, 5))
    for lead in range(3):
        pixels = zip(members[:, lead].reshape(4, -1).T, truth[lead].ravel(), strict=True)
        for values, observed in pixels:
            below, ties = (values < observed).sum(), (values == observed).sum()
            wanted[lead, below : below + ties + 1] += 1 / (ties + 1)
    np.testing.assert_allclose(scores.rank_counts(members, truth), wanted, atol=1e-12)


def test_energy_score_equals_the_double_sum() -> None:
    members, truth = _ensemble(4)

    def norm(x: np.ndarray) -> np.ndarray:
        return np.sqrt((x**2).mean(axis=(-3, -2, -1)))

    wanted = norm(members - truth).mean(axis=0) - norm(members[:, None] - members[None]).sum(axis=(0, 1)) / (2 * 12)
    np.testing.assert_allclose(scores.energy_score(members, truth), wanted, rtol=1e-12)
