"""What a study leaves: one row per forecast of a trained model, and one per case, score and forecaster.

Letters: S lead times.
"""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dydiff_dist.evaluation.evaluate import FORECAST, Evaluation
from dydiff_dist.files import write_text
from dydiff_dist.study.kept_scores import SCORES

CASE_COLUMNS = ("arm", "seed", "forecast", "score", "part", "case", "key")
"""Leading columns of the rows by case; ``lead_1`` to ``lead_S`` follow."""
BASELINE_SEED = -1
"""Seed of the rows of baselines, which have none."""
RunKey = tuple[str, int, str]
"""(arm, seed, forecast): a row by run."""


@dataclass(frozen=True)
class CaseRow:
    """One term of one score of one case."""

    arm: str
    """Or the baseline: persistence, climatology."""
    seed: int
    """``BASELINE_SEED`` for baselines."""
    forecast: str
    score: str
    part: str
    """``value``, or ``scale`` of a score that is a ratio."""
    case: int
    key: str
    leads: np.ndarray = field(compare=False)
    """(S,) float64."""

    @property
    def identity(self) -> tuple[str, int, str, str, str, int]:
        """What no two rows of a table share."""
        return self.arm, self.seed, self.forecast, self.score, self.part, self.case


def case_rows(evaluation: Evaluation, scores: Iterable[str], *, arm: str, seed: int, forecast: str) -> list[CaseRow]:
    """The kept scores of an evaluation, of the forecast and of its baselines.

    Args:
        evaluation: of one forecast.
        scores: names in ``SCORES``.
        arm, seed, forecast: what was evaluated; baselines go by their own names and seed -1.
    """
    return [
        CaseRow(
            *((arm, seed) if forecaster == FORECAST else (forecaster, BASELINE_SEED)),
            forecast,
            score,
            part,
            case,
            key,
            leads,
        )
        for forecaster, table in evaluation.tables.items()
        for case, key in sorted(evaluation.keys.items())
        for score in scores
        for part, leads in SCORES[score].terms(table.cases[case]).items()
    ]


def write_case_rows(path: Path, rows: list[CaseRow]) -> None:
    """Writes rows by case, six significant digits each; the file appears complete or not at all."""
    num_leads = max((len(row.leads) for row in rows), default=0)
    header = [*CASE_COLUMNS, *(f"lead_{lead}" for lead in range(1, num_leads + 1))]
    table = ([*(getattr(row, name) for name in CASE_COLUMNS), *(f"{x:.6g}" for x in row.leads)] for row in rows)
    _write(path, header, table)


def read_case_rows(path: Path) -> list[CaseRow]:
    """Reads what ``write_case_rows`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no scores by case in {path}; run the study")
    with open(path, newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header[: len(CASE_COLUMNS)]) != CASE_COLUMNS:
            raise ValueError(f"{path} is not a table of scores by case; run the study again")
        return [_case_row(cells, path) for cells in reader]


def _case_row(cells: list[str], path: Path) -> CaseRow:
    try:
        arm, seed, forecast, score, part, case, key, *leads = cells
        values = np.array([float(x) for x in leads if x])
        return CaseRow(arm, int(seed), forecast, score, part, int(case), key, values)
    except ValueError as error:
        raise ValueError(f"{path}: row {cells[: len(CASE_COLUMNS)]}: {error}") from None


def write_run_rows(path: Path, rows: list[dict]) -> None:
    """Writes rows by run and forecast; columns are the keys of all rows in order of appearance."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    _write(path, header, ([row.get(key, "") for key in header] for row in rows))


def append_run_rows(path: Path, rows: list[dict]) -> None:
    """Adds rows to those of a file, which need not exist; rows without a column of the others have it empty."""
    write_run_rows(path, [*(read_run_rows(path) if path.is_file() else []), *rows])


def read_run_rows(path: Path) -> list[dict[str, str]]:
    """Reads what ``write_run_rows`` wrote, every value as text.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no runs in {path}; run the study")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def update_tables(
    folder: Path, name: str, run_rows: Sequence[dict], case_rows: Sequence[CaseRow], planned: Collection[RunKey]
) -> int:
    """Writes the tables of a study with what is new; rows that were not made anew stay as long as the study names them.

    So the runs themselves may be gone, or on another machine: what they left is in the tables.

    Args:
        folder: of the tables.
        name: of the study.
        run_rows: by run and forecast, at least one.
        case_rows: of the same forecasts, and of their baselines, which may be there several times.
        planned: (arm, seed, forecast) of everything that belongs to the study.

    Returns:
        how many run rows stayed from before.
    """
    runs, cases = folder / f"{name}_runs.csv", folder / f"{name}_cases.csv"
    new = {_run_key(row): row for row in run_rows}
    earlier = {_run_key(row): row for row in read_run_rows(runs)} if runs.is_file() else {}
    kept = {key for key in earlier if key in planned and key not in new}
    forecasts = {forecast for _, _, forecast in (*kept, *new)}
    made = {(row.arm, row.seed, row.forecast) for row in case_rows}
    new_cases: dict[tuple, CaseRow] = {}
    for row in case_rows:
        new_cases.setdefault(row.identity, row)
    old_cases = {row.identity: row for row in (read_case_rows(cases) if cases.is_file() else ())}
    kept_cases = {
        identity: row
        for identity, row in old_cases.items()
        if (key := (row.arm, row.seed, row.forecast)) in kept
        or (row.seed == BASELINE_SEED and row.forecast in forecasts and key not in made)
    }
    known = {**kept_cases, **new_cases}
    write_run_rows(runs, [new.get(key, row) for key, row in {**earlier, **new}.items() if key in kept or key in new])
    in_order = dict.fromkeys((*old_cases, *new_cases))  # rows keep their place, so that tables can be compared
    write_case_rows(cases, [known[identity] for identity in in_order if identity in known])
    return len(kept)


def _run_key(row: Mapping) -> RunKey:
    return row["arm"], int(row["seed"]), row["forecast"]


def _write(path: Path, header: list[str], rows: Iterable[list]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.getvalue())
