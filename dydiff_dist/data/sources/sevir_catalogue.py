"""SEVIR's CATALOG.csv, also as pandas and Excel rewrite it: one event of one image type a row."""

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path, PurePosixPath

from dydiff_dist.data.source import BadItem, LeftOut, reason_of
from dydiff_dist.data.sources.sevir_values import FIRST_FRAME_SEC, FRAME_SEC, LIGHTNING_SIDE, NUM_FRAMES
from dydiff_dist.data.tables import (
    DELIMITERS,
    MISSING,
    days_come_first,
    parse_integer,
    parse_number,
    parse_time,
    read_text,
    split_line,
)
from dydiff_dist.quoting import shortened

NEEDED = ("id", "file_name", "file_index", "img_type", "time_utc")
DEFAULT_OFFSETS = tuple((FIRST_FRAME_SEC + FRAME_SEC * number) / 60 for number in range(NUM_FRAMES))
"""Minutes of an event's frames from its time, where a row states none."""


@dataclass(frozen=True)
class SevirEvent:
    """One row of the catalogue."""

    event: str
    file: str
    """Relative to data/."""
    row: int
    """Index within the HDF5 dataset."""
    time: datetime
    """UTC, of offset 0."""
    minutes: tuple[float, ...]
    """Offset of each frame."""
    height: int | None
    """Pixels; None where the row does not say."""
    width: int | None

    def time_of(self, frame: int) -> datetime:
        """UTC, of a frame by its number."""
        return self.time + timedelta(minutes=self.minutes[frame])


@dataclass
class Catalogue:
    """The events of one image type."""

    events: list[SevirEvent] = field(default_factory=list)
    """In order of time."""
    aside: list[BadItem | LeftOut] = field(default_factory=list)
    """Rows that are not read, by line and column, with the reason."""

    def frame_interval(self) -> float:
        """Minutes between two frames, the usual ones of all events."""
        steps = [b - a for event in self.events for a, b in pairwise(event.minutes)]
        return sorted(steps)[len(steps) // 2] if steps else FRAME_SEC / 60


def read_catalogue(root: Path, image_type: str, max_pct_missing: float) -> Catalogue:
    """The events of an image type, without those that miss more pixels. Rows that cannot be read, or name an event a
    second time, go ``aside``.

    Raises:
        FileNotFoundError, ValueError: no such file, columns that are missing, or no row that can be read.
    """
    path = root / "CATALOG.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --root must be the folder that holds CATALOG.csv and data/")
    rows = [(line, row) for line, row in _rows(path) if row["img_type"].lower() == image_type]
    found = Catalogue()
    day_first = days_come_first(row["time_utc"] for _, row in rows)
    lines: dict[str, tuple[int, SevirEvent]] = {}
    for line, row in rows:
        try:
            if _number(row, "pct_missing", 0.0) > max_pct_missing:
                continue
            event = _event(row, day_first)
        except ValueError as error:
            found.aside.append(BadItem(f"CATALOG.csv, line {line}", reason_of(error), is_whole_input=True))
            continue
        if event.event not in lines:
            lines[event.event] = line, event
            continue
        first_line, first = lines[event.event]
        if event == first:
            found.aside.append(LeftOut("an event is listed twice in the catalogue", event.event))
        else:
            reason = f"event {event.event} stands in line {first_line} already, with another place or time"
            found.aside.append(BadItem(f"CATALOG.csv, line {line}", reason, is_whole_input=True))
    found.events = sorted((event for _, event in lines.values()), key=lambda event: (event.time, event.event))
    if not found.events:
        faults = [f"{item.name}: {item.reason}" for item in found.aside if isinstance(item, BadItem)]
        raise ValueError(
            f"{path} lists {len(rows)} events of type {image_type!r}, none with at most {max_pct_missing} percent "
            "missing; choose another --image-type or --max-pct-missing"
            if not faults
            else f"{path}: none of {len(rows)} events of type {image_type!r} can be read; {faults[0]}"
        )
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells by column) of all rows, whatever separates the cells."""
    text = read_text(path)
    header = text.split("\n", 1)[0]
    names = {delimiter: [name.lower() for name in split_line(header, delimiter)] for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda delimiter: len(set(NEEDED) & set(names[delimiter])))
    missing = [name for name in NEEDED if name not in names[delimiter]]
    if missing:
        held = shortened(", ".join(names[delimiter]))
        raise ValueError(f"{path} has no column {missing[0]!r}, only {held}; restore it")
    # strict: else a quote that does not end takes all rows after it for one cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        next(reader)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                padded = [cell.strip() for cell in cells] + [""] * (len(names[delimiter]) - len(cells))
                rows.append((reader.line_num, dict(zip(names[delimiter], padded, strict=False))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: its quotes do not pair up ({error}); restore it") from None
    return rows


def _event(row: Mapping[str, str], day_first: bool | None) -> SevirEvent:
    """The event of a row.

    Raises:
        ValueError: a cell that cannot be read, by its column.
    """
    file = PurePosixPath(row["file_name"].replace("\\", "/"))
    if not row["file_name"] or file.is_absolute() or ".." in file.parts:
        raise ValueError(f"column file_name: {row['file_name']!r} is no file below data/")
    if row["id"].lower() in MISSING:
        raise ValueError("column id: the event has no name")
    is_lightning = row["img_type"].lower() == "lght"
    event = SevirEvent(
        event=plain_id(row["id"]),
        file=file.as_posix(),
        row=0 if is_lightning else _index(row),
        time=_time(row, day_first),
        minutes=_offsets(row),
        height=LIGHTNING_SIDE if is_lightning else _side(row, "size_y"),
        width=LIGHTNING_SIDE if is_lightning else _side(row, "size_x"),
    )
    try:
        for frame in (0, -1):
            event.time_of(frame)
    except (ValueError, OverflowError):
        raise ValueError("column minute_offsets: they lead to no time of the calendar") from None
    return event


def plain_id(text: str) -> str:
    """A name as the files have it: pandas writes one that is a whole number as 900000.0."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", text)


def _index(row: Mapping[str, str]) -> int:
    try:
        index = parse_integer(row["file_index"])
    except ValueError:
        index = -1
    if index < 0:
        raise ValueError(f"column file_index: {row['file_index']!r} is no whole number from 0 on")
    return index


def _time(row: Mapping[str, str], day_first: bool | None) -> datetime:
    text = row["time_utc"]
    if text.lower() in MISSING:
        raise ValueError("column time_utc: the time is missing, so that no split can be chosen")
    try:
        return parse_time(text, day_first)
    except ValueError as error:
        raise ValueError(f"column time_utc: {error}") from None


def _offsets(row: Mapping[str, str]) -> tuple[float, ...]:
    text = row.get("minute_offsets", "")
    if text.lower() in MISSING:
        return DEFAULT_OFFSETS
    try:
        offsets = tuple(parse_number(part, "comma") for part in text.split(":"))
    except ValueError:
        raise ValueError(f"column minute_offsets: {text[:40]!r} are no numbers with : between them") from None
    if not all(a < b for a, b in pairwise(offsets)):
        raise ValueError(f"column minute_offsets: {text[:40]!r} do not go forward in time")
    return offsets


def _side(row: Mapping[str, str], column: str) -> int | None:
    """Pixels of a side; None where the row does not say."""
    side = _number(row, column, 0.0)
    return int(side) or None


def _number(row: Mapping[str, str], column: str, default: float) -> float:
    text = row.get(column, "")
    if text.lower() in MISSING:
        return default
    try:
        number = parse_number(text, "comma")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"column {column}: {text!r} is no number")
    return number
