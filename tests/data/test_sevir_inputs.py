"""SEVIR's catalogue and files as people have them: other layouts, thinned, with gaps, rewritten by pandas and Excel."""

import csv
import fcntl
import io
import re
from contextlib import contextmanager
from datetime import datetime

import h5py
import numpy as np
import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import LeftOut
from dydiff_dist.data.sources.sevir import SevirSource, SevirSourceConfig
from dydiff_dist.data.sources.sevir_catalogue import read_catalogue
from dydiff_dist.evaluation.rain import RAIN_PRESETS

FILE = "vil/2019/events.h5"
NUM_EVENTS = 4


def offsets(step=5, gap_after=None, gap=20):
    minutes = np.arange(-120, 125, step)
    if gap_after is not None:
        minutes[gap_after:] += gap
    return ":".join(map(str, minutes))


def rows(num_events=NUM_EVENTS, **cells):
    """Rows of the catalogue; ``cells`` replace those of every event."""
    return [
        {
            "id": f"S{900000 + n}",
            "file_name": FILE,
            "file_index": str(n),
            "img_type": "vil",
            "time_utc": f"2019-0{n + 1}-10 12:00:00",
            "minute_offsets": offsets(),
            "size_x": "12",
            "size_y": "12",
            "pct_missing": "0.0",
            **cells,
        }
        for n in range(num_events)
    ]


def pixels(num_events=NUM_EVENTS, num_frames=49, side=12):
    """(N, H, W, T); below 255, which means missing."""
    return np.random.default_rng(0).integers(0, 255, (num_events, side, side, num_frames), dtype=np.uint8)


def write(root, table, frames=None, ids=True, encoding="utf-8", delimiter=","):
    """A catalogue and its HDF5 file; ``ids`` may be values of their own."""
    (root / "data" / FILE).parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(table)
    (root / "CATALOG.csv").write_bytes(text.getvalue().encode(encoding))
    frames = pixels() if frames is None else frames
    with h5py.File(root / "data" / FILE, "w") as file:
        file["vil"] = frames
        if ids is not False:
            file["id"] = [f"S{900000 + n}".encode() for n in range(len(frames))] if ids is True else ids
    return root


def source(root, **options):
    return SevirSource(SevirSourceConfig(root=str(root), **{"window_frames": 9, "window_step": 10, **options}))


def samples(root, **options):
    """(meta, frames (S, H, W)) of all samples."""
    found = source(root, **options)
    results = [result for task in found.plan() for result in found.read(task)]
    assert not [result for result in results if not hasattr(result, "frames")], results
    return [(result.meta, result.frames[:, 0]) for result in results]


def reasons(root, **options):
    """Of what a conversion rejects, by name."""
    found = source(root, **options)
    results = [result for task in found.plan() for result in (*found.read(task), *task.aside)]
    return {result.name: result.reason for result in results if not hasattr(result, "frames")}


def check_windows(root, frames, **options):
    """All windows are slices of (N, H, W, T)."""
    found = samples(root, **options)
    assert len(found) == NUM_EVENTS * 5
    for meta, window in found:
        event = frames[int(meta["event"][-1])]
        assert np.array_equal(window, np.moveaxis(event, -1, 0)[meta["start"] : meta["start"] + 9])


def test_files_with_time_first_are_read_as_what_they_are(tmp_path):
    write(tmp_path, rows(), pixels().transpose(0, 3, 1, 2))
    check_windows(tmp_path, pixels())


