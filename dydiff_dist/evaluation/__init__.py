"""Evaluation on plain arrays: scores of single cases, their exact aggregation, baselines, tables and pictures."""

from dydiff_dist.evaluation.baselines import Climatology, persistence
from dydiff_dist.evaluation.evaluate import Evaluation, ForecastCase, evaluate
from dydiff_dist.evaluation.report import format_table, write_summary
from dydiff_dist.evaluation.scores import case_scores, crps
from dydiff_dist.evaluation.table import ScoreTable

__all__ = [
    "Climatology",
    "Evaluation",
    "ForecastCase",
    "ScoreTable",
    "case_scores",
    "crps",
    "evaluate",
    "format_table",
    "persistence",
    "write_summary",
]
