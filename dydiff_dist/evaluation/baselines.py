"""Forecasts that need no training, in the shape of ours: what every model must beat.

Letters: M members, S lead times, C channels, H W height and width.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

FramesOf = Callable[[int], np.ndarray]
"""Number of a training trajectory -> its frames (S, C, H, W) in stored units."""

MAX_MEAN_TRAJECTORIES = 1000
"""Trajectories that the climatological mean is taken over, evenly spaced among all."""


def persistence(history_SCHW: np.ndarray, num_leads: int) -> np.ndarray:
    """The last given frame at every lead time, an ensemble of one: (1, num_leads, C, H, W)."""
    return np.repeat(history_SCHW[None, -1:], num_leads, axis=1)


class Climatology:
    """What is known without any history: the frames of the training set.

    * ``mean``: every pixel's mean over all training frames, the best forecast in squared error.
    * ``ensemble``: each member is one training frame, drawn uniformly over trajectories and frames, the same at all
      lead times (every score here judges lead times one by one, so its order in time does not matter). Member m of case
      c is named by (seed, c, m): it does not depend on how many members or cases there are.
    """

    def __init__(self, frames_of: FramesOf, num_trajectories: int, seed: int = 0, cache_trajectories: int = 64):
        """``frames_of`` must return the same number of frames for each of ``num_trajectories``."""
        if num_trajectories < 1:
            raise ValueError("the climatology has no training trajectories; give a training set")
        self.num_trajectories, self.seed = num_trajectories, seed
        self._frames_of = lru_cache(maxsize=cache_trajectories)(frames_of)
        self._mean: np.ndarray | None = None

    def mean(self) -> np.ndarray:
        """The mean training frame, (C, H, W) float64; calculated at the first call, over at most 1000 trajectories."""
        if self._mean is None:
            count = min(self.num_trajectories, MAX_MEAN_TRAJECTORIES)
            numbers = [index * self.num_trajectories // count for index in range(count)]
            total = sum(self._frames_of(number).mean(axis=0, dtype=np.float64) for number in numbers)
            self._mean = np.asarray(total) / count
        return self._mean

    def mean_forecast(self, num_leads: int) -> np.ndarray:
        """The mean at every lead time, an ensemble of one: (1, num_leads, C, H, W)."""
        return np.broadcast_to(self.mean(), (1, num_leads, *self.mean().shape))

    def ensemble(self, case: int, num_members: int, num_leads: int) -> np.ndarray:
        """The climatological ensemble of a case, (M, num_leads, C, H, W) in the frames' own dtype."""
        frames_per_trajectory = len(self._frames_of(0))
        pool = self.num_trajectories * frames_per_trajectory
        members = []
        for member in range(num_members):
            number, frame = divmod(_draw(self.seed, case, member, pool), frames_per_trajectory)
            members.append(self._frames_of(number)[frame])
        return np.repeat(np.stack(members)[:, None], num_leads, axis=1)

    def protocol(self, num_members: int) -> dict:
        """How the baseline was made, for the record."""
        return {
            "ensemble": "members are single training frames drawn uniformly, with replacement, constant in lead time",
            "num_members": num_members,
            "mean": "per pixel, over all frames of the training trajectories",
            "num_trajectories": self.num_trajectories,
            "num_mean_trajectories": min(self.num_trajectories, MAX_MEAN_TRAJECTORIES),
            "seed": self.seed,
        }


def _draw(seed: int, case: int, member: int, limit: int) -> int:
    """A number in 0..limit-1 by the counter (case, member): the raw words of numpy's Philox never change."""
    word = int(np.random.Philox(key=[seed, 0], counter=[0, member, case, 0]).random_raw())
    return word * limit >> 64
