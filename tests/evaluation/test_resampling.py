"""What counts as independent, and intervals over it, against closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.comparison import compare, format_comparison
from dydiff_dist.evaluation.fields import spectrum_suite
from dydiff_dist.evaluation.resampling import (
    case_shares,
    choose_independent,
    describe_resampling,
    distance_difference_interval_95,
    distance_interval_95,
    group_cases,
    interval_95,
)
from dydiff_dist.evaluation.score_files import ScoredRun, write_scores
from dydiff_dist.files import seal


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


def _spectra(num_cases: int, decibels: float, seed: int) -> np.ndarray:
    """(G, 2, 16): spectra of members and truth of each case, which share its weather; the true distance is known."""
    rng = np.random.default_rng(seed)
    ratio = 10 ** (decibels / 10 * np.where(np.arange(16) % 2, 1, 0.5))
    truth, own = rng.gamma(3, 1 / 3, (num_cases, 16)), rng.gamma(20, 1 / 20, (num_cases, 16))
    return np.stack([ratio * truth * own, truth], axis=1)


def _log_distance(spectra: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(10 * np.log10(spectra[..., 0, :] / spectra[..., 1, :])).mean(axis=-1))


def _histograms(num_cases: int, bend: float, seed: int) -> np.ndarray:
    """(G, 9): frequencies of ranks of each case, whose own weather bends them too."""
    shape = 1 + bend * np.linspace(-1, 1, 9) ** 2
    return np.random.default_rng(seed).dirichlet(60 * shape / shape.sum(), num_cases)


def _deviation(frequency: np.ndarray) -> np.ndarray:
    return np.abs(frequency - 1 / 9).sum(axis=-1) / (2 * (1 - 1 / 9))


@pytest.mark.parametrize(
    ("cases", "score", "truth"),
    [
        (lambda seed: _spectra(30, 0.0, seed), _log_distance, 0.0),
        (lambda seed: _spectra(30, 0.5, seed), _log_distance, 0.5 * np.sqrt(0.625)),
        (lambda seed: _spectra(30, 3.0, seed), _log_distance, 3.0 * np.sqrt(0.625)),
        (lambda seed: _histograms(30, 0.0, seed), _deviation, 0.0),
        (lambda seed: _histograms(30, 0.3, seed), _deviation, None),
    ],
    ids=["spectra alike", "spectra near", "spectra apart", "ranks flat", "ranks bent"],
)
def test_the_interval_of_a_distance_holds_the_true_one_and_the_score_itself(cases, score, truth) -> None:
    if truth is None:
        shape = 1 + 0.3 * np.linspace(-1, 1, 9) ** 2
        truth = _deviation(shape / shape.sum())
    shares = case_shares(np.arange(30), 1000)
    num_held = 0
    for seed in range(200):
        values = cases(seed)
        found = score(values.mean(axis=0))
        lower, upper = distance_interval_95(found, score(np.einsum("dc,c...->d...", shares, values)))
        assert 0 <= lower <= found <= upper
        num_held += lower <= truth <= upper
    # 95 % nominal; with 30 cases the bootstrap holds 90 % (measured: 89 to 100 %), less three standard errors of 2 %
    assert num_held >= 0.83 * 200


def test_percentiles_of_a_distance_leave_out_what_they_should_hold() -> None:
    """Why distances have intervals of their own: where spectra are alike no percentile interval holds the true 0."""
    shares = case_shares(np.arange(30), 1000)
    draws = _log_distance(np.einsum("dc,c...->d...", shares, _spectra(30, 0.0, 0)))
    assert interval_95(draws)[0] > 0


def test_two_distances_are_compared_through_their_squares() -> None:
    shares = case_shares(np.arange(30), 1000)
    signs = []
    for seed in range(200):
        one, other = _spectra(30, 0.5, seed), _spectra(30, 0.5, 1000 + seed)
        other[:, 1], other[:, 0] = one[:, 1], one[:, 1] * other[:, 0] / other[:, 1]  # the same truths
        found = [float(_log_distance(values.mean(axis=0))) for values in (one, other)]
        draws = [_log_distance(np.einsum("dc,c...->d...", shares, values)) for values in (one, other)]
        lower, upper = distance_difference_interval_95(*found, *draws)
        signs.append(lower > 0 or upper < 0)
    # two runs that do not differ: 5 % are called significant, and up to three standard errors of 1.5 % and the
    # bootstrap's own excess at 30 cases
    assert np.mean(signs) < 0.15


def test_the_intervals_of_an_evaluation_know_which_scores_are_distances(tmp_path) -> None:
    def run(name: str, smooth: float) -> ScoredRun:
        def case(number: int) -> ForecastCase:
            truth, noise = np.random.default_rng(number).normal(size=(2, 3, 1, 16, 16))
            return ForecastCase(number, f"k{number}", truth[:1], truth, (smooth * truth + 0.1 * noise)[None])

        evaluation = evaluate(map(case, range(12)), suites=[spectrum_suite(True)])
        write_scores(evaluation, tmp_path / name)
        return ScoredRun(name, tmp_path / name)

    runs = [run("a", 1.0), run("b", 0.8)]
    summary = runs[0].summary()
    scores = summary["scores"]["forecast"]
    assert [name for name in scores if scores[name].get("is_distance")] == ["log_spectral_distance_db"]
    assert summary["protocol"]["intervals"].endswith("basic bootstrap of the square for log_spectral_distance_db")
    for values in scores.values():
        if values["overall"] is not None and values["overall_interval_95"][0] is not None:
            assert values["overall_interval_95"][0] <= values["overall"] <= values["overall_interval_95"][1]
    (distance,) = (s for s in compare(*runs).scores if s.score == "log_spectral_distance_db")
    assert distance.lower < distance.difference < distance.upper and distance.is_significant


def test_below_ten_groups_nothing_is_called_significant(tmp_path) -> None:
    def compared(num_groups: int):
        truth, runs = np.ones((2, 1, 4, 4)), []
        for bias in (0.1, 0.5):
            keys = (f"S{group}-{window}" for group in range(num_groups) for window in range(2))
            cases = (ForecastCase(n, key, truth[:1], truth, truth[None] + bias) for n, key in enumerate(keys))
            folder = tmp_path / f"{num_groups} {bias}"
            write_scores(evaluate(cases), folder)
            runs.append(ScoredRun(folder.name, folder))
        return runs, compare(*runs)

    _, enough = compared(10)
    assert all(score.is_significant for score in enough.scores) and enough.caution == ""
    few, comparison = compared(2)
    assert comparison.scores and not any(score.is_significant for score in comparison.scores)
    text = format_comparison(comparison)
    assert "significant" not in text
    assert text.endswith("nothing can be said of other cases: only 2 are independent, 10 are needed")
    for run in few:  # as an earlier version wrote it
        record = json.loads((run.folder / "scores.json").read_text())
        del record["protocol"]["num_independent"]
        (run.folder / "scores.json").write_text(json.dumps(seal(record)))
    assert compare(*few).caution == comparison.caution
