"""Forecasts that need no training, in the shape of ours: what every model must beat.

Optical flow has a module of its own. Letters: M members, S_h given and S forecast frames, C channels, H W height and
width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from dydiff_dist.diffusion.names import register
from dydiff_dist.evaluation.case import ForecastCase

FramesOf = Callable[[int], np.ndarray]
"""Number of a training trajectory -> its frames (S, C, H, W) in stored units."""

MAX_MEAN_TRAJECTORIES = 1000
"""Trajectories that the climatological mean is taken over, evenly spaced among all."""


class Baseline(ABC):
    """A way to forecast a case without a trained model."""

    name: str
    """Its key in tables and files: letters, digits and underscores, as of a Python name."""

    @abstractmethod
    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(M, S, C, H, W) for the lead times of ``case.truth``, from its history alone."""

    @abstractmethod
    def protocol(self) -> dict:
        """How it is made, as JSON types, for the record beside the scores."""

    def best_guess(self, case: ForecastCase) -> np.ndarray | None:
        """(1, S, C, H, W) whose errors stand for MSE and MAE; None, as most have it, takes the ensemble's mean."""
        return None


BASELINES: dict[str, Baseline] = {}
"""Registered ones, by name; tools/evaluate.py takes them with ``--baseline NAME``."""


def register_baseline(baseline: Baseline) -> None:
    """Makes ``--baseline NAME`` mean ``baseline``, whose ``name`` is NAME.

    Raises:
        ValueError: the name is taken.
    """
    register("baseline", BASELINES, baseline.name, baseline)


class Persistence(Baseline):
    """The last given frame at every lead time, an ensemble of one.

    Examples:
        >>> case = ForecastCase(0, "a", np.array([1.0, 2.0]).reshape(2, 1, 1, 1), np.zeros((3, 1, 1, 1)), np.zeros(0))
        >>> Persistence().ensemble(case).ravel().tolist()
        [2.0, 2.0, 2.0]
    """

    name = "persistence"

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(1, S, C, H, W) in the history's units and dtype."""
        return np.repeat(case.history[None, -1:], case.num_leads, axis=1)

    def protocol(self) -> dict:
        """What is repeated, and what CRPS is of a single member."""
        return {"forecast": "the last given frame at every lead time", "crps": "of one member: its absolute error"}


class SeasonalNaive(Baseline):
    """What was observed one season earlier, the naive forecast of time series with a season; an ensemble of one.

    Lead time s takes the given frame a whole number of seasons before it, the latest there is.
    """

    name = "seasonal_naive"

    def __init__(self, season_frames: int):
        """``season_frames``: frames in a season, e.g. 24 for hourly series, 5 for business days."""
        if season_frames < 1:
            raise ValueError(f"the season is {season_frames} frames; give at least 1")
        self.season_frames = season_frames

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(1, S, C, H, W).

        Raises:
            ValueError: the history is shorter than a season.
        """
        if len(case.history) < self.season_frames:
            raise ValueError(
                f"a season of {self.season_frames} frames is longer than the {len(case.history)} given ones; "
                "give a shorter one"
            )
        last_season = case.history[-self.season_frames :]
        return last_season[np.arange(case.num_leads) % self.season_frames][None]

    def protocol(self) -> dict:
        """What is repeated, and the length of the season in frames."""
        return {"forecast": "the given frame one season before, repeated", "season_frames": self.season_frames}


class RandomWalk(Baseline):
    """The naive forecast with its own past errors (Hyndman & Athanasopoulos 2021, sections 5.2 and 5.5).

    Each member goes on from the last given frame by steps drawn, with replacement, from the differences between
    successive given frames; all channels and pixels take the same draw, so what they have in common stays. Step s of
    member m of case c is named by (seed, c, m, s).
    """

    name = "random_walk"

    def __init__(self, num_members: int = 100, seed: int = 0):
        """``num_members`` is M, ``seed`` of the draws."""
        if num_members < 1:
            raise ValueError(f"the random walk has {num_members} members; take at least 1")
        self.num_members, self.seed = num_members, seed

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(M, S, C, H, W) float64.

        Raises:
            ValueError: a history of one frame has no steps.
        """
        if len(case.history) < 2:
            raise ValueError("a random walk takes its steps from the history; give at least 2 frames")
        steps = np.diff(case.history.astype(np.float64), axis=0)
        draws = np.stack([self._draws(case, member) for member in range(self.num_members)])
        return case.history[-1] + np.cumsum(steps[(draws * len(steps)).astype(np.int64)], axis=1)

    def _draws(self, case: ForecastCase, member: int) -> np.ndarray:
        """(S,) uniforms in [0, 1)."""
        counter = np.random.Philox(key=[self.seed, 1], counter=[0, member, case.number, 0])
        return np.random.Generator(counter).random(case.num_leads)

    def protocol(self) -> dict:
        """Where steps are from, number of members and seed."""
        return {
            "forecast": "the last given frame plus steps drawn with replacement from the history's differences",
            "num_members": self.num_members,
            "seed": self.seed,
        }


