"""Scores as people read them: a table for the terminal, a JSON file with its protocol."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dydiff_dist.evaluation.colors import FORECASTERS
from dydiff_dist.evaluation.evaluate import FORECAST, FVD, Evaluation
from dydiff_dist.evaluation.table import interval_95
from dydiff_dist.files import atomic_file, write_json

_SCORES = ("crps", "mse")
_MOST_BASELINES = 2
"""With more of them the lines of a table by lead time hold one score."""


def format_table(evaluation: Evaluation) -> str:
    """CRPS (and MSE where it fits) by lead time: ours, the baselines, and ours over each (below 1 is better)."""
    names = list(evaluation.tables)
    scores = _SCORES if len(names) - 1 <= _MOST_BASELINES else _SCORES[:1]
    labels = [FORECASTERS[name].short for name in names]
    header = ["lead", *[*labels, *(f"/{label}" for label in labels[1:])] * len(scores)]
    columns = {(score, name): evaluation.tables[name].by_lead(score) for score in scores for name in names}
    rows = [
        [f"+{lead + 1}", *_cells({key: values[lead] for key, values in columns.items()}, scores, names)]
        for lead in range(evaluation.num_leads)
    ]
    overall = {(score, name): evaluation.tables[name].overall(score) for score in scores for name in names}
    last = ["all", *_cells(overall, scores, names)]
    return _align([header, *rows, last], groups=[score.upper() for score in scores])


def format_more_scores(evaluation: Evaluation) -> str:
    """All scores over all lead times, a line each, ours beside the baselines; undefined ones as "-"."""
    names = list(evaluation.tables)
    overall = {name: evaluation.overall(name) for name in names}
    scores = [score for suite in evaluation.suites for score in suite.scores]
    if evaluation.clips:
        scores.append(FVD)
        for name in names:
            overall[name][FVD] = np.array(evaluation.fvd(name))
    rows = [["over all lead times", *(FORECASTERS[name].short for name in names)]]
    for score in scores:
        values = [float(overall[name][score]) for name in names]
        if not np.isnan(values[0]):
            rows.append([score, *("-" if np.isnan(value) else _number(value) for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    return "\n".join("  ".join(cells) for cells in lines)


def summary(evaluation: Evaluation) -> dict:
    """Everything as JSON types: protocol, cases, errors, scores and profiles by lead time and overall."""
    forecasters = list(evaluation.tables) if evaluation.num_cases else []
    baselines = [name for name in forecasters if name != FORECAST]
    return {
        "protocol": {**evaluation.protocol, **evaluation.resampling(), "num_cases": evaluation.num_cases},
        "errors": {str(case): message for case, message in sorted(evaluation.errors.items())},
        "cases": {str(case): key for case, key in sorted(evaluation.keys.items())},
        "skill": {score: {name: evaluation.skill(name, score) for name in baselines} for score in _SCORES},
        "scores": {name: _scores_of(evaluation, name) for name in forecasters},
        "profiles": {name: _profiles_of(evaluation, name) for name in forecasters},
    }


def write_summary(evaluation: Evaluation, path: Path) -> dict:
    """Writes ``summary`` as JSON and returns it; numbers that are undefined (a spread of one member) are null."""
    content = _without_nan(summary(evaluation))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content, allow_nan=False)
    return content


def write_draws(evaluation: Evaluation, path: Path) -> Path:
    """Writes all scores over all lead times of 1000 sets of resampled cases, ``FORECASTER/SCORE`` -> (1000,) float64.

    The same draw holds the same cases in every run that scored as many, so runs can be compared in pairs.
    """
    drawn = {
        f"{name}/{score}": values
        for name in evaluation.tables
        for score, values in evaluation.draws(name).overall.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **drawn)
    return path


def write_case_scores(evaluation: Evaluation, path: Path) -> Path:
    """Writes every case's own scores over all lead times as CSV: case, key, forecaster, then a column per score.

    A score that is a ratio of sums (CSI, say) is here that of the single case; their mean is not the score of all.
    """
    scores = [score for suite in evaluation.suites for score in suite.scores]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "key", "forecaster", *scores])
        for number, key in sorted(evaluation.keys.items()):
            for name in evaluation.tables:
                values = evaluation.of_case(name, number)
                cells = ["" if np.isnan(values[score]) else repr(float(values[score])) for score in scores]
                writer.writerow([number, key, name, *cells])
    return path


def protocol_differences(first: dict, second: dict, prefix: str = "") -> list[str]:
    """What differs between the protocols of two summaries, one line each; runs may differ in model and sampling.

    Two results with any difference here are not to be compared.
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


_NOT_PROTOCOL = ("model", "weights_sha256", "shards", "seed", "precision", "sampling", "intervals")
"""What a comparison is between, where things lie, or what follows from the rest."""


def _scores_of(evaluation: Evaluation, name: str) -> dict:
    by_lead, overall, draws = evaluation.by_lead(name), evaluation.overall(name), evaluation.draws(name)
    scores = {
        score: {
            "overall": float(overall[score]),
            "overall_interval_95": interval_95(draws.overall[score]).tolist(),
            "by_lead": by_lead[score].tolist(),
            "interval_95": interval_95(draws.by_lead[score]).tolist(),
        }
        for suite in evaluation.suites
        for score in suite.scores
    }
    if evaluation.clips:
        clips = {"num_real": len(evaluation.clips["truth"].all()), "num_forecast": len(evaluation.clips[name].all())}
        scores[FVD] = {"overall": evaluation.fvd(name), **clips}
    return scores


def _profiles_of(evaluation: Evaluation, name: str) -> dict:
    by_lead, overall = evaluation.by_lead(name), evaluation.overall(name)
    return {
        profile: {"overall": overall[profile].tolist(), "by_lead": by_lead[profile].tolist()}
        for suite in evaluation.suites
        for profile in suite.profiles
    }


def _cells(values: dict, scores: Sequence[str], names: list[str]) -> list[str]:
    cells = []
    for score in scores:
        cells += [_number(values[score, name]) for name in names]
        cells += [_ratio(values[score, FORECAST], values[score, name]) for name in names[1:]]
    return cells


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def _ratio(value: float, other: float) -> str:
    return f"{value / other:.3f}" if other else "-"


def _align(rows: list[list[str]], groups: list[str]) -> str:
    """Right-aligned columns under the names of their groups, with rules below the header and above the last row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    per_group = (len(widths) - 1) // len(groups)

    def line(row: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        parts = ["  ".join(cells[1 + g * per_group : 1 + (g + 1) * per_group]) for g in range(len(groups))]
        return " | ".join([cells[0], *parts])

    lines = [line(row) for row in rows]
    rule = "".join("+" if mark == "|" else "-" for mark in lines[0])
    starts = [place + 2 for place, mark in enumerate(lines[0]) if mark == "|"]
    title = ""
    for start, group in zip(starts, groups, strict=True):
        title = title.ljust(start) + group
    return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _without_nan(tree):
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
