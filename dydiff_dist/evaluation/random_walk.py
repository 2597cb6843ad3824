"""The random walk with bootstrapped steps, a published simple baseline of time series.

Letters: M members, S_h given and S forecast frames, C channels, H W height and width.
"""

import numpy as np

from dydiff_dist.evaluation.case import ForecastCase


class RandomWalk:
    """The naive forecast with its own past errors (Hyndman & Athanasopoulos 2021, sections 5.2 and 5.5).

    Each member goes on from the last given frame by steps drawn, with replacement, from the differences between
    successive given frames; all channels and pixels take the same draw, so what they have in common stays. Step s of
    member m of case c is named by (seed, c, m, s).
    """

    name = "random_walk"

    def __init__(self, num_members: int = 100, seed: int = 0):
        """
        Args:
            num_members: M.
            seed: of the draws.

        Raises:
            ValueError: no members.
        """
        if num_members < 1:
            raise ValueError(f"the random walk has {num_members} members; take at least 1")
        self.num_members, self.seed = num_members, seed

    def walk(self, history: np.ndarray, num_leads: int, case: int) -> np.ndarray:
        """(S_h, C, H, W) -> (M, num_leads, C, H, W) float64.

        Raises:
            ValueError: a history of one frame has no steps.
        """
        if len(history) < 2:
            raise ValueError("a random walk takes its steps from the history; give at least 2 frames")
        steps = np.diff(history.astype(np.float64), axis=0)
        draws = np.stack([self._draws(case, member, num_leads) for member in range(self.num_members)])
        chosen = steps[(draws * len(steps)).astype(np.int64)]
        return history[-1] + np.cumsum(chosen, axis=1)

    def _draws(self, case: int, member: int, count: int) -> np.ndarray:
        """(count,) uniforms in [0, 1)."""
        return np.random.Generator(np.random.Philox(key=[self.seed, 1], counter=[0, member, case, 0])).random(count)

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(M, S, C, H, W) for the lead times of ``case.truth``."""
        return self.walk(case.history, case.num_leads, case.number)

    def best_guess(self, case: ForecastCase) -> None:
        """None: errors are those of the ensemble's mean."""

    def protocol(self) -> dict:
        """How it is made."""
        return {
            "forecast": "the last given frame plus steps drawn with replacement from the history's differences",
            "num_members": self.num_members,
            "seed": self.seed,
        }
