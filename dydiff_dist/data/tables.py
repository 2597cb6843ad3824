"""Text tables as people keep them: CSV of pandas, of Excel in any language, gzip files that a browser has unpacked.

What a cell means is taken where it is clear; where it is not, the error names the place and what to write.
"""

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dydiff_dist.quoting import quoted

GZIP_MAGIC = b"\x1f\x8b"
DELIMITERS = (";", "\t", "|", ",")
"""Those that stand for nothing else in numbers come first: beside them, a comma is a decimal mark."""
MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "nat", "null", "none", "-", "?"))
"""Cells without a value, in small letters."""

_DATE = re.compile(r"(\d{1,4})([/.-])(\d{1,2})\2(\d{1,4})(?:[ T]+(\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?))?")

Decimal = Literal["point", "comma"]


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed with gzip, whatever its name says."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP_MAGIC


def read_unpacked(path: Path) -> bytes:
    """The bytes of a file, without gzip's compression if it has any. Its name does not count: browsers unpack files and
    keep their ending.

    Raises:
        ValueError: compressed data that are cut off or damaged.
    """
    data = path.read_bytes()
    if data[:2] != GZIP_MAGIC:
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: its gzip data are cut off or damaged ({error}); fetch the file again") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark as Excel writes it, packed by gzip or not.

    Raises:
        ValueError: it is no such text; the line is named.
    """
    data = read_unpacked(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: it is no UTF-8 text; store it as CSV in UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text; give a text file")
    return text


def split_line(line: str, delimiter: str | None) -> list[str]:
    """The cells of a line without quotes and blanks around them; None splits at blanks, "" not at all.

    Raises:
        ValueError: a cell in quotes of more than 131072 characters, ``csv``'s limit.
    """
    if not delimiter:
        return line.split() if delimiter is None else [line.strip()]
    if '"' not in line:
        return [cell.strip() for cell in line.split(delimiter)]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error as error:
        raise ValueError(f"{quoted(line)} is no line of a table: {error}") from None


def find_delimiter(lines: Sequence[str]) -> str | None:
    """What separates the cells of these lines: the first of ``DELIMITERS`` that gives each line as many, else the one
    that most lines have; "" where a line is one cell; None where they are separated by blanks."""
    for delimiter in DELIMITERS:
        if len({len(split_line(line, delimiter)) for line in lines}) == 1 and delimiter in lines[0]:
            return delimiter
    if all(len(line.split()) > 1 for line in lines) and not any(_DATE.match(line.strip()) for line in lines):
        return None
    counts = {delimiter: sum(delimiter in line for line in lines) for delimiter in DELIMITERS}
    most = max(counts, key=lambda delimiter: counts[delimiter])
    return most if 2 * counts[most] >= len(lines) else ""


def parse_number(cell: str, decimal: Decimal = "point") -> float:
    """A number, NaN where the cell says that there is none.

    Raises:
        ValueError: it is neither.

    Examples:
        >>> parse_number("0,5", "comma"), parse_number("1e3"), parse_number("n/a")
        (0.5, 1000.0, nan)
    """
    if cell.strip().lower() in MISSING:
        return float("nan")
    return float(cell.replace(",", ".") if decimal == "comma" else cell)


def parse_integer(cell: str) -> int:
    """A whole number, also as pandas and Excel rewrite it.

    Raises:
        ValueError: it is none.

    Examples:
        >>> parse_integer("3"), parse_integer("3.0"), parse_integer("3,0")
        (3, 3, 3)
    """
    number = parse_number(cell, "comma")
    if not number.is_integer():  # nor are NaN and infinities
        raise ValueError(f"{quoted(cell)} is no whole number")
    return int(number)


def parse_time(text: str, day_first: bool | None = None) -> datetime:
    """A time in UTC without its zone: ISO 8601 with or without a zone, 2019/6/1 0:00 or 1.6.2019 00:00.

    Args:
        text: the time.
        day_first: whether 1/6/2019 is in June; None refuses such dates.

    Raises:
        ValueError: no time, or one that may be read in two ways.

    Examples:
        >>> parse_time("2019-01-01 01:00+02:00"), parse_time("26.8.2010 5:25")
        (datetime.datetime(2018, 12, 31, 23, 0), datetime.datetime(2010, 8, 26, 5, 25))
    """
    match = _DATE.fullmatch(text.strip())
    if match is None or (match[2] == "-" and len(match[1]) != 4):
        return _iso_time(text.strip())
    return _time_of(match, day_first)


def days_come_first(cells: Iterable[str]) -> bool | None:
    """Whether days stand before months in a column of dates with slashes; None where no day above 12 shows it."""
    matches = [match for cell in cells if (match := _DATE.fullmatch(cell.strip()))]
    slashed = [match for match in matches if match[2] == "/" and len(match[1]) < 3]
    if any(int(match[1]) > 12 for match in slashed):
        return True
    return False if any(int(match[3]) > 12 for match in slashed) else None


def parse_times(cells: Sequence[str]) -> list[datetime]:
    """A column of times as ``parse_time`` reads them; where one of them says whether days or months come first, it
    says so for all.

    Raises:
        ValueError: the first one that is no time, or two-fold in meaning.
    """
    day_first = days_come_first(cells)
    return [parse_time(cell, day_first) for cell in cells]


def parse_epoch_times(cells: Sequence[str]) -> list[datetime]:
    """A column of times as numbers since 1970: seconds, or thousandths, millionths or billionths of them, whichever
    lets the first time lie between 1973 and 5138.

    Raises:
        ValueError: the first one that leads to no time of the calendar.

    Examples:
        >>> parse_epoch_times(["1577836800000", "1577836800500"])
        [datetime.datetime(2020, 1, 1, 0, 0), datetime.datetime(2020, 1, 1, 0, 0, 0, 500000)]
    """
    first = float(cells[0])
    unit = 1000.0 ** max(0, int(math.log10(first) - 8) // 3) if 0 < first < math.inf else 1.0
    times = []
    for cell in cells:
        try:
            times.append(datetime.fromtimestamp(float(cell) / unit, UTC).replace(tzinfo=None))
        except (ValueError, OverflowError, OSError):
            raise _no_time(cell) from None
    return times


def _iso_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # in UTC it may lie before the year 1
        raise _no_time(text) from None


def _no_time(text: str) -> ValueError:
    return ValueError(f"{quoted(text)} is no time; write it like 2019-01-01 or 2019-01-01T12:00")


def _time_of(match: re.Match[str], day_first: bool | None) -> datetime:
    """A time from its parts; ``day_first`` decides between 1/2/2019 and 2/1/2019."""
    first, mark, second, third, clock = match.groups()
    year, month, day = (first, second, third) if len(first) == 4 else (third, second, first)
    if len(first) != 4 and mark == "/":
        if day_first is None:
            raise ValueError(f"{match[0]!r} may begin with the day or the month; write it like 2019-01-31")
        month, day = (second, first) if day_first else (first, second)
    if len(year) != 4:
        raise ValueError(f"{match[0]!r} has a year of {len(year)} digits; write it like 2019-01-31")
    hour, _, rest = (clock or "0:00").partition(":")
    return _iso_time(f"{year}-{int(month):02d}-{int(day):02d}T{int(hour):02d}:{rest}")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line that is not blank and no comment (#)."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line
