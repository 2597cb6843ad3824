"""The Fréchet distance against scipy and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dydiff_dist.evaluation import Evaluation, ScoreTable
from dydiff_dist.evaluation.fvd import frechet_distance


def _features(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, D) float64 with exactly this mean and covariance (divisor n): whitened noise, coloured."""
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(noise.T @ noise / count)).T
    return white @ np.linalg.cholesky(covariance).T + mean


def _covariance(size: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def _by_scipy(mean1, covariance1, mean2, covariance2) -> float:
    between = sqrtm(covariance1 @ covariance2).real
    return np.square(mean1 - mean2).sum() + np.trace(covariance1 + covariance2 - 2 * between)


@pytest.mark.parametrize("divisor", ["n", "n-1"])
def test_known_gaussians_have_the_distance_that_scipy_gives(divisor: str) -> None:
    size, counts = 12, (200, 77)
    means = [np.random.default_rng(seed).normal(size=size) for seed in (0, 1)]
    covariances = [_covariance(size, seed) for seed in (2, 3)]
    first, second = (_features(*x, n, 4 + n) for *x, n in zip(means, covariances, counts, strict=True))
    factors = [1.0 if divisor == "n" else n / (n - 1) for n in counts]
    wanted = _by_scipy(means[0], covariances[0] * factors[0], means[1], covariances[1] * factors[1])
    # 1e-10: both form a matrix root of order 1 in float64
    assert frechet_distance(first, second, divisor) == pytest.approx(wanted, rel=1e-10)
    assert frechet_distance(second, first, divisor) == pytest.approx(wanted, rel=1e-10)


def test_commuting_gaussians_have_the_closed_form() -> None:
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    features = [_features(np.zeros(3), np.diag(variance), 50, 1) for variance in (first, second)]
    # sum of (standard deviation - standard deviation)²: 1 + 0 + 6.25
    assert frechet_distance(*features) == pytest.approx(7.25, rel=1e-12)


def test_fewer_clips_than_features_are_as_exact_as_many() -> None:
    rng = np.random.default_rng(0)
    size, rank = 400, 6
    basis = np.linalg.qr(rng.normal(size=(size, rank)))[0].T  # both sets live in the same six dimensions of 400
    means = [rng.normal(size=rank) for _ in range(2)]
    covariances = [_covariance(rank, seed) for seed in (5, 6)]
    first, second = (_features(*x, 30, seed) for *x, seed in zip(means, covariances, (7, 8), strict=True))
    wanted = _by_scipy(means[0], covariances[0], means[1], covariances[1])
    assert frechet_distance(first @ basis, second @ basis) == pytest.approx(wanted, rel=1e-10)


def test_a_set_has_no_distance_to_itself_and_one_clip_is_refused() -> None:
    features = np.random.default_rng(0).normal(size=(20, 400)).astype(np.float32)
    # the traces are 400 each and cancel: their rounding is left
    assert abs(frechet_distance(features, features)) < 1e-10
    assert frechet_distance(features, features + 1) == pytest.approx(400, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 clips of each kind, there are 1; score more cases"):
        frechet_distance(features[:1], features)


def test_tables_of_processes_make_one_set_in_order_of_cases() -> None:
    features = {number: np.full((2, 3), number, np.float32) for number in (4, 0, 7, 2)}
    parts = [
        Evaluation({"forecast": ScoreTable()}, clips={"forecast": {n: features[n] for n in numbers}})
        for numbers in ((), (7, 0), (4,), (2,))
    ]
    merged = parts[0].merge(parts[1:])
    np.testing.assert_array_equal(merged.features("forecast"), np.repeat([0, 2, 4, 7], 2)[:, None] * np.ones(3))
