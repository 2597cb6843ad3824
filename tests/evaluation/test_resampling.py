"""What counts as independent, and intervals over it, against closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.comparison import compare, format_comparison
from dydiff_dist.evaluation.resampling import case_shares, choose_independent, describe_resampling, group_cases
from dydiff_dist.evaluation.score_files import ScoredRun, write_scores


@pytest.mark.parametrize(
    ("keys", "independent", "groups"),
    [
        (["S9-00", "S9-03", "S7-00"], "key_prefix", [0, 0, 1]),  # windows of two events
        (["test-000", "test-001", "test-002"], "case", [0, 1, 2]),  # one prefix tells nothing
        (["a-0", "b-0", "c-0"], "case", [0, 1, 2]),  # a case each
        (["a-1-0", "a-1-1", "a-2-0"], "key_prefix", [0, 0, 1]),  # the last hyphen counts
        (["a", "b"], "case", [0, 1]),
        ([], "case", []),
    ],
)
def test_windows_of_one_event_are_one_observation(keys, independent, groups) -> None:
    assert choose_independent(keys) == independent
    assert group_cases(keys, independent).tolist() == groups


def test_the_interval_of_a_mean_is_two_standard_errors_of_the_groups() -> None:
    rng = np.random.default_rng(0)
    of_group = rng.normal(size=200)
    values = np.repeat(of_group, 5) + 0.1 * rng.normal(size=1000)

    def width(groups: np.ndarray) -> float:
        lower, upper = np.quantile(case_shares(groups, 1000) @ values, (0.025, 0.975))
        return upper - lower

    # the bootstrap's own error is a few percent of it
    assert width(np.repeat(np.arange(200), 5)) == pytest.approx(2 * 1.96 * of_group.std() / np.sqrt(200), rel=0.15)
    assert width(np.arange(1000)) == pytest.approx(2 * 1.96 * of_group.std() / np.sqrt(1000), rel=0.15)


def test_a_group_counts_with_all_its_cases() -> None:
    groups = np.array([0, 1, 1, 1])
    shares = case_shares(groups, 100)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    assert {tuple(row) for row in shares.round(6)} == {
        (1, 0, 0, 0),  # the first group twice
        (0, *[round(1 / 3, 6)] * 3),
        (0.25, 0.25, 0.25, 0.25),
    }
    assert describe_resampling(groups, "key_prefix").startswith("2 groups of cases")


def test_a_single_group_makes_no_interval_rather_than_one_without_width(tmp_path) -> None:
    assert np.isnan(case_shares(np.zeros(3, int), 10)).all()
    runs = []
    for name, bias in (("a", 0.0), ("b", 1.0)):
        truth = np.ones((2, 1, 4, 4))
        evaluation = evaluate(
            [ForecastCase(n, f"x-{n}", truth[:1], truth, truth[None] + bias) for n in range(3)],
            independent="key_prefix",
        )
        write_scores(evaluation, tmp_path / name)
        runs.append(ScoredRun(name, tmp_path / name))
    assert runs[0].summary()["scores"]["forecast"]["crps"]["overall_interval_95"] == [None, None]
    (objection,) = compare(*runs).objections
    assert objection.startswith("no intervals: 95 %, percentile bootstrap over 1 group of cases")


def _run(folder: Path, bias: float, independent=None) -> ScoredRun:
    """60 windows of 12 events; the bias of a run differs from event to event, not within one."""

    def case(number: int) -> ForecastCase:
        event = number // 5
        truth = np.random.default_rng(number).normal(size=(2, 1, 4, 4))
        luck = np.random.default_rng([event, 7]).normal()
        return ForecastCase(number, f"S{event}-{number % 5:02d}", truth[:1], truth, (truth + 5 + bias * luck)[None])

    evaluation = evaluate(map(case, range(60)), independent=independent)
    write_scores(evaluation, folder)
    return ScoredRun(folder.name, folder)


def test_runs_are_compared_over_events_where_keys_name_them_and_over_cases_where_asked(tmp_path) -> None:
    def compared(name: str, independent=None):
        runs = [_run(tmp_path / f"{name}{bias}", bias, independent) for bias in (0.0, 0.4)]
        comparison = compare(*runs)
        (crps,) = (score for score in comparison.scores if score.score == "crps")
        return comparison, crps.upper - crps.lower

    by_event, wide = compared("chosen")
    by_case, narrow = compared("case", "case")
    # five equal windows an event: the square root of 5 by which resampling them one by one is too sure
    assert wide / narrow == pytest.approx(np.sqrt(5), rel=0.15)
    protocol = json.loads((tmp_path / "chosen0.0" / "scores.json").read_text())["protocol"]
    assert protocol["independent"] == "key_prefix" and "over 12 groups of cases" in protocol["intervals"]
    assert format_comparison(by_event).splitlines()[-1] == f"intervals: {protocol['intervals']}"
    assert "over 60 cases" in by_case.intervals
    mixed = compare(ScoredRun("a", tmp_path / "chosen0.0"), ScoredRun("b", tmp_path / "case0.0"))
    assert "protocol differs: independent: 'key_prefix' and 'case'" in mixed.objections
