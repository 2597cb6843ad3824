"""Whether an ensemble knows how wrong it is: coverage and width of its intervals, ranks, spread beside error, events.

All are additive terms of a case, so shares, widths and frequencies over cases, lead times and bootstrap draws are
exact. Letters: M members, S lead times, C channels, H W height and width, L levels, I bins of intensity, B of spread,
T events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scoringrules

from dydiff_dist.evaluation.rain import Rule, are_events
from dydiff_dist.evaluation.scores import binned_rank_counts, rank_counts
from dydiff_dist.evaluation.suites import Suite, Terms, ratio

LEVELS = (50, 80, 90, 95)
"""Of central intervals, in percent."""
PIT_BINS = 10
PROBABILITY_BINS = 11
"""Of forecast probabilities: around 0, 0.1, ... 1."""
SPREAD_EDGES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Between bins of spread, in standard deviations of the data."""
TERCILE = 0.4307
"""Standard deviations from the mean to the terciles of a Gaussian."""
_VARIOGRAM_STEPS = (1, 2, 4, 8)
"""Distances of the pairs of pixels that the variogram score compares, along rows and columns."""
_VARIOGRAM_ORDER = 0.5


@dataclass(frozen=True)
class Climate:
    """What of the data the bins are measured by, per channel in stored units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def central_interval(ascending: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The central interval of an ensemble that holds a share ``level`` of truths like its members.

    Its ends stand at the ranks (1 - level)/2 (M + 1) from below and above, between members in between (Weibull's
    plotting positions): M exchangeable members leave 1/(M + 1) of the truths between neighbours.

    Args:
        ascending: members, sorted along the first axis.
        level: in 0..1.

    Returns:
        lower and upper end, or None where M members are too few: the range of all holds (M - 1)/(M + 1).

    Examples:
        >>> central_interval(np.arange(1.0, 10.0), 0.8)  # 9 members
        (np.float64(1.0), np.float64(9.0))
        >>> central_interval(np.arange(1.0, 10.0), 0.9) is None
        True
    """
    num_members = len(ascending)
    rank = round((1 - level) / 2 * (num_members + 1), 9)
    if rank < 1:
        return None
    below = min(int(rank), num_members - 1)
    share = rank - below
    lower = ascending[below - 1] + share * (ascending[below] - ascending[below - 1])
    upper = ascending[-below] - share * (ascending[-below] - ascending[-below - 1])
    return lower, upper


def interval_terms(members_MSCHW: np.ndarray, truth_SCHW: np.ndarray) -> Terms:
    """Coverage, width and interval score (Winkler 1972; Gneiting & Raftery 2007, eq. 43) of the central intervals, each
    (S, L), NaN where M members make none; and ``coverage_range``, how often the truth lies within all members, (S,).

    Coverage is counted by ranks, ties shared among them: where zero rain ties with zero rain, every interval would hold
    the truth, and an ensemble that can't be told apart from it would look unsure. Each rank is spread evenly between
    its neighbours. Widths and scores are in the units of the data.
    """
    num_leads = len(truth_SCHW)
    terms: Terms = {name: np.full((num_leads, len(LEVELS)), np.nan) for name in ("coverage", "width", "interval_score")}
    terms["coverage_range"] = np.full(num_leads, np.nan)
    num_members = len(members_MSCHW)
    if num_members < 2:
        return terms
    ranks = rank_counts(members_MSCHW, truth_SCHW)
    ranks /= ranks.sum(axis=1, keepdims=True)
    terms["coverage_range"] = ranks[:, 1:-1].sum(axis=1)
    for lead, truth in enumerate(truth_SCHW.astype(np.float64)):
        ascending = np.sort(members_MSCHW[:, lead].astype(np.float64), axis=0)
        for number, level in enumerate(LEVELS):
            ends = central_interval(ascending, level / 100)
            if ends is not None:
                lower, upper = ends
                terms["coverage"][lead, number] = interval_coverage(ranks[lead], level / 100)
                terms["width"][lead, number] = (upper - lower).mean()
                score = scoringrules.interval_score(truth, lower, upper, 1 - level / 100)
                terms["interval_score"][lead, number] = np.asarray(score).mean()
    return terms