def test_a_cube_that_may_be_either_way_round_asks_for_the_layout(tmp_path):
    cube = pixels(side=49)
    write(tmp_path, rows(size_x="49", size_y="49"), cube)
    (reason,) = set(reasons(tmp_path).values())
    assert "may have the time first or last; give --layout time_last" in reason
    check_windows(tmp_path, cube, layout="time_last")
    check_windows(tmp_path, cube.transpose(0, 2, 3, 1), layout="time_first")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (pixels(num_frames=25), "it holds 25 frames of 12×12, the catalogue says 49 of 12×12; if every second frame"),
        (pixels(side=4), "it holds 49 frames of 4×4, the catalogue says 49 of 12×12; if every single frame was kept"),
        (pixels(num_frames=40), "it holds 40 frames of 12×12, the catalogue says 49 of 12×12$"),
        (pixels()[:, :, :, 0], "four axes are expected"),
        (pixels(num_events=2), "the catalogue says event 2 of the file, which holds 2"),
    ],
)
def test_what_the_catalogue_does_not_say_is_named(tmp_path, frames, message):
    write(tmp_path, rows(), frames)
    found = reasons(tmp_path)
    assert all(re.search(message, reason) for name, reason in found.items() if "S900002" in name) and found


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (pixels() / np.float32(255), "its vil are fractions, SEVIR stores whole numbers"),
        (pixels().astype(np.int16) - 1, "its vil run from -1 to 253, SEVIR's from 0 to 254"),
        (pixels().astype(np.int16) * 4, "its vil run from 0 to 1016"),
    ],
)
def test_values_that_are_not_sevirs_are_refused(tmp_path, frames, message):
    write(tmp_path, rows(), frames)
    assert all(message in reason for reason in reasons(tmp_path).values()) and reasons(tmp_path)


def test_whole_numbers_of_any_type_are_taken(tmp_path):
    for name, dtype in (("float", "f4"), ("big_endian", ">i2")):
        write(tmp_path / name, rows(), pixels().astype(dtype))
        check_windows(tmp_path / name, pixels())


@pytest.mark.parametrize("ids", [True, False])
def test_prediffs_thinned_files_with_the_options_that_say_so(tmp_path, ids):
    """Every second frame, 3×3 pixels in one, the catalogue as it was; without names of the events too."""
    thin = pixels()[:, ::3, ::3, ::2]
    write(tmp_path, rows(), thin, ids=ids)
    (reason,) = set(reasons(tmp_path).values())
    assert "give --stored-stride 2 --stored-downsample 3" in reason
    options = {"stored_stride": 2, "stored_downsample": 3, "window_step": 10}
    found = samples(tmp_path, **options)
    assert len(found) == NUM_EVENTS * 4  # 17 frames of the catalogue from every tenth
    for meta, window in found:
        event, first = thin[int(meta["event"][-1])], meta["start"] // 2
        assert np.array_equal(window, np.moveaxis(event, -1, 0)[first : first + 9])
    made = source(tmp_path, **options)
    lines = made.summary(made.plan())
    assert any("at 10 minutes" in line for line in lines) and made.details() == {"frame_interval_minutes": 10}
    assert ("no names of events in the file, they are taken by their file_index" in lines[0]) == (not ids)


def test_a_preset_fits_whole_and_thinned_files(tmp_path):
    write(tmp_path / "lr", rows(), pixels()[:, ::3, ::3, ::2])
    write(tmp_path / "whole", rows(), np.repeat(np.repeat(pixels()[:, ::3, ::3], 3, 1), 3, 2))
    keys = []
    for name, options in (("lr", {"stored_stride": 2, "stored_downsample": 3}), ("whole", {})):
        config = SevirSourceConfig(
            root=str(tmp_path / name), preset="sevir-lr", valid_start=None, test_start=None, **options
        )
        made = SevirSource(config)
        keys.append([(s.key, s.frames.astype(int).sum()) for task in made.plan() for s in made.read(task)])
    assert keys[0] == keys[1] and len(keys[0]) == 3 * NUM_EVENTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stored_stride": 2, "time_stride": 3}, "time_stride 3 is no multiple of stored_stride 2"),
        ({"stored_downsample": 3, "downsample": 4}, "downsample 4 is no multiple of stored_downsample 3"),
    ],
)
def test_finer_than_the_files_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SevirSourceConfig(root="-", **options)


