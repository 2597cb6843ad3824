"""Two runs over the same cases: who is better, and when nobody may say."""

import re
from pathlib import Path

import numpy as np

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.comparison import compare, format_comparison
from dydiff_dist.evaluation.score_files import ScoredRun, write_scores


def _run(folder: Path, bias: float, num_cases: int = 40, num_members: int = 2, seed: int = 0) -> ScoredRun:
    """Cases of very unlike difficulty, the same for every run; a run adds its bias and a little noise of its own."""
    evaluation = evaluate(_case(number, bias, num_members, seed) for number in range(num_cases))
    write_scores(evaluation, folder)
    return ScoredRun(folder.name, folder)


def _case(number: int, bias: float, num_members: int = 2, seed: int = 0) -> ForecastCase:
    rng = np.random.default_rng(number)
    truth = rng.normal(size=(3, 1, 4, 4))
    difficulty = 5 * rng.exponential()
    own = np.random.default_rng([number, seed]).normal(size=(num_members, *truth.shape))
    return ForecastCase(number, f"k{number}", truth[:1], truth, truth + difficulty + bias + 0.3 * own)


def _of(comparison, name: str):
    return next(score for score in comparison.scores if score.score == name)


def test_a_small_difference_on_unlike_cases_is_seen_because_cases_are_paired(tmp_path) -> None:
    first, second = _run(tmp_path / "a", 1.0), _run(tmp_path / "b", 1.2, seed=1)
    crps = _of(compare(first, second), "crps")
    assert crps.difference == crps.second - crps.first
    assert 0.1 < crps.lower < crps.difference < crps.upper < 0.3 and crps.is_significant
    lower, upper = first.summary()["scores"]["forecast"]["crps"]["overall_interval_95"]
    assert upper - lower > 10 * crps.difference  # without pairing the difference would drown


def test_runs_of_the_same_kind_do_not_differ(tmp_path) -> None:
    crps = _of(compare(_run(tmp_path / "a", 1.0), _run(tmp_path / "b", 1.0, seed=1)), "crps")
    assert not crps.is_significant and crps.lower < 0 < crps.upper


def test_the_interval_is_that_of_paired_differences(tmp_path) -> None:
    mse = _of(compare(_run(tmp_path / "a", 1.0, 200), _run(tmp_path / "b", 1.2, 200, seed=1)), "mse")
    by_run = [
        np.array([np.square(c.members.mean(axis=0) - c.truth).mean() for c in cases])
        for cases in ([_case(n, 1.0) for n in range(200)], [_case(n, 1.2, seed=1) for n in range(200)])
    ]
    standard_error = (by_run[1] - by_run[0]).std(ddof=1) / np.sqrt(200)
    # 1000 draws know the 2.5 % quantile to some 7 %
    assert abs((mse.upper - mse.lower) / (2 * 1.96 * standard_error) - 1) < 0.15


def test_other_protocols_or_cases_are_objected_to(tmp_path) -> None:
    first = _run(tmp_path / "a", 1.0)
    comparison = compare(first, _run(tmp_path / "b", 1.0, num_members=3))
    assert comparison.scores == () and comparison.objections == ("protocol differs: num_members: 2 and 3",)
    assert "a and b are not compared:" in format_comparison(comparison)
    fewer = compare(first, _run(tmp_path / "c", 1.0, num_cases=39))
    assert fewer.objections == (
        "protocol differs: num_cases: 40 and 39",
        "other cases: 40 and 39, case 39 (k39) is in one only or has another key",
    )


def test_the_table_names_what_is_significant(tmp_path) -> None:
    text = format_comparison(compare(_run(tmp_path / "dydiff", 1.0), _run(tmp_path / "standard", 1.5, seed=1)))
    lines = text.splitlines()
    assert re.split(r" {2,}", lines[0]) == ["over all lead times", "dydiff", "standard", "difference", "95 % interval"]
    assert lines[1].startswith("crps ") and lines[1].endswith("significant")
