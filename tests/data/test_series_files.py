"""Tables of series as people have them: understood where the meaning is clear, else refused by line and column."""

import gzip
import json
from datetime import datetime

import numpy as np
import pytest

from dydiff_dist.data.sources.series_files import read_json_lines, read_series, stack_targets

VALUES = np.array([[0.785, 1.611], [0.7818, 1.61], [-0.25, 1e-3], [0.5, 2.0]])
TEXT = "\n".join(",".join(map(str, row)) for row in VALUES.tolist()) + "\n"
DAYS = ["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"]


def with_first_column(cells, text=TEXT, delimiter=","):
    return "".join(f"{cell}{delimiter}{line}\n" for cell, line in zip(cells, text.splitlines(), strict=True))


GOOD = {
    "plain": TEXT,
    "byte order mark": "\ufeff" + TEXT,
    "windows line ends": TEXT.replace("\n", "\r\n"),
    "blanks": TEXT.replace(",", " "),
    "comma and blank": TEXT.replace(",", ", "),
    "tabs": TEXT.replace(",", "\t"),
    "semicolons, decimal commas": TEXT.replace(",", ";").replace(".", ","),
    "tabs, decimal commas": TEXT.replace(",", "\t").replace(".", ","),
    "header": "a,b\n" + TEXT,
    "quoted header": '"a","b"\n' + TEXT,
    "comments": "# rates\n" + TEXT + "\n\n",
    "dates": "date,a,b\n" + with_first_column(DAYS),
    "dates without header": with_first_column(DAYS),
    "dates as Autoformer's": "date,a,OT\n" + with_first_column([day.replace("-", "/") + " 0:00" for day in DAYS]),
    "dates as numbers": "date,a,b\n" + with_first_column([day.replace("-", "") for day in DAYS]),
    "seconds since 1970": "timestamp,a,b\n" + with_first_column([1577836800 + 86400 * n for n in range(4)]),
    "milliseconds since 1970": "ds,a,b\n" + with_first_column([1577836800000 + 86400000 * n for n in range(4)]),
    "german dates": "Zeit;a;b\n"
    + with_first_column(
        ["1.1.2020", "2.1.2020", "3.1.2020", "4.1.2020"], TEXT.replace(",", ";").replace(".", ","), ";"
    ),
    "dates and clock": "Date;Time;a;b\n"
    + with_first_column([f"{day};0:00:00" for day in DAYS], TEXT.replace(",", ";"), ";"),
    "delimiter at the end": TEXT.replace("\n", ",\n"),
    "delimiter at the end, header": "a,b,\n" + TEXT.replace("\n", ",\n"),
    "index of pandas": ",a,b\n" + with_first_column(range(4)),
    "dates with zone": "t,a,b\n" + with_first_column([f"{day} 00:00:00+00:00" for day in DAYS]),
    "latest first": "date,a,b\n" + "\n".join(with_first_column(DAYS).splitlines()[::-1]),
    "long": "item_id,timestamp,target\n"
    + "".join(f"{name},{day},{VALUES[t, d]}\n" for d, name in enumerate("ab") for t, day in enumerate(DAYS)),
    "long with numbered series": "unique_id,ds,y\n"
    + "".join(f"{d},{day},{VALUES[t, d]}\n" for t, day in enumerate(DAYS) for d in range(2)),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("packed", [False, True])
def test_dialects_are_understood(tmp_path, kind, packed):
    path = tmp_path / ("series.csv.gz" if packed else "series.csv")
    path.write_bytes(gzip.compress(GOOD[kind].encode()) if packed else GOOD[kind].encode())
    series = read_series(path)
    assert np.array_equal(series.values, VALUES)
    if "dat" in kind or "seconds" in kind or "long" in kind or "latest" in kind:
        assert series.times is not None and series.times[0] == datetime(2020, 1, 1) and len(series.times) == 4
        assert set(series.steps()) == {86400}


def test_utf_16_as_excel_writes_it(tmp_path):
    (tmp_path / "series.txt").write_bytes(GOOD["semicolons, decimal commas"].encode("utf-16"))
    assert np.array_equal(read_series(tmp_path / "series.txt").values, VALUES)


def test_gzips_name_without_gzip_and_gzip_without_its_name(tmp_path):
    (tmp_path / "unpacked.txt.gz").write_text(TEXT)
    (tmp_path / "packed.txt").write_bytes(gzip.compress(TEXT.encode()))
    for path in tmp_path.iterdir():
        assert np.array_equal(read_series(path).values, VALUES)


def test_what_was_understood_is_said(tmp_path):
    for kind, note in [
        ("header", "line 1 names the columns"),
        ("index of pandas", "column 1 counts the rows and is left out"),
        ("latest first", "the latest time comes first in the file: rows are turned round"),
        ("long", "a long table: 2 series of 4 times, 0 without a value"),
    ]:
        (tmp_path / "series.csv").write_text(GOOD[kind])
        series = read_series(tmp_path / "series.csv")
        assert note in series.notes and series.names == ("a", "b")


def test_a_header_of_pandas_that_numbers_the_columns(tmp_path):
    (tmp_path / "series.csv").write_text("0,1,2\n" + "0.5,0.25,0.125\n" * 3)
    assert read_series(tmp_path / "series.csv").values.shape == (3, 3)


def test_empty_cells_of_any_name_are_missing_values(tmp_path):
    cells = ["", "nan", "NaN", "NA", "null", "#N/A"]
    (tmp_path / "series.csv").write_text(
        "a,b\n1.5,2\n" * 1 + "".join(f"1.5,{cell}\n" for cell in cells) + "1.5,2\n" * 9
    )
    assert np.isnan(read_series(tmp_path / "series.csv").values[:, 1]).tolist() == [False] + [True] * 6 + [False] * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", r"is no column of numbers|has a header and no rows|holds no column"),
        ("1.5,2\n1.5,x\n1.5,2\n", "line 2, column 2: 'x' is no number; write one, or leave the cell empty"),
        ("a,b\n1.5,2\n1.5,1.000.000\n1.5,2\n", r"line 3, column 2 \(b\): '1.000.000' is no number"),
        ("1.5,2\n1.5\n1.5,2\n", "line 2: 1 cells where the first row has 2"),
        ("a,b,c\n1.5,2\n", "the header names 3 columns, line 2 has 2 cells"),
        ("a,town\n1.5,Delft\n2.5,Delft\n", r"line 2, column 2 \(town\): 'Delft' is no number and no time"),
        ("0,785500\n0,781800\n", "may be 2 whole numbers or fewer with a decimal comma; give --decimal point"),
        ("1,05,1,5\n2,5,2,10\n", "may be 4 whole numbers or fewer with a decimal comma"),
        ("date,a\n2020-01-02,1.5\n2020-01-01,2.5\n2020-01-03,2.5\n", "line 3: time does not go on from the row before"),
        ("date,a\n2020-01-01,1.5\n2020-01-01,2.5\n", "line 3: time does not go on from the row before"),
        ("date,a\n1/2/2020,1.5\n2/2/2020,2.5\n", r"column 1 \(date\): '1/2/2020' may begin with the day or the month"),
        ("ds,y\ninf,1.5\n1577836800,2.5\n", r"column 1 \(ds\): 'inf' is no time; write it like"),
        ("ds,y\n1577836800,1.5\n1e300,2.5\n", r"column 1 \(ds\): '1e300' is no time"),
        ("date,a\n2020-01-01,1.5\n,2.5\n", r"line 3, column 1 \(date\): the time is missing"),
        ("id,ds,y\na,2020-01-01,1.5\na,2020-01-01,2.5\n", "line 3: a second value of 'a' at 2020-01-01"),
        ("ds,end_time,y\n2020-01-01,2020-01-02,1.5\n", "has times in column 1 .* and column 2"),
        ("1.5,2\0\n", "is no text"),
        ("a,b,c\n1.5,,2\n1.5,,2\n", r"column 2 \(b\) has no value at all; leave it out"),
    ],
)
def test_what_is_not_clear_is_refused_by_its_place(tmp_path, text, message):
    (tmp_path / "series.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_series(tmp_path / "series.csv")
    assert "\n" not in str(caught.value) and "series.csv" in str(caught.value)


def test_the_option_decides_what_commas_mean(tmp_path):
    (tmp_path / "series.csv").write_text("0,785500\n0,781800\n")
    assert read_series(tmp_path / "series.csv", "comma").values.tolist() == [[0.7855], [0.7818]]
    assert read_series(tmp_path / "series.csv", "point").values.tolist() == [[0, 785500], [0, 781800]]
    (tmp_path / "named.csv").write_text("rate\n0,785500\n0,781800\n")
    assert read_series(tmp_path / "named.csv").values.tolist() == [[0.7855], [0.7818]]


def test_slashes_are_read_by_the_days_above_twelve(tmp_path):
    days = [f"{day}/1/2020" for day in range(10, 15)]
    (tmp_path / "series.csv").write_text("date,a\n" + "".join(f"{day},1.5\n" for day in days))
    assert read_series(tmp_path / "series.csv").times[0] == datetime(2020, 1, 10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(TEXT.encode() * 500, mtime=0)[:-40], "its gzip data are cut off or damaged"),
        (b"\x1f\x8b and then nothing", "its gzip data are cut off or damaged"),
        ("größe\n1,5\n".encode("latin-1"), "line 1: it is no UTF-8 text; store it as CSV in UTF-8"),
    ],
    ids=["cut gzip", "no gzip", "latin-1"],
)
def test_files_that_are_no_text_are_named(tmp_path, data, message):
    (tmp_path / "series.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_series(tmp_path / "series.csv")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"target": [1, 2]}, {"target": [[1, 2]]}], "line 2: 'target' has 2 axes"),
        ([{"target": [1, 2]}, {"value": 3}], "line 2: expected a JSON object with a list 'target'"),
        (
            [{"start": "2020-01-01", "target": [1, 2]}, {"start": "2020-01-02", "target": [1, 2]}],
            "variates of one series begin at different times, '2020-01-01' to '2020-01-02'",
        ),
        ([{"target": [1, 2]}, {"target": [1]}], "variates of 1 to 2 times"),
        ([{"target": [1, 2]}, {"target": [10**400, 2]}], "line 2: expected a JSON object with a list 'target'"),
    ],
)
def test_json_lines_that_do_not_fit_are_named(tmp_path, entries, message):
    (tmp_path / "series.jsonl").write_text("\n".join(map(json.dumps, entries)))
    with pytest.raises(ValueError, match=message):
        stack_targets(read_json_lines(tmp_path / "series.jsonl"), tmp_path / "series.jsonl")


def test_json_that_is_nested_too_deeply_is_named_too(tmp_path):
    (tmp_path / "series.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1: expected a JSON object"):
        read_json_lines(tmp_path / "series.json")


def test_an_error_does_not_repeat_a_whole_line(tmp_path):
    (tmp_path / "series.csv").write_text(f"1.5,2\n1.5,{'x' * 10**6}\n1.5,2\n")
    with pytest.raises(ValueError, match=r"line 2, column 2: 'x+ … x+' is no number") as caught:
        read_series(tmp_path / "series.csv")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_json_lines_with_nulls_and_a_byte_order_mark(tmp_path):
    (tmp_path / "series.json").write_text('\ufeff{"target": [1, null]}\n\n{"target": ["NaN", 4]}\n')
    np.testing.assert_array_equal(read_series(tmp_path / "series.json").values, [[1, np.nan], [np.nan, 4]])
