"""Scores of many cases, aggregated exactly.

Each case leaves its scores by lead time; the table keeps them by case number. Sums are exact (``math.fsum`` rounds
once), so aggregates are the same to the last bit whatever the order, the batch size or the number of processes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dydiff_dist.evaluation.resampling import case_shares

BOOTSTRAP_DRAWS = 1000


@dataclass
class ScoreTable:
    """Scores of one forecaster: case number -> name -> array of any shape, lead time first."""

    cases: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Cases that could not be scored, with the reason; they are counted, never averaged away."""

    def add(self, case: int, scores: dict[str, np.ndarray]) -> None:
        """Enters a case's scores.

        Raises:
            ValueError: the case stands already, or has other scores than the ones before it.
        """
        if case in self.cases:
            raise ValueError(f"case {case} was scored twice; each case may be forecast once")
        if self.cases and set(scores) != set(self.names):
            raise ValueError(f"case {case} has scores {sorted(scores)}, the ones before {sorted(self.names)}")
        self.cases[case] = {name: np.asarray(values, np.float64) for name, values in scores.items()}

    def merge(self, others: Iterable["ScoreTable"]) -> "ScoreTable":
        """This table with the cases of others (of other processes, say), which must not overlap."""
        merged = ScoreTable(dict(self.cases), dict(self.errors))
        for other in others:
            for case, scores in other.cases.items():
                merged.add(case, scores)
            merged.errors.update(other.errors)
        return merged

    @property
    def names(self) -> list[str]:
        """Names of the scores, which every case has; empty before the first."""
        return list(next(iter(self.cases.values()))) if self.cases else []

    def values(self, name: str) -> np.ndarray:
        """(cases, lead times, …) of one score, in order of case number.

        Raises:
            ValueError: no cases, or no such score.
        """
        if name not in self.names:
            have = ", ".join(self.names) or "none: no case was scored"
            raise ValueError(f"no score {name!r}; there are {have}")
        return np.stack([self.cases[case][name] for case in sorted(self.cases)])

    def by_lead(self, name: str) -> np.ndarray:
        """Mean over cases at every lead time, (S, …) float64."""
        return exact_mean(self.values(name))

    def overall(self, name: str) -> float:
        """Mean over cases and lead times."""
        return float(exact_mean(self.values(name).reshape(-1, 1))[0])

    def bootstrap_means(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """Means of all scores over resampled cases, (1000, S, …); ``groups`` are the cases' in order of number."""
        shares = case_shares(groups, BOOTSTRAP_DRAWS)
        return {name: np.einsum("dc,c...->d...", shares, self.values(name)) for name in self.names}


def exact_sum(values: np.ndarray) -> np.ndarray:
    """Sum over the first axis, each rounded once; NaN where a summand is NaN."""
    flat = values.reshape(len(values), -1)
    return np.array([math.fsum(column) for column in flat.T]).reshape(values.shape[1:])


def exact_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis from the exact sum."""
    return exact_sum(values) / len(values)