def interval_coverage(ranks: np.ndarray, level: float) -> np.ndarray:
    """Share of the truth within central intervals of ``level``, in 0..(M - 1)/(M + 1), of shares of ranks (..., M + 1).

    Where members and truth tie and share their ranks, this is the probability that the randomised PIT (Czado et al.
    2009) lies in the interval.

    Examples:
        >>> interval_coverage(np.full(11, 1 / 11), 0.8).round(9)  # like the truth, or all tie with it
        np.float64(0.8)
    """
    return (ranks @ _shares_of_ranks(ranks.shape[-1], np.array([0.5 - level / 2, 0.5 + level / 2])))[..., 0]


def variogram_score(members_MSCHW: np.ndarray, truth_SCHW: np.ndarray) -> np.ndarray:
    """Variogram score of order 1/2 (Scheuerer & Hamill 2015, eq. 11), (S,) float64: whether members differ from place
    to place as the truth does.

    The mean over pairs of (√|y_i - y_j| - E √|X_i - X_j|)². Pairs are pixels 1, 2, 4 and 8 apart along rows and
    columns, of each channel; of frames of one pixel, all pairs of channels.
    """
    members, truth = members_MSCHW.astype(np.float64), truth_SCHW.astype(np.float64)
    total, count = np.zeros(len(truth)), 0
    for one, other in _pairs(truth.shape[1:]):
        of_truth = np.abs(truth[one] - truth[other]) ** _VARIOGRAM_ORDER
        of_members = np.mean([np.abs(member[one] - member[other]) ** _VARIOGRAM_ORDER for member in members], axis=0)
        total += np.square(of_truth - of_members).reshape(len(truth), -1).sum(axis=1)
        count += of_truth[0].size
    return total / count if count else np.full(len(truth), np.nan)


