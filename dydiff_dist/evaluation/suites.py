"""Sets of scores that belong together: what each case contributes, and what follows from the sum over cases.

A suite *measures* additive terms of one case and *derives* scores from their means over cases. So a ratio such as CSI
is one of sums, never a mean of ratios, and every aggregate, also of a bootstrap draw or of several processes, is exact.
Letters: M members, S lead times, C channels, H W height and width, K entries of a profile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, get_args

import numpy as np

from dydiff_dist.evaluation import scores

Terms = dict[str, np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray], Terms]
"""(members (M, S, C, H, W), truth (S, C, H, W)) -> terms of one case by name, (S, …)."""
Derive = Callable[[Terms], Terms]
"""Means of terms over cases, (…, S, K) with any leading axes -> scores (…, S) and profiles (…, S, K)."""

Pooling = Literal["avg", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Suite:
    """Scores that are measured together of each case and derived together from the means over cases."""

    name: str
    measure: Measure
    derive: Derive
    scores: tuple[str, ...]
    """Names of the scores, each one number per lead time."""
    distances: tuple[str, ...] = ()
    """The scores among them that are distances from perfect, whose intervals need care (``resampling.py``)."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles, each K numbers per lead time."""
    overall: Literal["pooled", "averaged"] = "pooled"
    """Over lead times: scores of the terms' means, or means of the scores by lead time."""
    of_guess: tuple[str, ...] = ()
    """Names of the terms that a baseline with a best guess has of that, as an ensemble of one, and not of its
    ensemble."""
    protocol: dict = field(default_factory=dict)
    """How the scores are made, for the record."""


def base_suite() -> Suite:
    """CRPS (ensemble and fair), MSE and MAE of the ensemble mean, spread and skill."""

    def derive(terms: Terms) -> Terms:
        # Fortin et al. 2014: 1 where the truth can't be told apart from the members, below where they are too sure
        ratio = np.sqrt(terms["corrected_variance"] / np.where(terms["mse"] > 0, terms["mse"], np.nan))
        return {name: terms[name] for name in ("crps", "crps_fair", "mse", "mae")} | {
            "spread": np.sqrt(terms["variance"]),
            "spread_skill_ratio": ratio,
        }

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        terms = scores.case_scores(members, truth)
        num_members = len(members)
        return terms | {"corrected_variance": (num_members + 1) / num_members * terms["variance"]}

    protocol = {
        "crps": "ensemble CRPS E|X-y| - 1/2 E|X-X'|, second term over M^2 pairs; crps_fair over M(M-1) pairs",
        "mse": "of the ensemble mean; for the climatology, of the mean training frame",
        "spread_skill_ratio": "sqrt((M+1)/M variance / MSE), both averaged first; variance divided by M-1",
    }
    names = ("crps", "crps_fair", "mse", "mae", "spread", "spread_skill_ratio")
    # the spread belongs to the ensemble, the error to the guess: their ratio is of neither, and NaN
    of_guess = ("mse", "mae", "corrected_variance")
    return Suite("base", measure, derive, names, of_guess=of_guess, protocol=protocol)