@pytest.mark.parametrize(("gap", "crossing"), [(20, 1), (5, 1), (0, 0)])
def test_no_window_crosses_a_gap_of_the_minute_offsets(tmp_path, gap, crossing):
    table = rows()
    table[1]["minute_offsets"] = offsets(gap_after=24, gap=gap)
    write(tmp_path, table)
    made = source(tmp_path)
    report = convert(made, tmp_path / "out")
    reason = "a window would cross a gap in the catalogue's minute_offsets"
    assert report.left_out == ({reason: crossing} if crossing else {})
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert len(shards) == NUM_EVENTS * 5 - crossing
    starts = [shards.read(shards.address(n), with_extras=True).meta for n in range(len(shards))]
    assert crossing == 0 or {"event": "S900001", "start": 20} not in starts


def test_events_at_another_interval_say_so(tmp_path):
    write(tmp_path, rows(minute_offsets=offsets(step=10)), pixels(num_frames=25))
    made = source(tmp_path)
    made.plan()
    assert made.details() == {"frame_interval_minutes": 10}


def test_missing_pixels_have_no_part_in_a_mean(tmp_path):
    frames = np.full((1, 12, 12, 49), 60, np.uint8)
    frames[0, 0, 0], frames[0, 0, 1], frames[0, 3:6, 3:6] = 255, 33, 255
    write(tmp_path, rows(1), frames)
    for window in (window for _, window in samples(tmp_path, downsample=3, max_pct_missing=50.0)):
        assert window[0, 0, 0] == np.float32((7 * 60 + 33) / 8) and window[0, 1, 1] == 255 and window[0, 2, 2] == 60
    made = source(tmp_path, downsample=3)
    results = [result for task in made.plan() for result in made.read(task)]
    assert len(results) == 5 and all(isinstance(result, LeftOut) for result in results)


def test_rewritten_catalogues_mean_the_same(tmp_path):
    """pandas: zones, floats, an index column; Excel: byte order mark, semicolons, decimal commas, German dates."""
    write(tmp_path / "plain", rows())
    expected = read_catalogue(tmp_path / "plain", "vil", 0.0).events
    assert expected[1].time == datetime(2019, 2, 10, 12) and expected[1].row == 1
    pandas = [
        {
            "": n,
            **row,
            "file_index": f"{n}.0",
            "time_utc": row["time_utc"] + "+00:00",
            "size_x": "12.0",
            "pct_missing": "",
        }
        for n, row in enumerate(rows())
    ]
    zulu = [dict(row, time_utc=row["time_utc"].replace(" ", "T") + "Z", minute_offsets="NaN") for row in rows()]
    shifted = [dict(row, time_utc=row["time_utc"].replace(" 12:00", "T14:00") + "+02:00") for row in rows()]
    excel = [
        dict(
            row,
            file_index=f"{n},0",
            pct_missing="0,0",
            size_x="12,0",
            time_utc=f"10.0{n + 1}.2019 12:00",
            file_name=FILE.replace("/", "\\"),
        )
        for n, row in enumerate(rows())
    ]
    for name, table, how in [
        ("pandas", pandas, {}),
        ("zulu", zulu, {}),
        ("shifted", shifted, {}),
        ("excel", excel, {"encoding": "utf-8-sig", "delimiter": ";"}),
        ("utf16", excel, {"encoding": "utf-16", "delimiter": "\t"}),
    ]:
        write(tmp_path / name, table, **how)
        found = read_catalogue(tmp_path / name, "vil", 0.0)
        assert found.events == expected and not found.aside, name
        check_windows(tmp_path / name, pixels())


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        ([b"900000", b"900001", b"900002", b"900003"], "{n}.0"),
        (np.arange(900000, 900004), "{n}"),
        (["S 900/000.é", "S 900/001.é", "S 900/002.é", "S 900/003.é"], "S 900/00{last}.é"),
        ([b"0900000", b"0900001", b"0900002", b"0900003"], "{n}"),
    ],
)
def test_names_of_any_kind(tmp_path, stored, listed):
    table = [dict(row, id=listed.format(n=900000 + n, last=n)) for n, row in enumerate(rows())]
    write(tmp_path, table, ids=stored)
    convert(source(tmp_path), tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "train")
    keys = [shards.read(shards.address(n)).key for n in range(len(shards))]
    assert len({key.rsplit("-", 1)[0] for key in keys}) == NUM_EVENTS and len(set(keys)) == 20
    assert shards.manifest.independent == "key_prefix"