class Climatology(Baseline):
    """What is known without any history: the frames of the training set.

    * ``mean``: every pixel's mean over all training frames, the best forecast in squared error.
    * ``ensemble``: each member is one training frame, drawn uniformly over trajectories and frames, the same at all
      lead times (every score here judges lead times one by one, so its order in time does not matter). Member m of case
      c is named by (seed, c, m): it does not depend on how many members or cases there are.
    """

    name = "climatology"

    def __init__(
        self,
        frames_of: FramesOf,
        num_trajectories: int,
        seed: int = 0,
        num_members: int | None = None,
        cache_trajectories: int = 64,
    ):
        """
        Args:
            frames_of: must return the same number of frames for each of ``num_trajectories``.
            num_trajectories: of the training set.
            seed: of the draws.
            num_members: M; None is as many as the forecast of the case has.
            cache_trajectories: kept in memory.
        """
        if num_trajectories < 1:
            raise ValueError("the climatology has no training trajectories; give a training set")
        if num_members is not None and num_members < 1:
            raise ValueError(f"the climatology has {num_members} members; take at least 1")
        self.num_trajectories, self.seed, self.num_members = num_trajectories, seed, num_members
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

    def best_guess(self, case: ForecastCase) -> np.ndarray:
        """The mean at every lead time, (1, S, C, H, W)."""
        return np.broadcast_to(self.mean(), (1, case.num_leads, *self.mean().shape))

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """The climatological ensemble of a case, (M, S, C, H, W) in the frames' own dtype."""
        frames_per_trajectory = len(self._frames_of(0))
        pool = self.num_trajectories * frames_per_trajectory
        members = []
        for member in range(self.num_members or len(case.members)):
            number, frame = divmod(_draw(self.seed, case.number, member, pool), frames_per_trajectory)
            members.append(self._frames_of(number)[frame])
        return np.repeat(np.stack(members)[:, None], case.num_leads, axis=1)

    def protocol(self) -> dict:
        """Where its members and its mean are from."""
        return {
            "ensemble": "members are single training frames drawn uniformly, with replacement, constant in lead time",
            "num_members": self.num_members or "as the forecast",
            "mean": "per pixel, over all frames of the training trajectories; MSE and MAE are its own",
            "num_trajectories": self.num_trajectories,
            "num_mean_trajectories": min(self.num_trajectories, MAX_MEAN_TRAJECTORIES),
            "seed": self.seed,
        }


def _draw(seed: int, case: int, member: int, limit: int) -> int:
    """A number in 0..limit-1 by the counter (case, member): the raw words of numpy's Philox never change."""
    word = int(np.random.Philox(key=[seed, 0], counter=[0, member, case, 0]).random_raw())
    return word * limit >> 64
