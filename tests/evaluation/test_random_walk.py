"""The bootstrapped random walk against what a walk must do."""

import numpy as np
import pytest

from dydiff_dist.evaluation import ForecastCase, RandomWalk


def walk(baseline: RandomWalk, history: np.ndarray, num_leads: int, case: int) -> np.ndarray:
    """(M, num_leads, C, H, W): the ensemble of a case with this history."""
    truth = np.zeros((num_leads, *history.shape[1:]))
    return baseline.ensemble(ForecastCase(case, "k", history, truth, truth[None]))


def test_spread_grows_like_the_root_of_the_lead_time():
    history = np.cumsum(np.random.default_rng(0).choice([-1.0, 1.0], size=(400, 2, 1, 1)), axis=0)
    members = walk(RandomWalk(num_members=4000), history, 9, case=3)
    assert members.shape == (4000, 9, 2, 1, 1)
    steps = np.diff(history, axis=0)
    np.testing.assert_allclose(
        members.std(axis=0)[:, 0, 0, 0] / steps[:, 0].std(), np.sqrt(np.arange(1, 10)), rtol=0.06
    )
    # the mean step is kept: a walk with a drift drifts
    np.testing.assert_allclose(members[:, -1].mean(axis=0), history[-1] + 9 * steps.mean(axis=0), atol=0.2)


def test_channels_take_the_same_draw():
    history = np.random.default_rng(1).standard_normal((20, 1, 1, 1)) * np.array([1.0, -2.0])[None, :, None, None]
    members = walk(RandomWalk(num_members=5), history, 4, case=0)
    moved = members - history[-1]
    np.testing.assert_allclose(moved[:, :, 1], -2 * moved[:, :, 0])


def test_members_are_named_by_case_and_number():
    history = np.random.default_rng(2).standard_normal((6, 1, 1, 1))
    few, many = RandomWalk(num_members=2), RandomWalk(num_members=5)
    np.testing.assert_array_equal(walk(few, history, 3, 7), walk(many, history, 3, 7)[:2])
    np.testing.assert_array_equal(walk(few, history, 3, 7), walk(few, history, 5, 7)[:, :3])
    assert not np.array_equal(walk(few, history, 3, 7), walk(few, history, 3, 8))


def test_no_steps_no_walk():
    with pytest.raises(ValueError, match="at least 2 frames"):
        walk(RandomWalk(), np.zeros((1, 1, 1, 1)), 3, 0)
    with pytest.raises(ValueError, match="at least 1"):
        RandomWalk(num_members=0)