def test_another_event_in_the_row_is_named(tmp_path):
    write(tmp_path, rows(), ids=[b"S900001", b"S900000", b"S900002", b"S900003"])
    assert set(reasons(tmp_path).values()) == {
        "row 0 holds event S900001, the catalogue says S900000",
        "row 1 holds event S900000, the catalogue says S900001",
    }


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"time_utc": ""}, "column time_utc: the time is missing"),
        ({"time_utc": "NaT"}, "column time_utc: the time is missing"),
        ({"time_utc": "2/3/2019 12:00"}, "column time_utc: '2/3/2019 12:00' may begin with the day or the month"),
        ({"time_utc": "43525.5"}, "column time_utc: '43525.5' is no time"),
        ({"file_index": "1.5"}, "column file_index: '1.5' is no whole number from 0 on"),
        ({"file_index": "-1"}, "column file_index: '-1' is no whole number"),
        ({"file_index": "nan"}, "column file_index: 'nan' is no whole number"),
        ({"file_index": "inf"}, "column file_index: 'inf' is no whole number"),
        ({"file_name": ""}, "column file_name: '' is no file below data/"),
        ({"file_name": "../../secret.h5"}, "is no file below data/"),
        ({"id": ""}, "column id: the event has no name"),
        ({"minute_offsets": "-120:x"}, "column minute_offsets: '-120:x' are no numbers"),
        ({"minute_offsets": "0:5:0"}, "column minute_offsets: '0:5:0' do not go forward in time"),
        ({"minute_offsets": "0:5:1e300"}, "column minute_offsets: they lead to no time of the calendar"),
        ({"minute_offsets": "+nan"}, "column minute_offsets: they lead to no time of the calendar"),
        ({"time_utc": "0001-01-01T00:00+05:00"}, "column time_utc: '0001-01-01T00:00+05:00' is no time"),
        ({"pct_missing": "much"}, "column pct_missing: 'much' is no number"),
        ({"size_x": "inf"}, "column size_x: 'inf' is no number"),
    ],
)
def test_a_row_that_is_not_clear_is_rejected_by_line_and_column(tmp_path, cells, message):
    table = rows()
    table[2].update(cells)
    write(tmp_path, table)
    found = reasons(tmp_path)
    assert list(found) == ["CATALOG.csv, line 4"] and message in found["CATALOG.csv, line 4"]
    assert len([result for task in source(tmp_path).plan() for result in source(tmp_path).read(task)]) == 15


def test_an_event_listed_twice_is_read_once(tmp_path):
    write(tmp_path, [*rows(), rows()[1]])
    report = convert(source(tmp_path), tmp_path / "out")
    assert [(item.name, item.reason) for item in report.not_read] == [
        ("S900001", "an event is listed twice in the catalogue")
    ]
    assert len(ShardSet.open(tmp_path / "out" / "train")) == 20
    write(tmp_path / "b", [*rows(), dict(rows()[1], file_index="3")])
    assert reasons(tmp_path / "b") == {
        "CATALOG.csv, line 6": "event S900001 stands in line 3 already, with another place or time"
    }


