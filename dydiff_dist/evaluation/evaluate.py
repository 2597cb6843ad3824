"""Scoring a stream of cases: the forecast and its baselines, side by side, case by case."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dydiff_dist.evaluation.baselines import Climatology, persistence
from dydiff_dist.evaluation.scores import case_scores, check_case
from dydiff_dist.evaluation.suites import Suite, Terms, base_suite
from dydiff_dist.evaluation.table import ScoreTable

FORECAST, PERSISTENCE, CLIMATOLOGY = "forecast", "persistence", "climatology"


@dataclass(frozen=True)
class ForecastCase:
    """One case as it is scored; all arrays in the same, stored units."""

    number: int
    key: str
    history: np.ndarray
    """(S_h, C, H, W)."""
    truth: np.ndarray
    """(S, C, H, W)."""
    members: np.ndarray
    """(M, S, C, H, W)."""


@dataclass
class Evaluation:
    """Scores of the forecast and its baselines over the same cases, with how they were made."""

    tables: dict[str, ScoreTable]
    """By forecaster: forecast, persistence and, where a training set is given, climatology."""
    protocol: dict = field(default_factory=dict)
    suites: tuple[Suite, ...] = field(default_factory=lambda: (base_suite(),))

    @property
    def num_cases(self) -> int:
        """Cases that were scored."""
        return len(self.tables[FORECAST].cases)

    @property
    def errors(self) -> dict[int, str]:
        """Cases that could not be scored, with the reason."""
        return self.tables[FORECAST].errors

    @property
    def num_leads(self) -> int:
        """Lead times, S."""
        return len(self.tables[FORECAST].by_lead("crps"))

    def skill(self, baseline: str, score: str = "crps") -> float:
        """Our score over the baseline's, both over all lead times and cases: below 1 is better than it."""
        ours, theirs = (self.tables[name].overall(score) for name in (FORECAST, baseline))
        return ours / theirs if theirs else float("nan")

    def by_lead(self, forecaster: str) -> Terms:
        """All scores (S,) and profiles (S, K) of a forecaster by lead time."""
        table = self.tables[forecaster]
        means = {name: table.by_lead(name) for name in table.names}
        return {name: values for suite in self.suites for name, values in suite.derive(means).items()}

    def overall(self, forecaster: str) -> Terms:
        """All scores () and profiles (K,) over lead times, pooled or averaged as each suite says."""
        table = self.tables[forecaster]
        means = {name: table.by_lead(name) for name in table.names}
        pooled = {name: values.mean(axis=0, keepdims=True) for name, values in means.items()}
        result: Terms = {}
        for suite in self.suites:
            if suite.overall == "pooled":
                result |= {name: values[0] for name, values in suite.derive(pooled).items()}
            else:
                result |= {name: values.mean(axis=0) for name, values in suite.derive(means).items()}
        return result

    def intervals(self, forecaster: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """95 % bootstrap intervals over cases of every score by lead time: (lower, upper), each (S,)."""
        drawn = self.tables[forecaster].bootstrap_means()
        found = {}
        for suite in self.suites:
            derived = suite.derive(drawn)
            for name in suite.scores:
                found[name] = tuple(np.quantile(derived[name], q, axis=0) for q in (0.025, 0.975))
        return found


def evaluate(
    cases: Iterable[ForecastCase],
    climatology: Climatology | None = None,
    num_climatology_members: int | None = None,
    suites: Sequence[Suite] = (),
) -> Evaluation:
    """Scores every case; one that can't be scored is named and counted, and left out of the baselines too.

    Args:
        cases: each case once, in any order; only one is held at a time.
        climatology: None leaves that baseline out.
        num_climatology_members: None is as many as the forecast has.
        suites: scores beyond the base suite's, of the forecast and its baselines alike.

    Returns:
        the tables; ``protocol`` says how scores and baselines were made.
    """
    all_suites = (base_suite(), *suites)
    names = (FORECAST, PERSISTENCE, *((CLIMATOLOGY,) if climatology is not None else ()))
    evaluation = Evaluation({name: ScoreTable() for name in names}, _common_protocol(all_suites), all_suites)
    for case in cases:
        try:
            check_case(case.members, case.truth, f"case {case.number} ({case.key})")
        except ValueError as error:
            evaluation.errors[case.number] = str(error)
            continue
        count = num_climatology_members or len(case.members)
        for name, terms in _case_terms(case, all_suites, climatology, count).items():
            evaluation.tables[name].add(case.number, terms)
        evaluation.protocol |= {"num_members": len(case.members), "num_history_frames": len(case.history)}
        if climatology is not None:
            evaluation.protocol["climatology"] = climatology.protocol(count)
    return evaluation


def _case_terms(
    case: ForecastCase, suites: tuple[Suite, ...], climatology: Climatology | None, num_climatology_members: int
) -> dict[str, Terms]:
    """What one case contributes, by forecaster."""
    num_leads = len(case.truth)
    ensembles = {FORECAST: case.members, PERSISTENCE: persistence(case.history, num_leads)}
    if climatology is not None:
        ensembles[CLIMATOLOGY] = climatology.ensemble(case.number, num_climatology_members, num_leads)
    terms = {
        name: {term: values for suite in suites for term, values in suite.measure(members, case.truth).items()}
        for name, members in ensembles.items()
    }
    if climatology is not None:
        of_mean = case_scores(climatology.mean_forecast(num_leads), case.truth)
        undefined = np.full(num_leads, np.nan)  # its spread belongs to the ensemble, its error to the mean
        terms[CLIMATOLOGY] |= {"mse": of_mean["mse"], "mae": of_mean["mae"], "corrected_variance": undefined}
    return terms


def _common_protocol(suites: tuple[Suite, ...]) -> dict:
    """What the numbers mean, whatever the data."""
    return {
        "units": "as stored in the shards",
        "frames": "forecast frames only; history is not scored",
        "aggregation": "mean over channels and pixels of a case, then over cases, in exact float64 sums",
        "persistence": "the last given frame at every lead time; its CRPS is its absolute error",
        "intervals": "95 %, percentile bootstrap over cases, 1000 draws",
        "scores": {suite.name: suite.protocol for suite in suites},
    }
