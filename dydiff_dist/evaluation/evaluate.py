"""Scoring a stream of cases: the forecast and its baselines, side by side, case by case."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from dydiff_dist.evaluation.baselines import Climatology, persistence
from dydiff_dist.evaluation.scores import case_scores, check_case
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


MoreScores = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""(members (M, S, C, H, W), truth (S, C, H, W)) -> scores of one case by name, lead time first."""


@dataclass
class Evaluation:
    """Scores of the forecast and its baselines over the same cases, with how they were made."""

    tables: dict[str, ScoreTable]
    """By forecaster: forecast, persistence and, where a training set is given, climatology."""
    protocol: dict = field(default_factory=dict)

    @property
    def num_cases(self) -> int:
        """Cases that were scored."""
        return len(self.tables[FORECAST].cases)

    @property
    def errors(self) -> dict[int, str]:
        """Cases that could not be scored, with the reason."""
        return self.tables[FORECAST].errors

    def skill(self, baseline: str, score: str = "crps") -> float:
        """Our score over the baseline's, both over all lead times and cases: below 1 is better than it."""
        return self.tables[FORECAST].overall(score) / self.tables[baseline].overall(score)


def evaluate(
    cases: Iterable[ForecastCase],
    climatology: Climatology | None = None,
    num_climatology_members: int | None = None,
    more_scores: MoreScores | None = None,
) -> Evaluation:
    """Scores every case; one that can't be scored is named and counted, and left out of the baselines too.

    Args:
        cases: each case once, in any order; only one is held at a time.
        climatology: None leaves that baseline out.
        num_climatology_members: None is as many as the forecast has.
        more_scores: further scores, of the forecast and of persistence and climatology alike.

    Returns:
        the tables; ``protocol`` says how scores and baselines were made.
    """
    names = (FORECAST, PERSISTENCE, *((CLIMATOLOGY,) if climatology is not None else ()))
    tables = {name: ScoreTable() for name in names}
    protocol: dict = {}
    for case in cases:
        try:
            check_case(case.members, case.truth, f"case {case.number} ({case.key})")
        except ValueError as error:
            tables[FORECAST].errors[case.number] = str(error)
            continue
        num_leads = len(case.truth)
        ensembles = {FORECAST: case.members, PERSISTENCE: persistence(case.history, num_leads)}
        if climatology is not None:
            count = num_climatology_members or len(case.members)
            ensembles[CLIMATOLOGY] = climatology.ensemble(case.number, count, num_leads)
            protocol["climatology"] = climatology.protocol(count)
        for name, members in ensembles.items():
            scores = case_scores(members, case.truth) | (more_scores(members, case.truth) if more_scores else {})
            if name == CLIMATOLOGY:
                mean_scores = case_scores(climatology.mean_forecast(num_leads), case.truth)
                scores |= {score: mean_scores[score] for score in ("mse", "mae")}
            tables[name].add(case.number, scores)
        protocol |= {"num_members": len(case.members), "num_history": len(case.history), "num_leads": num_leads}
    return Evaluation(tables, _base_protocol() | protocol)


def _base_protocol() -> dict:
    """What the numbers mean."""
    return {
        "units": "as stored in the shards",
        "frames": "forecast frames only; history is not scored",
        "crps": "ensemble CRPS E|X-y| - 1/2 E|X-X'|, second term over M^2 pairs; crps_fair over M(M-1) pairs",
        "mse": "of the ensemble mean; for the climatology, of the mean training frame",
        "variance": "between members, divided by M-1",
        "aggregation": "mean over channels and pixels of a case, then over cases, in exact float64 sums",
        "persistence": "the last given frame at every lead time; its CRPS is its absolute error",
    }