def test_events_whose_file_was_not_fetched_are_left_out_by_name(tmp_path):
    write(tmp_path, [*rows(), *(dict(row, id="N" + row["id"], file_name="vil/2020/none.h5") for row in rows())])
    report = convert(source(tmp_path), tmp_path / "out")
    assert [item.name for item in report.not_read][:1] == ["NS900000 in vil/2020/none.h5"] and not report.bad_items
    write(tmp_path / "b", rows(file_name="none.h5"))
    with pytest.raises(FileNotFoundError, match=r"holds none of the files that the catalogue names, like none\.h5"):
        source(tmp_path / "b").plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,img_type\nS1,vil\n", "has no column 'file_name', only id, img_type"),
        ("", "has no column 'id'"),
        ("x" * 10**6, r"has no column 'id', only x{100,200} … x{50,100}; restore it$"),
        (
            'id,file_name,file_index,img_type,time_utc\n"S1,a.h5,0,vil,2019-01-01\nS2,a.h5,1,vil,2019-01-01\n',
            "line 3: its quotes do not pair up",
        ),
        (
            'id,file_name,file_index,img_type,time_utc\n"S1,a.h5,0,vil,2019-01-01\n' + "S2,a.h5,1\n" * 20000,
            r"line \d+: its quotes do not pair up \(field larger than field limit \(131072\)\); restore it",
        ),
        (
            "id,file_name,file_index,img_type,time_utc\nS1,a.h5,0,vil,\n",
            "none of 1 events of type 'vil' can be read; CATALOG.csv, line 2: column time_utc: the time is missing",
        ),
    ],
)
def test_catalogues_that_cannot_be_read_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "CATALOG.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        source(tmp_path).plan()
    assert "\n" not in str(caught.value)


@contextmanager
def broken(path, how):
    """The file in some odd state, for the length of the block."""
    if how == "held by a writer":
        with open(path, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does in another process
            yield
        return
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-3000])
    elif how == "no HDF5":
        path.write_bytes(b"<html>not found</html>")
    else:
        with h5py.File(path, "r+") as file:
            del file["vil"]
            if how == "a group":
                file.create_group("vil/2019")
            elif how == "text":
                file["vil"] = ["a", "b", "c", "d"]
            elif how == "one name":
                del file["id"]
                file["vil"], file["id"] = pixels(), b"S900000"
    yield


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("held by a writer", "a process holds it open for writing"),
        ("cut off", "it is cut off"),
        ("no HDF5", "it is no HDF5 file"),
        ("a group", "'vil' is a group, not an array"),
        ("text", "'vil' holds object, not numbers"),
        ("absent", "it has no 'vil', only id"),
        ("one name", "scalar dataset"),
    ],
)
def test_odd_files_are_rejected_by_name(tmp_path, how, message):
    write(tmp_path, rows())
    with broken(tmp_path / "data" / FILE, how):
        made = source(tmp_path)
        made.summary(made.plan())
        found = reasons(tmp_path)
    assert len(found) == NUM_EVENTS and all(message in reason for reason in found.values())


def test_an_event_across_the_date_goes_by_its_own_time_or_by_that_of_its_windows(tmp_path):
    """Windows begin at -120, -70, -20, 30 and 80 minutes from the event's time and last 40."""
    times = ["2019-01-10 00:00:00", "2019-01-10 00:01:00"]
    write(tmp_path, [dict(row, time_utc=time) for row, time in zip(rows(2), times, strict=True)])
    for split_by, expected in (("window", {"train": [2, 2], "test": [2, 2]}), ("event", {"train": [5], "test": [5]})):
        made = source(tmp_path, split_by=split_by, test_start="2019-01-10T00:01")
        counts = {task.split: [len(item[3]) for item in task.items] for task in made.plan()}
        assert counts == expected


@pytest.mark.parametrize(("preset", "per_event"), [("sevir-lr", 3), ("cascast", 3), ("diffcast", 5), ("nowcastdit", 5)])
def test_presets_make_the_published_number_of_windows(tmp_path, preset, per_event):
    """All windows of an event go where its time does, also at the date itself; the scores know the same name."""
    times = ["2018-12-31 23:59:00", "2019-01-01 00:00:00", "2019-12-01 00:00:00"]
    write(tmp_path, [dict(row, time_utc=time) for row, time in zip(rows(3), times, strict=True)])
    made = SevirSource(SevirSourceConfig(root=str(tmp_path), preset=preset))
    counts = {task.split: [len(item[3]) for item in task.items] for task in made.plan()}
    assert counts == {split: [per_event] for split in ("train", "valid", "test")}
    protocol = RAIN_PRESETS[preset]
    assert sum(protocol.frames) == made.config.window_frames
    assert protocol.size == (384 // made.config.downsample,) * 2
