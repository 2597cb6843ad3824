"""Evaluation on plain arrays: scores of single cases, their exact aggregation, baselines, tables and pictures."""

from dydiff_dist.evaluation.baselines import Climatology, Persistence, RandomWalk, SeasonalNaive
from dydiff_dist.evaluation.case import ForecastCase, UnreadableCase
from dydiff_dist.evaluation.evaluate import Evaluation, evaluate
from dydiff_dist.evaluation.score_files import write_scores, write_summary
from dydiff_dist.evaluation.score_tables import format_table
from dydiff_dist.evaluation.scores import case_scores, crps
from dydiff_dist.evaluation.table import ScoreTable

__all__ = [
    "Climatology",
    "Evaluation",
    "ForecastCase",
    "Persistence",
    "RandomWalk",
    "ScoreTable",
    "SeasonalNaive",
    "UnreadableCase",
    "case_scores",
    "crps",
    "evaluate",
    "format_table",
    "write_scores",
    "write_summary",
]
