"""From rows by case to arrays that can be compared.

Letters: R seeds, K cases, S lead times.
"""

from collections.abc import Sequence

import numpy as np

from dydiff_dist.evaluation.resampling import Independent, group_cases
from dydiff_dist.study.intervals import Scored
from dydiff_dist.study.records import CaseRow


class CaseTable:
    """The rows by case of a study, to be asked for one score of one arm."""

    def __init__(self, rows: Sequence[CaseRow], independent: Independent):
        """``independent`` says which cases make one observation, as ``StudyConfig.independent``."""
        self.independent = independent
        self._rows: dict[tuple[str, str, str], dict[tuple[int, int, str], CaseRow]] = {}
        for row in rows:
            of_arm = self._rows.setdefault((row.arm, row.forecast, row.score), {})
            of_arm[row.seed, row.case, row.part] = row

    def has(self, arm: str, forecast: str, score: str) -> bool:
        """Whether anything of it is there."""
        return (arm, forecast, score) in self._rows

    def scored(self, arm: str, forecast: str, score: str) -> Scored:
        """One score of one arm (or baseline) over all its seeds.

        Raises:
            ValueError: a seed lacks a case that another one has.
        """
        rows = self._rows[arm, forecast, score]
        seeds = tuple(sorted({seed for seed, _, _ in rows}))
        cases = sorted({case for _, case, _ in rows})
        missing = [(s, c) for s in seeds for c in cases if (s, c, "value") not in rows]
        if missing:
            raise ValueError(f"{arm} seed {missing[0][0]}, {forecast}: case {missing[0][1]} is missing; collect again")

        def terms(part: str) -> np.ndarray:
            return np.stack([[rows[seed, case, part].leads for case in cases] for seed in seeds])

        value = terms("value")
        scale = terms("scale") if (seeds[0], cases[0], "scale") in rows else np.ones_like(value)
        keys = [rows[seeds[0], case, "value"].key for case in cases]
        return Scored(seeds, value, scale, group_cases(keys, self.independent))
