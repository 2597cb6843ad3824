"""Scores as people read them: a table for the terminal, a JSON file with its protocol."""

import json
from pathlib import Path

import numpy as np

from dydiff_dist.evaluation.evaluate import CLIMATOLOGY, FORECAST, PERSISTENCE, Evaluation
from dydiff_dist.evaluation.scores import spread_skill_ratio

_SCORES = ("crps", "mse")
_LABELS = {FORECAST: "ours", PERSISTENCE: "persist", CLIMATOLOGY: "climat"}


def format_table(evaluation: Evaluation) -> str:
    """CRPS and MSE by lead time: ours, the baselines, and ours over each of them (below 1 is better)."""
    names = list(evaluation.tables)
    labels = [_LABELS[name] for name in names] + [f"/{_LABELS[name]}" for name in names[1:]]
    header = ["lead", *labels * len(_SCORES)]
    columns = {(score, name): evaluation.tables[name].by_lead(score) for score in _SCORES for name in names}
    rows = [
        [f"+{lead + 1}", *_cells({key: values[lead] for key, values in columns.items()}, names)]
        for lead in range(len(columns[_SCORES[0], FORECAST]))
    ]
    overall = {(score, name): evaluation.tables[name].overall(score) for score in _SCORES for name in names}
    return _align([header, *rows, ["all", *_cells(overall, names)]], groups=[score.upper() for score in _SCORES])


def summary(evaluation: Evaluation) -> dict:
    """Everything as JSON types: protocol, cases, errors, scores by lead time and overall with 95 % intervals."""
    scores: dict[str, dict] = {}
    for name, table in evaluation.tables.items():
        scores[name] = {score: _score_summary(table, score) for score in table.names if table.values(score).ndim == 2}
        scores[name]["spread_skill_ratio"] = _spread_skill(evaluation, name)
    baselines = [name for name in evaluation.tables if name != FORECAST]
    return {
        "protocol": {**evaluation.protocol, "num_cases": evaluation.num_cases},
        "errors": {str(case): message for case, message in sorted(evaluation.errors.items())},
        "skill": {score: {name: evaluation.skill(name, score) for name in baselines} for score in _SCORES},
        "scores": scores,
    }


def write_summary(evaluation: Evaluation, path: Path) -> dict:
    """Writes ``summary`` as JSON and returns it; numbers that are undefined (a spread of one member) are null."""
    content = _without_nan(summary(evaluation))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def _score_summary(table, score: str) -> dict:
    lower, upper = table.interval(score)
    return {
        "overall": table.overall(score),
        "by_lead": table.by_lead(score).tolist(),
        "interval_95": [lower.tolist(), upper.tolist()],
    }


def _spread_skill(evaluation: Evaluation, name: str) -> dict:
    """√(variance / MSE) of sums over cases, not a mean of ratios."""
    table = evaluation.tables[name]
    num_members = evaluation.protocol["num_members"]
    if name != FORECAST:
        return {"overall": None, "by_lead": None}
    by_lead = spread_skill_ratio(table.by_lead("variance"), table.by_lead("mse"), num_members)
    overall = spread_skill_ratio(table.overall("variance"), table.overall("mse"), num_members)
    return {"overall": float(overall), "by_lead": by_lead.tolist()}


def _cells(values: dict, names: list[str]) -> list[str]:
    cells = []
    for score in _SCORES:
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
