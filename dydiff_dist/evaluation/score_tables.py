"""Scores as text tables for the terminal."""

from collections.abc import Mapping, Sequence

import numpy as np

from dydiff_dist.evaluation.colors import FORECASTERS
from dydiff_dist.evaluation.evaluate import FORECAST, FVD, Evaluation

MAIN_SCORES = ("crps", "mse")
_MOST_BASELINES = 2
"""With more of them the lines of a table by lead time hold one score."""


def format_table(evaluation: Evaluation) -> str:
    """CRPS (and MSE where it fits) by lead time: ours, the baselines, and ours over each (below 1 is better)."""
    names = list(evaluation.tables)
    scores = MAIN_SCORES if len(names) - 1 <= _MOST_BASELINES else MAIN_SCORES[:1]
    labels = [FORECASTERS[name].short for name in names]
    header = ["lead", *[*labels, *(f"/{label}" for label in labels[1:])] * len(scores)]
    tables = evaluation.tables
    columns = {(score, name): tables[name].by_lead(score) for score in scores for name in names}
    overall = {(score, name): tables[name].overall(score) for score in scores for name in names}
    rows = [
        [f"+{lead + 1}", *_cells({key: values[lead] for key, values in columns.items()}, scores, names)]
        for lead in range(evaluation.num_leads)
    ]
    return _grouped([header, *rows, ["all", *_cells(overall, scores, names)]], [score.upper() for score in scores])


def format_more_scores(evaluation: Evaluation) -> str:
    """All scores over all lead times, a line each, ours beside the baselines; undefined ones as "-"."""
    overall = {name: evaluation.overall(name) for name in evaluation.tables}
    scores = evaluation.scores
    if evaluation.clips:
        scores.append(FVD)
        for name in overall:
            overall[name][FVD] = np.array(evaluation.fvd(name))
    rows = [["over all lead times", *(FORECASTERS[name].short for name in overall)]]
    for score in scores:
        values = [float(terms[score]) for terms in overall.values()]
        if not np.isnan(values[0]):
            rows.append([score, *("-" if np.isnan(value) else _number(value) for value in values)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns, the first one flush left and the others flush right.

    Examples:
        >>> print(aligned([["score", "ours"], ["crps", "1.25"]]))
        score  ours
        crps   1.25
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def _cells(values: Mapping[tuple[str, str], float], scores: Sequence[str], names: Sequence[str]) -> list[str]:
    cells = []
    for score in scores:
        ours = values[score, FORECAST]
        cells += [_number(values[score, name]) for name in names]
        cells += [f"{ours / values[score, name]:.3f}" if values[score, name] else "-" for name in names[1:]]
    return cells


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def _grouped(rows: list[list[str]], groups: list[str]) -> str:
    """Right-aligned columns under the names of their groups, with rules below the header and above the last row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    per_group = (len(widths) - 1) // len(groups)

    def line(row: list[str]) -> str:
        cells = list(map(str.rjust, row, widths))
        parts = ["  ".join(cells[1 + g * per_group : 1 + (g + 1) * per_group]) for g in range(len(groups))]
        return " | ".join([cells[0], *parts])

    lines = [line(row) for row in rows]
    rule = "".join("+" if mark == "|" else "-" for mark in lines[0])
    starts = [place + 2 for place, mark in enumerate(lines[0]) if mark == "|"]
    title = ""
    for start, group in zip(starts, groups, strict=True):
        title = title.ljust(start) + group
    return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1]])
