"""Intervals on made-up scores whose answer is known."""

import numpy as np
import pytest

from dydiff_dist.study.intervals import Scored, compare, pooled_deviation


def scored(value_RKS, seeds=None, scale=None, groups=None) -> Scored:
    value = np.asarray(value_RKS, float)
    return Scored(
        tuple(range(len(value))) if seeds is None else seeds,
        value,
        np.ones_like(value) if scale is None else scale,
        np.arange(value.shape[1]) if groups is None else groups,
    )


def made_up(random, num_seeds=3, num_cases=40, gain=0.0, seed_luck=0.0, case_luck=0.02) -> tuple[Scored, Scored]:
    """(arm, reference): hard and easy cases alike for both, and a gain that varies between cases and seeds."""
    difficulty = random.lognormal(sigma=0.5, size=(1, num_cases, 1)) * np.linspace(1, 2, 4)
    of_seed = seed_luck * random.standard_normal((num_seeds, 1, 1))
    of_case = case_luck * random.standard_normal((1, num_cases, 1))
    reference = np.repeat(difficulty, num_seeds, axis=0)
    return scored(reference * (1 + gain + of_seed + of_case)), scored(reference)


def test_a_gain_alike_in_every_case_is_certain():
    arm, reference = made_up(np.random.default_rng(0), gain=-0.05, case_luck=0.0)
    (difference,) = compare([arm], reference)
    assert difference.relative == pytest.approx(-0.05)
    assert difference.lower == pytest.approx(-0.05) and difference.upper == pytest.approx(-0.05)
    assert difference.is_significant


def test_what_cases_have_in_common_cancels():
    random = np.random.default_rng(1)
    arm, reference = made_up(random, gain=-0.05, case_luck=0.02)
    (difference,) = compare([arm], reference)
    # the scores themselves differ by a factor of 1.6 between cases; the interval is that of the 2 % between the gains
    assert difference.upper - difference.lower < 0.02
    assert difference.is_significant


@pytest.mark.parametrize(("seed_luck", "case_luck"), [(0.0, 0.05), (0.03, 0.0), (0.03, 0.05)])
def test_without_a_gain_one_in_twenty_is_called_significant(seed_luck, case_luck):
    random = np.random.default_rng(2)
    found = []
    for _ in range(300):
        arm, reference = made_up(random, num_seeds=4, num_cases=30, seed_luck=seed_luck, case_luck=case_luck)
        found += [difference.is_significant for difference in compare([arm], reference)]
    # 300 trials at 5 %: 15 expected, standard deviation 3.8; the bootstrap of 30 cases is slightly too narrow
    assert 3 <= sum(found) <= 30


def test_arms_that_share_a_reference_share_its_luck():
    """Four arms without a gain, three seeds. With the degrees of freedom of all arms 42 of 300 are significant."""
    random = np.random.default_rng(7)
    found = 0
    for _ in range(300):
        luck = 0.05 * random.standard_normal((3, 1, 1))
        ones = np.ones((3, 20, 2))
        arms = [scored(ones * (1 + 0.005 * random.standard_normal((3, 1, 1)))) for _ in range(4)]
        found += compare(arms, scored(ones * (1 + luck)))[0].is_significant
    assert found <= 26  # 15 expected, standard deviation 3.8


def test_one_seed_takes_the_training_luck_of_the_others():
    random = np.random.default_rng(3)
    several, reference = made_up(random, num_seeds=3, seed_luck=0.05)
    single = scored(reference.value[:1] * 0.97, seeds=(0,))
    alone, both = compare([single], reference)[0], compare([several, single], reference)[1]
    assert not alone.covers_training and both.covers_training
    assert (both.num_seeds, both.num_groups) == (1, 40)
    assert both.upper - both.lower > 5 * (alone.upper - alone.lower)
    assert alone.is_significant and not both.is_significant


def test_cases_that_belong_together_count_once():
    random = np.random.default_rng(4)
    base = random.lognormal(size=(1, 5, 1))
    factor = 1 + 0.1 * random.standard_normal((1, 5, 1))
    independent = compare([scored(base * factor)], scored(base))[0]
    repeated = [np.repeat(x, 20, axis=1) for x in (base * factor, base)]
    groups = np.repeat(np.arange(5), 20)
    together = compare([scored(repeated[0], groups=groups)], scored(repeated[1], groups=groups))[0]
    assert (together.num_groups, together.relative) == (5, pytest.approx(independent.relative))
    assert (together.lower, together.upper) == pytest.approx((independent.lower, independent.upper))
    apart = compare([scored(repeated[0])], scored(repeated[1]))[0]
    assert apart.upper - apart.lower < 0.4 * (together.upper - together.lower)


def test_a_ratio_is_one_of_sums():
    value, scale = np.array([[[1.0], [9.0]]]), np.array([[[1.0], [3.0]]])
    ratio = scored(value, scale=scale)
    assert ratio.mean() == pytest.approx(10 / 4)  # not (1 + 3) / 2
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(ratio.resampled(weights), [10 / 4, 1.0, 3.0])


def test_a_baseline_goes_with_every_seed():
    arm, reference = made_up(np.random.default_rng(5), gain=-0.1, seed_luck=0.01)
    baseline = scored(reference.value[:1], seeds=(-1,))
    (difference,) = compare([arm], baseline)
    assert difference.num_seeds == 3 and difference.is_significant


def test_other_cases_or_no_common_seed_are_refused():
    arm, reference = made_up(np.random.default_rng(6))
    with pytest.raises(ValueError, match="different cases"):
        compare([scored(arm.value[:, :-1])], reference)
    with pytest.raises(ValueError, match="none in common"):
        compare([scored(arm.value, seeds=(5, 6, 7))], reference)


def test_the_deviation_is_pooled_over_arms():
    deviation, degrees = pooled_deviation([np.array([0.0, 2.0]), np.array([5.0, 5.0, 8.0]), np.array([1.0])])
    assert degrees == 2  # of the arm with most seeds: the luck of the reference is in all of them
    assert deviation == pytest.approx(np.sqrt((2 + 6) / 3))
    assert pooled_deviation([np.array([1.0])]) == (0.0, 0)


def test_one_group_says_nothing_of_others():
    value = np.arange(1.0, 13.0).reshape(1, 12, 1)
    arm, reference = (scored(part, groups=np.zeros(12, int)) for part in (0.5 * value, value))
    (difference,) = compare([arm], reference)
    assert difference.relative == -0.5 and not difference.is_significant
