"""Is one run better than another? Paired differences over the same cases."""

from dataclasses import dataclass

import numpy as np

from dydiff_dist.evaluation.evaluate import FORECAST
from dydiff_dist.evaluation.resampling import (
    FEW_GROUPS,
    distance_difference_interval_95,
    group_cases,
    interval_95,
)
from dydiff_dist.evaluation.score_files import ScoredRun
from dydiff_dist.evaluation.score_tables import aligned

_NOT_PROTOCOL = frozenset(
    "model weights_sha256 shards seed precision sampling caution calibration intervals num_independent "
    "scores.blockiness".split()
)
"""What a comparison is between (blockiness is that of the model's own patches), where things lie, or what follows from
the rest."""
_MOST_OBJECTIONS = 6
"""Lines of them on a terminal; the page shows all."""


@dataclass(frozen=True)
class PairedScore:
    """A score of two runs over all lead times and the same cases."""

    score: str
    first: float
    second: float
    difference: float
    """second - first."""
    lower: float
    upper: float
    """95 % interval of the difference over resampled cases, the same for both runs in each draw."""
    is_significant: bool
    """Whether the interval leaves out 0 and enough is independent to say so. It speaks of other cases of this kind,
    not of training again."""


@dataclass(frozen=True)
class Comparison:
    """Two runs score by score, or why they can't be compared."""

    first: str
    second: str
    """Labels."""
    scores: tuple[PairedScore, ...]
    objections: tuple[str, ...]
    """Why their numbers don't compare, one line each; empty if they do."""
    intervals: str = ""
    """What was resampled."""
    caution: str = ""
    """Why nothing can be said of other cases, if so."""


def compare(first: ScoredRun, second: ScoredRun) -> Comparison:
    """Paired bootstrap of every score that both runs have, over the cases or groups of cases that they were scored by.

    Runs that were scored by different protocols or over different cases get objections in place of scores.

    Raises:
        FileNotFoundError, ValueError: scores that are missing or damaged.
    """
    one, other = first.summary(), second.summary()
    objections = [f"protocol differs: {line}" for line in protocol_differences(one["protocol"], other["protocol"])]
    if one.get("cases") != other.get("cases"):
        objections.append(_cases_differ(one.get("cases", {}), other.get("cases", {})))
    draws, other_draws = ({}, {}) if objections else (first.draws(FORECAST), second.draws(FORECAST))
    if draws and not np.isfinite(draws.get("crps", np.nan)).all():
        objections.append(f"no intervals: {one['protocol'].get('intervals', 'unknown')}")
    if objections:
        return Comparison(first.label, second.label, (), tuple(objections))
    independent = num_independent(one)
    caution = ""
    if independent < FEW_GROUPS:
        caution = f"nothing can be said of other cases: only {independent} are independent, {FEW_GROUPS} are needed"
    scores = []
    for name in (name for name in draws if name in other_draws):
        found, other_found = (summary["scores"][FORECAST].get(name, {}) for summary in (one, other))
        before, after = found.get("overall"), other_found.get("overall")
        if before is None or after is None:
            continue
        if found.get("is_distance"):
            lower, upper = distance_difference_interval_95(before, after, draws[name], other_draws[name])
        else:
            lower, upper = interval_95(other_draws[name] - draws[name]).tolist()
        if np.isfinite([lower, upper]).all():
            is_significant = not caution and (lower > 0 or upper < 0)
            scores.append(PairedScore(name, before, after, after - before, lower, upper, is_significant))
    return Comparison(
        first.label, second.label, tuple(scores), (), one["protocol"].get("intervals", "unknown"), caution
    )


def num_independent(summary: dict) -> int:
    """Groups of cases that intervals are over, counted by the keys where an earlier version left no number."""
    protocol = summary["protocol"]
    if "num_independent" in protocol:
        return protocol["num_independent"]
    return len(set(group_cases(list(summary.get("cases", {}).values()), protocol.get("independent", "case")).tolist()))


def protocol_differences(first: dict, second: dict, prefix: str = "") -> list[str]:
    """What differs between the protocols of two summaries, one line each; runs may differ in model and sampling.

    Two results with any difference here are not to be compared.

    Examples:
        >>> protocol_differences({"num_members": 8, "model": "a"}, {"num_members": 4, "model": "b"})
        ['num_members: 8 and 4']
    """
    found = []
    for key in sorted({*first, *second}):
        one, other = first.get(key), second.get(key)
        if prefix + key in _NOT_PROTOCOL:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += protocol_differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {one!r} and {other!r}")
    return found


def format_comparison(comparison: Comparison) -> str:
    """A table for the terminal, or the objections."""
    if comparison.objections:
        shown = comparison.objections[:_MOST_OBJECTIONS]
        more = len(comparison.objections) - len(shown)
        lines = [f"{comparison.first} and {comparison.second} are not compared:", *shown]
        return "\n  ".join([*lines, f"and {more} more"] if more else lines)
    rows = [["over all lead times", comparison.first, comparison.second, "difference", "95 % interval", ""]]
    for score in comparison.scores:
        numbers = (f"{value:.4g}" for value in (score.first, score.second))
        interval = f"[{score.lower:+.3g}, {score.upper:+.3g}]"
        mark = "significant" if score.is_significant else ""
        rows.append([score.score, *numbers, f"{score.difference:+.3g}", interval, mark])
    lines = [aligned(rows), f"intervals: {comparison.intervals}", comparison.caution]
    return "\n".join(line for line in lines if line)


def _cases_differ(one: dict, other: dict) -> str:
    only = sorted(set(one.items()) ^ set(other.items()), key=lambda item: (int(item[0]), item[1]))
    number, key = only[0]
    return f"other cases: {len(one)} and {len(other)}, case {number} ({key}) is in one only or has another key"
