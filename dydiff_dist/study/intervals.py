"""What of a difference between two arms is certain.

Two things make a difference between trained models a matter of luck: which cases were forecast, and how the training
happened to go. Arms are compared case by case and seed by seed, so whatever they share cancels:

* cases: the groups of cases that count as independent are resampled with replacement (10,000 draws), the same draw for
  both arms;
* training: each seed gives its own relative difference; the deviation of these around their mean, over the root of
  the number of seeds, is the uncertainty of the mean. With few seeds an arm's own deviation is nearly unknown, so it
  is pooled over all arms of a table that have several. All of them are differences to the same trainings of the
  reference, whose luck they share, so that more arms know little more of it: it enters as Student's t with the degrees
  of freedom of the arm with most seeds. With those of all arms one in seven differences without any cause was called
  certain where the reference's luck is the larger (three seeds, four arms).

The interval is the 95 % range of the sum of both. An arm with one seed takes the pooled deviation of the others; where
no arm has several, the interval covers the cases alone, and says so.

Letters: R seeds, K cases, S lead times, G groups of cases, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dydiff_dist.evaluation.resampling import group_draws
from dydiff_dist.study.records import BASELINE_SEED

NUM_DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Scored:
    """One score of one arm: its terms for every seed, case and lead time."""

    seeds: tuple[int, ...]
    """``BASELINE_SEED`` alone for a baseline, which has none."""
    value: np.ndarray
    """(R, K, S)."""
    scale: np.ndarray
    """(R, K, S); ones for a score that is no ratio."""
    groups: np.ndarray
    """(K,): which independent group a case belongs to, 0..G-1."""

    def mean(self) -> float:
        """The score over all seeds, cases and lead times."""
        return float(self.value.mean() / self.scale.mean())

    def by_lead(self) -> np.ndarray:
        """(S,) over all seeds and cases."""
        return self.value.mean(axis=(0, 1)) / self.scale.mean(axis=(0, 1))

    def by_seed(self) -> np.ndarray:
        """(R,) over all cases and lead times."""
        return self.value.mean(axis=(1, 2)) / self.scale.mean(axis=(1, 2))

    def of_seeds(self, seeds: Sequence[int]) -> "Scored":
        """The same for some of the seeds, in the order given."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=tuple(seeds), value=self.value[rows], scale=self.scale[rows])

    def at_lead(self, lead: int) -> "Scored":
        """The same at one lead time, counted from 0."""
        return replace(self, value=self.value[..., [lead]], scale=self.scale[..., [lead]])

    def resampled(self, weights_DG: np.ndarray) -> np.ndarray:
        """(D,): the score where group g counts ``weights[d, g]`` times."""
        num_groups = weights_DG.shape[1]
        value, scale = (
            np.bincount(self.groups, terms.mean(axis=(0, 2)), num_groups) for terms in (self.value, self.scale)
        )
        return (weights_DG @ value) / (weights_DG @ scale)


@dataclass(frozen=True)
class Difference:
    """How much an arm's score is above (+) or below (-) the reference's, relative to it."""

    relative: float
    lower: float
    upper: float
    num_seeds: int
    """Seeds that both arms have; against a baseline, which has none, all of the other's."""
    num_groups: int
    covers_training: bool
    """Whether the interval knows of training luck; if not, it is about these trained models only."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.lower > 0 or self.upper < 0


def compare(arms: Sequence[Scored], reference: Scored) -> list[Difference]:
    """Every arm against the reference, with training luck pooled over the arms.

    Args:
        arms: scored on the same cases as the reference.
        reference: what they are compared with.

    Raises:
        ValueError: other cases, or no seed in common.
    """
    pairs = [_paired(arm, reference) for arm in arms]
    deviation, degrees = pooled_deviation([_by_seed(arm, other) for arm, other in pairs])
    return [_difference(arm, other, deviation, degrees) for arm, other in pairs]


def _paired(arm: Scored, reference: Scored) -> tuple[Scored, Scored]:
    """Both with the seeds they share; a baseline (one row) goes with all of the other's."""
    if arm.value.shape[1:] != reference.value.shape[1:] or (arm.groups != reference.groups).any():
        raise ValueError("two arms were scored on different cases; compare what was forecast alike")
    if BASELINE_SEED in (*arm.seeds, *reference.seeds):
        return arm, reference
    shared = [seed for seed in reference.seeds if seed in arm.seeds]
    if not shared:
        raise ValueError(f"seeds {arm.seeds} and {reference.seeds} have none in common; train both arms alike")
    return arm.of_seeds(shared), reference.of_seeds(shared)


def _by_seed(arm: Scored, reference: Scored) -> np.ndarray:
    """(R,): the relative difference of each seed; against a baseline, of each of the arm's own."""
    return arm.by_seed() / reference.by_seed() - 1


def pooled_deviation(differences: Sequence[np.ndarray]) -> tuple[float, int]:
    """(standard deviation between seeds over all arms with several, degrees of freedom); (0, 0) without one."""
    squares = sum(float(np.square(d - d.mean()).sum()) for d in differences)
    counts = [len(d) - 1 for d in differences]
    return (np.sqrt(squares / sum(counts)), max(counts)) if any(counts) else (0.0, 0)


def _difference(arm: Scored, reference: Scored, deviation: float, degrees: int) -> Difference:
    num_groups = int(arm.groups.max()) + 1
    weights = group_draws(num_groups, NUM_DRAWS)
    draws = arm.resampled(weights) / reference.resampled(weights) - 1
    num_seeds = max(len(arm.seeds), len(reference.seeds))
    if degrees:
        draws = draws + deviation / np.sqrt(num_seeds) * _training_luck(degrees)
    lower, upper = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    if num_groups == 1:  # nothing is known of how other cases would have gone
        lower, upper = -np.inf, np.inf
    return Difference(
        relative=arm.mean() / reference.mean() - 1,
        lower=float(lower),
        upper=float(upper),
        num_seeds=num_seeds,
        num_groups=num_groups,
        covers_training=bool(degrees),
    )


@lru_cache(maxsize=4)
def _training_luck(degrees: int) -> np.ndarray:
    """(D,): Student's t with so many degrees of freedom."""
    return np.random.default_rng([1, degrees]).standard_t(degrees, NUM_DRAWS)
