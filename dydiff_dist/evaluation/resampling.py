"""Which cases count as independent, and the bootstrap over them.

Windows of one radar event or clips of one trajectory are alike: cases drawn one by one would count the same storm many
times, and intervals would be too narrow. So whole groups of cases are drawn.
Letters: K cases, G groups, D draws.

*Distances* are scores that measure how far something is from perfect, such as the log spectral distance: roots of sums
of squares, or sums of absolute deviations. Whatever is resampled deviates more, so draws of them lie above the score
itself and their percentiles may even leave it out. Their squares are, nearly, means with a bias that resampling adds
once more, which the basic interval (Davison & Hinkley 1997, eq. 5.6) takes off: 2 d² minus the quantiles of the draws'
squares, cut at 0.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dydiff_dist.data.manifest import Independent

FEW_GROUPS = 10
"""Below so many independent groups a bootstrap is rough, and no difference is called certain."""


def choose_independent(keys: Sequence[str]) -> Independent:
    """``key_prefix`` where that makes several groups and any has more than one case, else ``case``."""
    num_groups = len({_prefix(key) for key in keys})
    return "key_prefix" if 1 < num_groups < len(keys) else "case"


def group_cases(keys: Sequence[str], independent: Independent) -> np.ndarray:
    """(K,): which independent group each case belongs to, 0..G-1, numbered as they come."""
    if independent == "case":
        return np.arange(len(keys))
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_prefix(key), len(numbers)) for key in keys], dtype=np.int64)


@lru_cache(maxsize=8)
def group_draws(num_groups: int, num_draws: int) -> np.ndarray:
    """(D, G): how often each group is drawn, with replacement, in a sample of G groups.

    The same for everything that has as many groups, so that whatever is compared is compared on the same cases.
    """
    even = np.full(num_groups, 1 / num_groups)
    return np.random.default_rng([0, num_groups]).multinomial(num_groups, even, size=num_draws)


def interval_95(draws: np.ndarray) -> np.ndarray:
    """(2, …): the 2.5 % and 97.5 % quantiles of draws (D, …).

    Examples:
        >>> interval_95(np.arange(41.0)).tolist()
        [1.0, 39.0]
    """
    return np.quantile(draws, (0.025, 0.975), axis=0)


def distance_interval_95(distance: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(2, …): the basic interval of a distance (…) through its square, from draws (D, …); it holds the distance.

    Examples:
        >>> distance_interval_95(np.array(1.0), np.sqrt(np.linspace(0.9, 1.9, 41))).round(3).tolist()
        [0.354, 1.037]
    """
    lower, upper = np.sqrt(np.maximum(0, 2 * np.square(distance) - interval_95(np.square(draws))[::-1]))
    return np.stack([np.minimum(lower, distance), np.maximum(upper, distance)])


def distance_difference_interval_95(
    first: float, second: float, first_draws: np.ndarray, second_draws: np.ndarray
) -> tuple[float, float]:
    """The basic interval of ``second - first`` of two distances, from paired draws (D,): that of the difference of
    their squares, over their sum. It leaves out 0 where that of the squares does.

    Examples:
        >>> draws = np.linspace(1, 2, 41)
        >>> distance_difference_interval_95(1.0, 1.0, draws, draws)
        (0.0, 0.0)
    """
    squares = np.square(second_draws) - np.square(first_draws)
    lower, upper = 2 * (second**2 - first**2) - interval_95(squares)[::-1]
    total = (first + second) or 1.0
    return float(lower / total), float(upper / total)


def case_shares(groups: np.ndarray, num_draws: int) -> np.ndarray:
    """(D, K): the share of each case in each draw, for groups (K,) as ``group_cases`` numbers them.

    NaN for a single group: nothing is known of others, and an interval without width would claim the opposite.
    """
    num_groups = int(groups.max()) + 1
    if num_groups == 1:
        return np.full((num_draws, len(groups)), np.nan)
    counts = group_draws(num_groups, num_draws)[:, groups]
    return counts / counts.sum(axis=1, keepdims=True)


def describe_resampling(groups: np.ndarray, independent: Independent) -> str:
    """What was drawn, e.g. ``12 groups of cases (keys agree up to the last hyphen)``."""
    count = len(np.unique(groups))
    remarks = [] if independent == "case" else ["keys agree up to the last hyphen"]
    if count < FEW_GROUPS:
        remarks.append("so few make rough intervals" if count > 1 else "which make no interval")
    number = f"{count} {'case' if independent == 'case' else 'group'}{'' if count == 1 else 's'}"
    what = number if independent == "case" else f"{number} of cases"
    return f"{what} ({'; '.join(remarks)})" if remarks else what


def _prefix(key: str) -> str:
    return key.rpartition("-")[0]
