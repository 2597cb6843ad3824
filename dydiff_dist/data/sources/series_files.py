"""Series from files: tables of any common dialect (LSTNet's text, CSV of pandas and Excel, long tables) and JSON lines
as GluonTS has them.

Letters: T times, D variates.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from dydiff_dist.data.tables import (
    MISSING,
    Decimal,
    find_delimiter,
    numbered_lines,
    parse_epoch_times,
    parse_number,
    parse_times,
    read_text,
    split_line,
)
from dydiff_dist.quoting import quoted, shortened

ID_NAMES = ("item_id", "unique_id", "series_id", "id", "series", "item", "variable")
"""Of the column that names the series, in long tables (GluonTS, Nixtla and others)."""
TIME_NAMES = ("date", "time", "timestamp", "datetime", "ds")
"""Of the column that holds the times, also where these are written as numbers."""
LOOKED_AT = 50
"""Rows from which the dialect of a table is taken."""

_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")


@dataclass(frozen=True)
class Series:
    """A multivariate series in memory."""

    values: np.ndarray
    """(T, D) float64; NaN where there is no value."""
    names: tuple[str, ...]
    """Of the variates."""
    places: tuple[str, ...]
    """Of each time, for messages: the line of the file."""
    times: tuple[datetime, ...] | None = None
    """Of each row, where the file has them."""
    notes: tuple[str, ...] = ()
    """How the file was understood, a line each."""

    def steps(self) -> np.ndarray | None:
        """(T - 1,) seconds between rows; None without times."""
        if self.times is None:
            return None
        return np.diff(np.array(self.times, "datetime64[ms]")).astype(np.int64) / 1000


def read_series(path: Path, decimal: Decimal | None = None) -> Series:
    """A series, from a table with a row per time or JSON lines with a ``target`` per variate, by the file's name.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that is not clear; line and column are named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"series {path} does not exist; give another --train-file")
    if path.name.removesuffix(".gz").endswith((".json", ".jsonl")):
        targets = read_json_lines(path)
        return stack_targets(targets, path)
    return _read_table(path, read_text(path), decimal)


def _read_table(path: Path, text: str, decimal: Decimal | None) -> Series:
    lines = list(numbered_lines(text))
    if not lines:
        raise ValueError(f"{path} is empty")
    delimiter = find_delimiter([line for _, line in lines[1 : LOOKED_AT + 1]] or [lines[0][1]])
    shown = [split_line(line, delimiter) for _, line in lines[: LOOKED_AT + 1]]
    if delimiter == "," and decimal is None and len(shown[0]) == 1 and _are_halves(shown[1:]):
        decimal = "comma"  # a name, and under it numbers with a comma
    decimal = decimal or _decimal_mark(path, shown, delimiter)
    if delimiter == "," and decimal == "comma":
        delimiter = ""
        shown = [split_line(line, delimiter) for _, line in lines[: LOOKED_AT + 1]]
    has_header = any(
        cell.lower() not in MISSING and not _is_number(cell, decimal) and not _is_time(cell) for cell in shown[0]
    )
    return _Table(path, lines[has_header:], delimiter, decimal, shown[0] if has_header else None).read()


def _are_halves(rows: list[list[str]]) -> bool:
    """Whether each row is two whole numbers, as a decimal comma leaves of one."""
    return bool(rows) and all(len(row) == 2 and all(_is_whole(cell) for cell in row) for row in rows)


def _is_whole(cell: str) -> bool:
    return cell.lstrip("-").isdecimal()


def _decimal_mark(path: Path, rows: list[list[str]], delimiter: str | None) -> Decimal:
    """What separates whole numbers from fractions."""
    cells = [cell for row in rows for cell in row]
    if delimiter != ",":
        has_comma = any("," in cell and _is_number(cell, "comma") for cell in cells)
        return (
            "comma" if has_comma and not any("." in cell and _is_number(cell, "point") for cell in cells) else "point"
        )
    whole = all(_is_whole(cell) or cell.lower() in MISSING for row in rows[1:] for cell in row)
    is_doubtful = _are_halves(rows) or any(
        _is_whole(cell) and len(cell.lstrip("-")) > 1 and cell.lstrip("-")[0] == "0" for cell in cells
    )
    if whole and is_doubtful:
        raise ValueError(
            f"{path}: {quoted(','.join(rows[0]))} may be {len(rows[0])} whole numbers or fewer with a decimal comma; "
            "give --decimal point or --decimal comma"
        )
    return "point"


