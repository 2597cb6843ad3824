"""Which cases count as independent, and the bootstrap over them.

Windows of one radar event or clips of one trajectory are alike: cases drawn one by one would count the same storm many
times, and intervals would be too narrow. So whole groups of cases are drawn.
Letters: K cases, G groups, D draws.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dydiff_dist.data.manifest import Independent

FEW_GROUPS = 10
"""Below so many independent groups a bootstrap is rough."""


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