def ensemble_suite(pools: tuple[int, ...] = (2, 4, 8, 16), max_members_energy: int = 64) -> Suite:
    """CRPS after pooling, energy score, rank histogram.

    Args:
        pools: edges of the pooling windows, in pixels; those above the frame are left out.
        max_members_energy: the energy score compares all pairs of at most so many members.
    """

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        terms = {
            "energy_score": scores.energy_score(members[:max_members_energy], truth),
            "rank_counts": scores.rank_counts(members, truth),
        }
        for pool in pools:
            fits = min(truth.shape[-2:]) >= pool
            for kind in POOLINGS:
                pooled = (pool_blocks(x, pool, kind) for x in (members, truth))
                terms[f"crps_{kind}_pool{pool}"] = scores.crps(*pooled)[0] if fits else np.full(len(truth), np.nan)
        return terms

    names = tuple(f"crps_{kind}_pool{pool}" for pool in pools for kind in POOLINGS)

    def derive(terms: Terms) -> Terms:
        counts = terms["rank_counts"]
        frequency = counts / counts.sum(axis=-1, keepdims=True)
        num_ranks = counts.shape[-1]
        deviation = np.abs(frequency - 1 / num_ranks).sum(axis=-1) / (2 * (1 - 1 / num_ranks))
        if num_ranks == 2:  # a single member, no ensemble
            deviation = np.full_like(deviation, np.nan)
        derived = {name: terms[name] for name in ("energy_score", *names)}
        return derived | {"rank_histogram": frequency, "rank_deviation": deviation}

    protocol = {
        "energy_score": f"fair, root mean square norm over channels and pixels, first {max_members_energy} members",
        "rank_histogram": "share of pixels whose truth has r members below it, ties shared equally",
        "rank_deviation": "half the absolute deviation from flat over its largest value: 0 flat, 1 one rank only",
        "pooled_crps": "ensemble CRPS of members and truth pooled in whole blocks of pixels",
    }
    return Suite(
        "ensemble",
        measure,
        derive,
        ("energy_score", "rank_deviation", *names),
        distances=("rank_deviation",),
        profiles=("rank_histogram",),
        protocol=protocol,
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0; either shape may be broadcast to the other's."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def latitude_suite(latitudes: Sequence[float], num_channels: int, channels: Sequence[str] = ()) -> Suite:
    """CRPS, MSE and RMSE of fields on the globe, each row weighted by the length of its circle of latitude.

    The weight of a row at latitude φ is cos φ, divided by the mean over the rows. Over all channels, and CRPS and RMSE
    of each where there are several, whose units may differ.

    Args:
        latitudes: of the rows, degrees.
        num_channels: C.
        channels: their names; their numbers if left out.
    """
    cosines = np.cos(np.deg2rad(np.asarray(latitudes, np.float64)))
    weights_H = cosines / cosines.mean()
    prefix = "lat_weighted"
    names = [channels[c] if channels else f"channel_{c}" for c in range(num_channels)] if num_channels > 1 else []

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        crps_SCH, mse_SCH = scores.row_scores(members, truth)
        return {
            f"{prefix}_crps": (crps_SCH * weights_H).mean(axis=-1),
            f"{prefix}_mse": (mse_SCH * weights_H).mean(axis=-1),
        }

    def derive(terms: Terms) -> Terms:
        crps_SC, mse_SC = terms[f"{prefix}_crps"], terms[f"{prefix}_mse"]
        mse = mse_SC.mean(axis=-1)
        derived = {f"{prefix}_crps": crps_SC.mean(axis=-1), f"{prefix}_mse": mse, f"{prefix}_rmse": np.sqrt(mse)}
        for channel, name in enumerate(names):
            derived[f"{prefix}_crps_{name}"] = crps_SC[..., channel]
            derived[f"{prefix}_rmse_{name}"] = np.sqrt(mse_SC[..., channel])
        return derived

    of_channels = [f"{prefix}_{score}_{name}" for name in names for score in ("crps", "rmse")]
    protocol = {
        "weights": "cos(latitude) of each row, divided by the mean over rows",
        "rmse": "root of the MSE of the ensemble mean, averaged over pixels and cases first",
    }
    all_scores = (f"{prefix}_crps", f"{prefix}_mse", f"{prefix}_rmse", *of_channels)
    return Suite("latitude", measure, derive, all_scores, of_guess=(f"{prefix}_mse",), protocol=protocol)


def pool_blocks(values: np.ndarray, pool: int, kind: Pooling) -> np.ndarray:
    """Means (in float64) or maxima of whole blocks of ``pool`` x ``pool`` pixels.

    (..., H, W) -> (..., H // pool, W // pool); what is left at the edges belongs to no block.
    """
    height, width = (size // pool * pool for size in values.shape[-2:])
    values = values[..., :height, :width]
    # strided slices: numpy's reductions over short axes are tens of times slower
    if kind == "max":
        of_rows = reduce(np.maximum, (values[..., first::pool, :] for first in range(pool)))
        return reduce(np.maximum, (of_rows[..., first::pool] for first in range(pool)))
    values = values.astype(np.float64)
    of_rows = reduce(np.add, (values[..., first::pool, :] for first in range(pool)))
    return reduce(np.add, (of_rows[..., first::pool] for first in range(pool))) / pool**2