def _is_number(cell: str, decimal: Decimal) -> bool:
    try:
        return np.isfinite(parse_number(cell, decimal)) or cell.strip().lower() not in MISSING
    except ValueError:
        return False


def _is_time(cell: str) -> bool:
    try:
        parse_times([cell])
    except ValueError as error:
        return "day or the month" in str(error)
    return True


class _Table:
    """The rows of a table, of known dialect."""

    def __init__(
        self,
        path: Path,
        lines: list[tuple[int, str]],
        delimiter: str | None,
        decimal: Decimal,
        header: list[str] | None,
    ):
        self.path, self.lines, self.delimiter, self.decimal, self.header = path, lines, delimiter, decimal, header
        if not lines:
            raise ValueError(f"{path} has a header and no rows")
        self.width = len(self.cells(0))
        if header is not None and len(header) == self.width - 1:  # pandas and R leave out the name of the index
            self.header = ["", *header]
        elif header is not None and len(header) != self.width:
            raise ValueError(
                f"{path}: the header names {len(header)} columns, line {lines[0][0]} has {self.width} cells"
            )

    def cells(self, row: int) -> list[str]:
        """Of one row."""
        return split_line(self.lines[row][1], self.delimiter)

    def name(self, column: int) -> str:
        """Of a column, for messages."""
        known = self.header[column] if self.header is not None else ""
        return f"column {column + 1}" + (f" ({shortened(known)})" if known else "")

    def read(self) -> Series:
        """The series; a table that names a series in each row is turned into one with a column for each."""
        notes = [f"line {self.lines[0][0] - 1} names the columns"] if self.header is not None else []
        rows = [row for row in map(self.cells, range(min(LOOKED_AT, len(self.lines)))) if len(row) == self.width]
        columns = [[row[column] for row in rows] for column in range(self.width)]
        timed = [column for column, cells in enumerate(columns) if self._holds_times(column, cells)]
        clock = timed.pop() if len(timed) == 2 and all(map(_CLOCK.fullmatch, columns[timed[1]])) else None
        if len(timed) > 1:
            both = " and ".join(map(self.name, timed[:2]))
            raise ValueError(f"{self.path} has times in {both}; leave one of them")
        index = [
            column for column, cells in enumerate(columns) if column not in timed and self._is_index(column, cells)
        ]
        notes += [f"{self.name(column)} counts the rows and is left out" for column in index]
        rest = [column for column in range(self.width) if column not in (*timed, *index, clock)]
        numeric = [column for column in rest if self._holds_numbers(columns[column])]
        if self.header is None and len(numeric) == self.width > 2 and rows[0] == list(map(str, range(self.width))):
            notes.append(f"line {self.lines[0][0]} numbers the columns and is taken as a header")
            self.header, self.lines = rows[0], self.lines[1:]
        named = [column for column in rest if column not in numeric]
        values, texts = self._parse(numeric, [*timed, *named, *([] if clock is None else [clock])])
        if clock is not None:
            texts[timed[0]] = list(map(" ".join, zip(texts[timed[0]], texts.pop(clock), strict=True)))
        numeric, values = self._without_empty(numeric, values)
        times = self._times(texts.pop(timed[0]), timed[0]) if timed else None
        return self._arranged(numeric, values, times, texts, tuple(notes))

    def _without_empty(self, numeric: list[int], values: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Without a last column that has neither name nor value, as a delimiter at the end of each line leaves it."""
        empty = np.isnan(values).all(axis=0)
        if empty.any() and numeric[-1] == self.width - 1 and empty[-1] and (not self.header or not self.header[-1]):
            numeric, values, empty = numeric[:-1], values[:, :-1], empty[:-1]
        if empty.any():
            raise ValueError(
                f"{self.path}: {self.name(numeric[int(empty.argmax())])} has no value at all; leave it out"
            )
        return numeric, values

    def _holds_numbers(self, cells: list[str]) -> bool:
        """Whether most cells are numbers or empty; others are then errors, named one by one."""
        return 2 * sum(_is_number(cell, self.decimal) or cell.lower() in MISSING for cell in cells) > len(cells)

    def _holds_times(self, column: int, cells: list[str]) -> bool:
        """Whether a column is the rows' time: dates, or numbers under a name that says so."""
        if self.header is not None and self.header[column].lower() in TIME_NAMES:
            return True
        return all(_is_time(cell) and not _is_number(cell, self.decimal) for cell in cells)

    def _is_index(self, column: int, cells: list[str]) -> bool:
        """Whether a column without a name counts the rows, as pandas writes its index."""
        if self.header is None or self.header[column] not in ("", "Unnamed: 0") or not self._holds_numbers(cells):
            return False
        numbers = [parse_number(cell, self.decimal) for cell in cells]
        return all(after - before == 1 for before, after in pairwise(numbers))

    def _parse(self, numeric: Sequence[int], other: Sequence[int]) -> tuple[np.ndarray, dict[int, list[str]]]:
        """Numbers (T, len(numeric)), and the cells of the other columns."""
        values = np.empty((len(self.lines), len(numeric)))
        texts: dict[int, list[str]] = {column: [] for column in other}
        for row in range(len(self.lines)):
            cells = self.cells(row)
            if len(cells) != self.width:
                raise ValueError(
                    f"{self.path}, line {self.lines[row][0]}: {len(cells)} cells where the first row has {self.width}"
                )
            try:
                values[row] = [float(cells[column]) for column in numeric]  # the usual case, in a third of the time
            except ValueError:
                values[row] = [self._number(row, column, cells[column]) for column in numeric]
            for column in other:
                texts[column].append(cells[column])
        return values, texts

    def _number(self, row: int, column: int, cell: str) -> float:
        try:
            return parse_number(cell, self.decimal)
        except ValueError:
            raise ValueError(
                f"{self.path}, line {self.lines[row][0]}, {self.name(column)}: {quoted(cell)} is no number; write one, "
                "or leave the cell empty where there is none"
            ) from None

    def _times(self, cells: list[str], column: int) -> tuple[datetime, ...] | None:
        """The rows' times; None where the column only counts."""
        missing = next((row for row, cell in enumerate(cells) if cell.lower() in MISSING), None)
        if missing is not None:
            raise ValueError(f"{self.path}, line {self.lines[missing][0]}, {self.name(column)}: the time is missing")
        are_numbers = all(_is_number(cell, "point") for cell in cells) and not all(len(cell) == 8 for cell in cells)
        if are_numbers and float(cells[0]) < 1e8:  # seconds since 1970 were fewer until 1973
            return None
        try:
            return tuple(parse_epoch_times(cells) if are_numbers else parse_times(cells))
        except ValueError as error:
            raise ValueError(f"{self.path}, {self.name(column)}: {error}") from None

    def _arranged(
        self,
        numeric: list[int],
        values: np.ndarray,
        times: tuple[datetime, ...] | None,
        texts: dict[int, list[str]],
        notes: tuple[str, ...],
    ) -> Series:
        """The series, whichever way the table holds it."""
        places = tuple(f"line {number}" for number, _ in self.lines)
        names = [(self.header[c] if self.header else "") or f"variate_{number}" for number, c in enumerate(numeric)]
        ids = [place for place, name in enumerate(names) if name.lower() in ID_NAMES]
        if times is not None and not texts and len(ids) == 1 and len(names) == 2:  # names of series that are numbers
            texts = {numeric[ids[0]]: [f"{number:g}" for number in values[:, ids[0]]]}
            values, names = np.delete(values, ids[0], axis=1), [names[1 - ids[0]]]
        if len(texts) == 1 and times is not None and len(names) == 1:
            return _widened(self.path, values[:, 0], times, next(iter(texts.values())), places, notes)
        if texts:
            column, cells = next(iter(texts.items()))
            row = next(row for row, cell in enumerate(cells) if not _is_number(cell, self.decimal))
            raise ValueError(
                f"{self.path}, {places[row]}, {self.name(column)}: {quoted(cells[row])} is no number and no time; "
                "leave the column out (a long table has three: times, names of the series, values)"
            )
        if not names:
            raise ValueError(f"{self.path} holds no column of numbers")
        return _in_order(self.path, Series(values, tuple(names), places, times, notes))


def _widened(
    path: Path,
    values: np.ndarray,
    times: tuple[datetime, ...],
    ids: list[str],
    places: tuple[str, ...],
    notes: tuple[str, ...],
) -> Series:
    """A long table as one with a row per time and a column per series, in the order in which they first come."""
    columns = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    rows = {time: number for number, time in enumerate(sorted(set(times)))}
    wide = np.full((len(rows), len(columns)), np.nan)
    seen: dict[tuple[int, int], str] = {}
    for value, time, name, place in zip(values, times, ids, places, strict=True):
        cell = rows[time], columns[name]
        if cell in seen:
            raise ValueError(
                f"{path}, {place}: a second value of {quoted(name)} at {time}, after {seen[cell]}; leave one"
            )
        seen[cell] = place
        wide[cell] = value
    note = f"a long table: {len(columns)} series of {len(rows)} times, {np.isnan(wide).sum()} without a value"
    return Series(wide, tuple(columns), tuple(str(time) for time in rows), tuple(rows), (*notes, note))


def _in_order(path: Path, series: Series) -> Series:
    """The rows from the earliest to the latest: turned round where the whole file is, refused where they are mixed."""
    steps = series.steps()
    if steps is None or (steps > 0).all():
        return series
    if (steps < 0).all():
        return replace(
            series,
            values=series.values[::-1],
            places=series.places[::-1],
            times=series.times and series.times[::-1],
            notes=(*series.notes, "the latest time comes first in the file: rows are turned round"),
        )
    row = int(np.argmax(steps <= 0)) + 1
    raise ValueError(f"{path}, {series.places[row]}: time does not go on from the row before; sort the rows")


def read_json_lines(path: Path) -> list[tuple[str, np.ndarray]]:
    """(start, target (T,) float64) of each line; the start is "" where a line has none.

    Raises:
        FileNotFoundError, ValueError: no such file, or no such lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"series {path} does not exist")
    targets = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            values = [np.nan if value is None or value == "NaN" else value for value in entry["target"]]
            target = np.array(values, np.float64)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise ValueError(f"{path}, line {number}: expected a JSON object with a list 'target'") from None
        if target.ndim != 1:
            raise ValueError(f"{path}, line {number}: 'target' has {target.ndim} axes; a line holds one variate")
        targets.append((str(entry.get("start", "")), target))
    if not targets:
        raise ValueError(f"{path} is empty")
    return targets


def stack_targets(targets: Sequence[tuple[str, np.ndarray]], path: Path) -> Series:
    """Variates of the same times as columns.

    Raises:
        ValueError: they begin at different times or are not equally long.
    """
    starts = sorted({start for start, _ in targets})
    if len(starts) > 1:
        raise ValueError(
            f"{path}: variates of one series begin at different times, {quoted(starts[0])} to {quoted(starts[-1])}; "
            "cut them to the times that all of them have, null where there is no value"
        )
    lengths = sorted({len(target) for _, target in targets})
    if len(lengths) > 1:
        raise ValueError(
            f"{path}: variates of {lengths[0]} to {lengths[-1]} times in one series; make them equally long"
        )
    values = np.stack([target for _, target in targets], axis=1)
    names = tuple(f"variate_{number}" for number in range(len(targets)))
    return Series(values, names, tuple(f"time {number}" for number in range(len(values))))
