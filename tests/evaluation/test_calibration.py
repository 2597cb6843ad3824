"""Scores of calibration, each against a second calculation, and what they say of ensembles whose truth is known."""

import itertools

import numpy as np
import pytest
import scoringrules

from dydiff_dist.evaluation import ForecastCase, ScoreTable, evaluate
from dydiff_dist.evaluation.calibration import (
    LEVELS,
    SPREAD_EDGES,
    TERCILE,
    Climate,
    calibration_suite,
    central_interval,
    describe_calibration,
    event_terms,
    interval_terms,
    pit_histogram,
    variogram_score,
)
from dydiff_dist.evaluation.scores import rank_counts
from dydiff_dist.evaluation.suites import Suite

CLIMATE = Climate((0.0, 1.0), (1.0, 2.0))


def _ensemble(num_members: int, shape=(3, 2, 6, 5), seed: int = 0, spread: float = 1.0):
    """Members (M, S, C, H, W) and a truth that can't be told apart from them where ``spread`` is 1."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=shape)
    members, truth = center + spread * rng.normal(size=(num_members, *shape)), center + rng.normal(size=shape)
    return members, truth


def _case(number: int, num_members: int = 19, spread: float = 1.0) -> ForecastCase:
    members, truth = _ensemble(num_members, seed=number, spread=spread)
    return ForecastCase(number, f"k{number}", truth[:1], truth, members)


@pytest.mark.parametrize("num_members", [2, 8, 19, 39, 50])
def test_intervals_are_those_of_weibulls_positions(num_members: int) -> None:
    members, truth = _ensemble(num_members)
    terms = interval_terms(members, truth)
    for number, level in enumerate(LEVELS):
        tail = (1 - level / 100) / 2
        if tail * (num_members + 1) < 1 - 1e-9:
            assert np.isnan(terms["coverage"][:, number]).all() and np.isnan(terms["width"][:, number]).all()
            continue
        lower, upper = np.quantile(members, (tail, 1 - tail), axis=0, method="weibull")
        alpha, rank = 1 - level / 100, tail * (num_members + 1)
        inside = ((lower <= truth) & (truth <= upper)).astype(float)
        if abs(rank - round(rank)) > 1e-9:  # ends between members: a part of the truths there is inside
            below = (members < truth).sum(axis=0)
            inside = np.clip(below + 1, rank, num_members + 1 - rank) - np.clip(below, rank, num_members + 1 - rank)
        outside = np.maximum(lower - truth, 0) + np.maximum(truth - upper, 0)
        for name, values in (
            ("coverage", inside),
            ("width", upper - lower),
            ("interval_score", upper - lower + 2 / alpha * outside),
        ):
            np.testing.assert_allclose(terms[name][:, number], values.mean(axis=(1, 2, 3)), rtol=1e-12, atol=1e-12)
    within = (members.min(axis=0) <= truth) & (truth <= members.max(axis=0))
    np.testing.assert_allclose(terms["coverage_range"], within.mean(axis=(1, 2, 3)), rtol=1e-12)


def test_where_members_and_truth_tie_coverage_is_what_it_would_be_without() -> None:
    """Rain: most pixels are dry everywhere. No more of the truth is covered than the level."""
    members, truth = (np.maximum(values - 1.5, 0) for values in _ensemble(19, (1, 1, 200, 200)))
    assert (truth == 0).mean() > 0.8
    terms = interval_terms(members, truth)
    for number, level in enumerate(LEVELS[:3]):
        assert terms["coverage"][0, number] == pytest.approx(level / 100, abs=0.01)
    assert terms["coverage_range"][0] == pytest.approx(18 / 20, abs=0.01)


@pytest.mark.parametrize("num_members", [3, 19, 50])
def test_intervals_hold_their_share_of_truths_that_are_like_the_members(num_members: int) -> None:
    members, truth = _ensemble(num_members, (1, 1, 200, 200))
    terms = interval_terms(members, truth)
    for number, level in enumerate(LEVELS):
        if not np.isnan(terms["coverage"][0, number]):
            # 40000 pixels: standard error at most 0.0025
            assert terms["coverage"][0, number] == pytest.approx(level / 100, abs=0.01)
    assert terms["coverage_range"][0] == pytest.approx((num_members - 1) / (num_members + 1), abs=0.01)
    assert central_interval(np.sort(members, axis=0), 0.999) is None


def test_the_variogram_score_is_scoringrules_with_weights_on_its_pairs() -> None:
    members, truth = _ensemble(5, (2, 1, 4, 6))
    places = list(itertools.product(range(4), range(6)))
    weights = np.zeros((24, 24))
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            apart = (abs(row - other_row), abs(column - other_column))
            weights[i, j] = 0 in apart and max(apart) in (1, 2, 4, 8)
    for lead in range(2):
        expected = scoringrules.vs_ensemble(
            truth[lead].ravel(), members[:, lead].reshape(5, -1), weights, p=0.5, backend="numpy"
        )
        assert variogram_score(members, truth)[lead] == pytest.approx(expected / weights.sum(), rel=1e-12)
    members, truth = _ensemble(5, (2, 3, 1, 1))  # series: all pairs of channels
    ones = np.ones((3, 3)) - np.eye(3)
    expected = scoringrules.vs_ensemble(truth[1].ravel(), members[:, 1, :, 0, 0], ones, p=0.5, backend="numpy")
    assert variogram_score(members, truth)[1] == pytest.approx(expected / 6, rel=1e-12)
    assert np.isnan(variogram_score(*_ensemble(5, (2, 1, 1, 1)))).all()


@pytest.mark.parametrize("rule", [">=", ">"])
def test_brier_scores_and_reliability_are_those_of_loops_over_pixels(rule) -> None:
    members, truth = (np.round(values) for values in _ensemble(7, (2, 1, 5, 6)))  # with values at the thresholds
    thresholds = (-1.0, 0.0, 2.0)
    terms = event_terms(members, truth, thresholds, rule)
    for lead, (number, threshold) in itertools.product(range(2), enumerate(thresholds)):
        above = np.greater_equal if rule == ">=" else np.greater
        probability = above(members[:, lead], threshold).mean(axis=0).ravel()
        event = above(truth[lead], threshold).ravel()
        score = scoringrules.brier_score(event.astype(float), probability, backend="numpy").mean()
        assert terms["brier"][lead, number] == pytest.approx(score, rel=1e-12)
        bins = np.zeros((11, 3))
        for p, o in zip(probability, event, strict=True):
            bins[round(p * 10)] += (1 / 30, p / 30, o / 30)
        np.testing.assert_allclose(terms["reliability"][lead, number], bins, rtol=1e-12, atol=1e-12)


def test_bins_are_those_of_loops_over_pixels() -> None:
    members, truth = _ensemble(4)
    terms = calibration_suite(CLIMATE).measure(members, truth)
    ranks, spread = np.zeros((3, 3, 5)), np.zeros((3, 6, 3))
    for lead, channel, row, column in np.ndindex(truth.shape):
        values, actual = members[:, lead, channel, row, column], truth[lead, channel, row, column]
        std = CLIMATE.std[channel]
        standardised = (values.mean() - CLIMATE.mean[channel]) / std
        ranks[lead, int(standardised >= -TERCILE) + int(standardised >= TERCILE), (values < actual).sum()] += 1
        variance = values.var(ddof=1) * 5 / 4 / std**2
        place = sum(np.sqrt(variance) >= edge for edge in SPREAD_EDGES)
        spread[lead, place] += np.array([1, variance, ((values.mean() - actual) / std) ** 2]) / 60
    np.testing.assert_allclose(terms["ranks_by_intensity"], ranks, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(terms["spread_bins"], spread, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(terms["ranks_by_intensity"].sum(axis=1), rank_counts(members, truth), rtol=1e-12)


@pytest.mark.parametrize("num_members", [1, 4, 8, 9, 50])
def test_the_pit_histogram_spreads_every_rank_evenly(num_members: int) -> None:
    counts = np.random.default_rng(0).uniform(size=(2, num_members + 1))
    found = pit_histogram(counts)
    distribution = np.concatenate([np.zeros((2, 1)), np.cumsum(counts, axis=1)], axis=1) / counts.sum(axis=1)[:, None]
    edges = np.linspace(0, 1, num_members + 2)
    expected = np.diff([np.interp(np.linspace(0, 1, 11), edges, row) for row in distribution], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.isnan(pit_histogram(np.zeros(3))).all()


def test_scores_follow_exactly_from_the_means_over_cases_in_any_share() -> None:
    # a suite that hands all terms through changes nothing
    suites = [calibration_suite(CLIMATE, thresholds=(0.0, 1.0, 99.0)), Suite("other", lambda m, t: {}, dict, ())]
    together = evaluate(map(_case, range(12)), suites=suites)
    shares = [evaluate(map(_case, range(rank, 12, 3)), suites=suites) for rank in range(3)]
    merged = ScoreTable().merge(share.tables["forecast"] for share in shares)
    for name in merged.names:
        np.testing.assert_array_equal(merged.by_lead(name), together.tables["forecast"].by_lead(name))
    overall = together.overall("forecast")
    assert overall["coverage_80"] == pytest.approx(
        np.mean([interval_terms(c.members, c.truth)["coverage"][:, 1] for c in map(_case, range(12))]), rel=1e-12
    )
    rate = np.mean([case.truth >= 1 for case in map(_case, range(12))])
    assert overall["brier_skill_1"] == pytest.approx(1 - overall["brier_1"] / (rate * (1 - rate)), rel=1e-12)
    assert np.isnan(overall["brier_skill_99"]) and overall["brier_99"] == 0  # no event anywhere
    bins = overall["spread_skill_bins"]
    mse = (bins[:, 0] * bins[:, 2] ** 2)[bins[:, 0] > 0].sum()
    direct = [
        np.square((c.members.mean(axis=0) - c.truth) / np.array([1, 2])[:, None, None]).mean()
        for c in map(_case, range(12))
    ]
    assert mse == pytest.approx(np.mean(direct), rel=1e-12)
    assert overall["reliability"].shape == (3, 11, 3) and overall["rank_histogram_by_intensity"].shape == (4, 20)
    np.testing.assert_allclose(overall["reliability"][1, :, 0].sum(), 1, rtol=1e-12)
    shares, _, events = overall["reliability"][1].T
    assert np.nansum(shares * events) == pytest.approx(rate, rel=1e-12)
    assert np.isnan(together.overall("persistence")["coverage_80"])  # one member makes no interval
    lower, upper = together.intervals("forecast", "coverage_80").overall
    assert lower < overall["coverage_80"] < upper


def _described(spread: float, num_cases: int = 12, num_members: int = 19) -> str:
    evaluation = evaluate((_case(n, num_members, spread) for n in range(num_cases)), suites=[calibration_suite()])
    names = [name for name in evaluation.scores if name.startswith("coverage")]
    overall, by_lead = evaluation.overall("forecast"), evaluation.by_lead("forecast")
    scores = {}
    for name in names:
        ends = evaluation.intervals("forecast", name)
        value = None if np.isnan(overall[name]) else overall[name]
        scores[name] = {"overall": value, "by_lead": by_lead[name].tolist(), "interval_95": ends.by_lead.tolist()}
        scores[name]["overall_interval_95"] = ends.overall.tolist()
    return describe_calibration(scores, num_members, num_cases, 10)


def test_a_sentence_says_what_coverage_means() -> None:
    assert _described(0.5).startswith("Too sure of itself at all lead times: 80 % intervals hold ")
    assert _described(0.5).endswith(" of the truth, not 80 %.")
    assert _described(2.0).startswith("Not sure enough at all lead times: 80 % intervals hold 9")
    assert "intervals hold 80 % of the truth, 80 % would be right" in _described(1.0, num_cases=200)
    # 8 members make no 80 % interval, 2 none at all
    assert _described(0.5, num_members=8).startswith("Too sure of itself at all lead times: 50 % intervals hold")
    assert _described(0.2, num_members=2).startswith("Too sure of itself at all lead times: the range of all members")
    assert _described(0.5, num_cases=4).endswith("; 4 independent groups of cases say nothing of others.")


def test_the_sentence_names_the_lead_times() -> None:
    def told(lower: list[float], upper: list[float]) -> str:
        middle = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
        found = {"overall": 0.7, "overall_interval_95": [0.6, 0.8], "by_lead": middle, "interval_95": [lower, upper]}
        return describe_calibration({"coverage_80": found}, 19, 30, 10)

    assert told([0.7, 0.6, 0.6], [0.9, 0.7, 0.72]).startswith("Too sure of itself from +2 on: 80 % intervals hold 65 %")
    assert told([0.85, 0.7, 0.7], [0.9, 0.9, 0.9]).startswith("Not sure enough up to +1: 80 % intervals hold 88 %")
    both = told([0.85, 0.7, 0.6], [0.9, 0.9, 0.7])
    assert both.startswith("Too sure of itself from +3 on: ") and "; not sure enough up to +1: " in both
    assert told([0.6, 0.7, 0.6, 0.7], [0.7, 0.9, 0.7, 0.9]).startswith("Too sure of itself at +1, +3: ")
    assert describe_calibration({}, 19, 30, 10) == ""