def _pairs(shape_CHW: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Two parts of (S, C, H, W) each, whose values are compared one by one."""
    channels, height, width = shape_CHW
    if height == width == 1:
        return [((slice(None), i), (slice(None), j)) for i in range(channels) for j in range(i)]
    pairs = []
    for before, size in (((slice(None),) * 2, height), ((slice(None),) * 3, width)):
        for step in (step for step in _VARIOGRAM_STEPS if step < size):
            pairs.append(((*before, slice(step, None)), (*before, slice(None, -step))))
    return pairs


def event_terms(members_MSCHW: np.ndarray, truth_SCHW: np.ndarray, thresholds: Sequence[float], rule: Rule) -> Terms:
    """Brier score of the share of members above each threshold, (S, T), and what its reliability diagram needs:
    (S, T, 11, 3) shares of pixels, sums of their probabilities and of their events, by rounded probability."""
    shape = (len(truth_SCHW), len(thresholds))
    brier, bins = np.empty(shape), np.empty((*shape, PROBABILITY_BINS, 3))
    for number, threshold in enumerate(thresholds):
        for lead, truth in enumerate(truth_SCHW):
            probability = are_events(members_MSCHW[:, lead], threshold, rule).mean(axis=0).ravel()
            event = are_events(truth, threshold, rule).ravel().astype(np.float64)
            brier[lead, number] = np.square(probability - event).mean()
            of_bin = np.rint(probability * (PROBABILITY_BINS - 1)).astype(np.int64)
            for column, weights in enumerate((np.ones_like(event), probability, event)):
                bins[lead, number, :, column] = np.bincount(of_bin, weights, PROBABILITY_BINS) / event.size
    return {"brier": brier, "reliability": bins}


def binned_terms(
    members_MSCHW: np.ndarray, truth_SCHW: np.ndarray, climate: Climate, edges: Sequence[float] | None
) -> Terms:
    """Ranks of the truth by intensity, (S, I, M + 1) counts, and spread beside error by spread, (S, B, 3).

    Intensity is the ensemble mean's, not the truth's: whoever sorts by what happened finds every forecast biased. The
    three columns are shares of pixels, sums of (M + 1)/M variance and of squared errors of the mean, in squared
    standard deviations of the data.

    Args:
        members_MSCHW, truth_SCHW: as everywhere.
        climate: of the data.
        edges: between the bins of intensity, in stored units; None takes the terciles of a Gaussian with the climate's
            mean and deviation.
    """
    num_members = len(members_MSCHW)
    mean = members_MSCHW.mean(axis=0, dtype=np.float64)
    center, scale = (np.asarray(values)[:, None, None] for values in (climate.mean, climate.std))
    measured = (mean - center) / scale if edges is None else mean
    intensity = np.digitize(measured, (-TERCILE, TERCILE) if edges is None else edges)
    num_bins = 3 if edges is None else len(edges) + 1
    ranks = binned_rank_counts(members_MSCHW, truth_SCHW, intensity, num_bins)
    spread = np.full((len(truth_SCHW), len(SPREAD_EDGES) + 1, 3), np.nan)
    if num_members > 1:
        variance = members_MSCHW.var(axis=0, dtype=np.float64, ddof=1) * (num_members + 1) / num_members / scale**2
        error = np.square((mean - truth_SCHW) / scale)
        of_bin = np.digitize(np.sqrt(variance), SPREAD_EDGES)
        for lead in range(len(truth_SCHW)):
            for column, weights in enumerate((np.ones_like(error[lead]), variance[lead], error[lead])):
                sums = np.bincount(of_bin[lead].ravel(), weights.ravel(), len(SPREAD_EDGES) + 1)
                spread[lead, :, column] = sums / error[lead].size
    return {"ranks_by_intensity": ranks, "spread_bins": spread}


def pit_histogram(counts: np.ndarray) -> np.ndarray:
    """Frequencies of the probability integral transform in ten bins, (..., 10), of counts of ranks (..., M + 1).

    Rank r is spread evenly over r/(M + 1) .. (r + 1)/(M + 1), so ensembles of any size compare; flat is calibrated.
    """
    total = counts.sum(axis=-1, keepdims=True)
    return ratio(counts @ _shares_of_ranks(counts.shape[-1], np.arange(PIT_BINS + 1) / PIT_BINS), total)


def _shares_of_ranks(num_ranks: int, edges: np.ndarray) -> np.ndarray:
    """(R, K): which share of rank r, spread evenly over r/R .. (r + 1)/R, lies between edges k and k + 1."""
    ends = np.arange(num_ranks + 1) / num_ranks
    upper, lower = np.minimum(ends[1:, None], edges[1:]), np.maximum(ends[:-1, None], edges[:-1])
    return np.maximum(upper - lower, 0) * num_ranks


def calibration_suite(climate: Climate | None = None, thresholds: tuple[float, ...] = (), rule: Rule = ">=") -> Suite:
    """Coverage, width and interval score of central intervals, PIT and ranks by intensity, spread beside error by
    spread, variogram score; of events also Brier score and reliability.

    Args:
        climate: of the data; None leaves out what is binned by intensity and spread.
        thresholds: of events, in stored units; also the bins of intensity.
        rule: when a value counts as an event.
    """
    parts = ("coverage", "width", "interval_score")
    binned = ("pit_histogram", "rank_histogram_by_intensity", "spread_skill_bins") if climate else ()
    edges = thresholds[:3] or None

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        terms = interval_terms(members, truth) | {"variogram_score": variogram_score(members, truth)}
        if climate:
            terms |= binned_terms(members, truth, climate, edges)
        return terms | (event_terms(members, truth, thresholds, rule) if thresholds else {})

    def derive(terms: Terms) -> Terms:
        derived = {name: terms[name] for name in ("coverage_range", "variogram_score")}
        for number, level in enumerate(LEVELS):
            derived |= {f"{part}_{level}": terms[part][..., number] for part in parts}
        if climate:
            counts, bins = terms["ranks_by_intensity"], terms["spread_bins"]
            share = bins[..., :1]
            derived["pit_histogram"] = pit_histogram(counts.sum(axis=-2))
            derived["rank_histogram_by_intensity"] = ratio(counts, counts.sum(axis=-1, keepdims=True))
            derived["spread_skill_bins"] = np.concatenate([share, np.sqrt(ratio(bins[..., 1:], share))], axis=-1)
        if thresholds:
            bins = terms["reliability"]
            derived["reliability"] = np.concatenate([bins[..., :1], ratio(bins[..., 1:], bins[..., :1])], axis=-1)
            rate = bins[..., 2].sum(axis=-1)
            skill = 1 - ratio(terms["brier"], rate * (1 - rate))
            for number, threshold in enumerate(thresholds):
                derived |= {f"brier_{threshold:g}": terms["brier"][..., number]}
                derived |= {f"brier_skill_{threshold:g}": skill[..., number]}
        return derived

    names = [f"{part}_{level}" for part in parts for level in LEVELS]
    events = [f"{name}_{threshold:g}" for name in ("brier", "brier_skill") for threshold in thresholds]
    return Suite(
        "calibration",
        measure,
        derive,
        ("coverage_range", *names, "variogram_score", *events),
        profiles=(*binned, *(("reliability",) if thresholds else ())),
        protocol=_protocol(climate, edges, thresholds, rule),
    )


def _protocol(climate: Climate | None, edges: Sequence[float] | None, thresholds: Sequence[float], rule: str) -> dict:
    return {
        "intervals": "ends at the ranks (1-level)/2 (M+1), between members in between; too few members make none; "
        "coverage by ranks, ties shared; coverage_range: within all members, (M-1)/(M+1) if calibrated",
        "interval_score": "width + 2/(1-level) of what the truth lies outside",
        "variogram_score": f"order {_VARIOGRAM_ORDER:g}, mean over pairs {', '.join(map(str, _VARIOGRAM_STEPS))} "
        "pixels apart along rows and columns (of one pixel: pairs of channels)",
        "intensity": list(edges) if edges else f"ensemble mean at -+{TERCILE} standard deviations around the mean",
        "spread_skill": f"(M+1)/M variance and squared error of the mean by spread, at {list(SPREAD_EDGES)} standard "
        "deviations of the data",
        "data_mean_and_std": [list(climate.mean), list(climate.std)] if climate else None,
        "events": {"thresholds": list(thresholds), "rule": rule, "probability": "share of members"},
        "brier_skill": "against the share of events among the scored pixels",
    }


def describe_calibration(scores: dict, num_members: int, num_independent: int, min_independent: int) -> str:
    """What coverage says of a run, in a sentence: ``Too sure of itself from +5 on: …``.

    Args:
        scores: of the forecast, as ``scores.json`` has them.
        num_members: M.
        num_independent: groups of cases that intervals are over.
        min_independent: below so many, nothing is said of other cases.
    """
    ideals = {f"coverage_{level}": level / 100 for level in (80, 50)}
    ideals["coverage_range"] = (num_members - 1) / (num_members + 1)
    name = next((name for name in ideals if scores.get(name, {}).get("overall") is not None), None)
    if name is None or not {"overall_interval_95", "by_lead", "interval_95"} <= set(scores[name]):
        return ""
    ideal, found = ideals[name], scores[name]
    what = "the range of all members holds" if name == "coverage_range" else f"{_percent(ideal)} intervals hold"
    held = f"{what} {_percent(found['overall'])} of the truth, {_percent(ideal)} would be right"
    if num_independent < min_independent or None in found["overall_interval_95"]:
        return f"{held[0].upper()}{held[1:]}; {num_independent} independent groups of cases say nothing of others."
    lower, upper = found["interval_95"]
    sayings = []
    for words, leads in (
        ("too sure of itself", [lead for lead, end in enumerate(upper) if end is not None and end < ideal]),
        ("not sure enough", [lead for lead, end in enumerate(lower) if end is not None and end > ideal]),
    ):
        if leads:
            share = _percent(float(np.mean([found["by_lead"][lead] for lead in leads])))
            sayings.append(f"{words} {_where(leads, len(lower))}: {what} {share} of the truth, not {_percent(ideal)}")
    text = "; ".join(sayings) or f"no sign of too much or too little spread: {held}"
    return f"{text[0].upper()}{text[1:]}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _where(leads: list[int], num_leads: int) -> str:
    """``at all lead times``, ``from +5 on``, ``up to +3`` or ``at +2, +5``."""
    if len(leads) == num_leads:
        return "at all lead times"
    if leads == list(range(leads[0], num_leads)):
        return f"from +{leads[0] + 1} on"
    if leads == list(range(len(leads))):
        return f"up to +{len(leads)}"
    return f"at {', '.join(f'+{lead + 1}' for lead in leads)}"
