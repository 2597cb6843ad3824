"""Weather stores in the orders and names in which they are met, read back value for value."""

import functools
import http.server
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_all_options import files

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.weather import WeatherSource, WeatherSourceConfig

xarray = pytest.importorskip("xarray", reason="xarray is an extra")
pytest.importorskip("zarr", reason="zarr is an extra")

LATITUDES = np.array([67.5, 22.5, -22.5, -67.5])
NAMES = ("2m_temperature", "geopotential_500", "geopotential_850")


def era5(num_times=24, start="2019-12-30", num_columns=8, seed=0):
    """Fields as WeatherBench 2 names them, (time, level, latitude 90 to -90, longitude)."""
    rng = np.random.default_rng(seed)
    axes = {
        "time": np.datetime64(start, "ns") + np.arange(num_times) * np.timedelta64(6, "h"),
        "level": [500, 700, 850],
        "latitude": LATITUDES,
        "longitude": np.arange(num_columns) * 45.0,
    }
    shape = [len(axis) for axis in axes.values()]
    surface = rng.normal(280, 10, [shape[0], *shape[2:]]).astype(np.float32)
    fields = {
        "geopotential": (tuple(axes), rng.normal(5e4, 1e3, shape).astype(np.float32), {"units": "m**2 s**-2"}),
        "2m_temperature": (("time", "latitude", "longitude"), surface, {"units": "K"}),
    }
    return xarray.Dataset(fields, axes)


def frames_of(data, start, num_frames=4, stride=1):
    """(S, C, H, W) of a window, by plain xarray."""
    first = int(np.flatnonzero(data.time.values == np.datetime64(start))[0])
    window = data.isel(time=slice(first, first + num_frames * stride, stride)).sortby("latitude", ascending=False)
    axes = ("time", "latitude", "longitude")
    channels = [window["2m_temperature"], *(window.geopotential.sel(level=level) for level in (500, 850))]
    return np.stack([channel.transpose(*axes).values for channel in channels], axis=1)


def source(*root, **options):
    usual = {"variables": ("2m_temperature", "geopotential:500,850"), "num_frames": 4}
    return WeatherSource(WeatherSourceConfig(root=tuple(map(str, root)), **{**usual, **options}))


def samples(folder, made, split="train", **settings):
    convert(made, folder, **settings)
    shards = ShardSet.open(folder / split, check="sha256")
    return {s.key: s.frames for s in (shards.read(shards.address(number)) for number in range(len(shards)))}


def chunked(data, *, times=4):
    return {name: {"chunks": (times, *data[name].shape[1:])} for name in data.data_vars}


def wb2(data, path):
    data.to_zarr(path, zarr_format=2)


def longitude_first(data, path):
    data.transpose("time", "level", "longitude", "latitude").isel(latitude=slice(None, None, -1)).to_zarr(path)


def level_first(data, path):
    data.transpose("level", "latitude", "time", "longitude").to_netcdf(path, engine="h5netcdf")


def copernicus(data, path):
    names = {"time": "valid_time", "level": "pressure_level"}
    data.rename(names).expand_dims(number=[0]).to_netcdf(path, engine="h5netcdf")


def by_standard_name(data, path):
    renamed = data.rename(time="t", latitude="a", longitude="o", level="p")
    for name, standard in (("t", "time"), ("a", "latitude"), ("o", "longitude"), ("p", "air_pressure")):
        renamed[name].attrs["standard_name"] = standard
    renamed.to_netcdf(path, engine="h5netcdf")


def netcdf3(data, path):
    data.to_netcdf(path, format="NETCDF3_64BIT", engine="scipy")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (wb2, "era5.zarr"),
        (longitude_first, "era5.zarr"),
        (level_first, "era5.nc"),
        (copernicus, "cds.nc"),
        (by_standard_name, "named.nc"),
        (netcdf3, "old.nc"),
    ],
)
def test_every_order_of_the_axes_gives_the_same_samples(tmp_path, write, name):
    data = era5()
    write(data, tmp_path / name)
    made = source(tmp_path / name, window_step=3)
    found = samples(tmp_path / "out", made)
    assert list(found)[:3] == ["201912-30T0000", "201912-30T1800", "201912-31T1200"] and len(found) == 7
    for key, frames in found.items():
        start = f"{key[:4]}-{key[4:6]}-{key[7:12]}:{key[12:]}"
        assert np.array_equal(frames, frames_of(data, start)), key
    schema = ShardSet.open(tmp_path / "out" / "train").schema
    assert schema.channels == NAMES and schema.latitudes == tuple(LATITUDES) and schema.dtype == "float32"
    assert schema.units == "K, m**2 s**-2, m**2 s**-2" and schema.allowed_augmentations == ("periodic_shift_w",)


def test_packed_values_are_unpacked_and_missing_ones_named(tmp_path):
    data = era5()
    data["2m_temperature"][5, 2, 3] = np.nan
    packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}
    data.to_netcdf(tmp_path / "packed.nc", engine="h5netcdf", encoding={"2m_temperature": packed})
    made = source(tmp_path / "packed.nc")
    report = convert(made, tmp_path / "out", max_bad_rate=1.0)
    (bad,) = report.bad_items
    assert bad.name == "window 2019-12-31T00:00"
    assert bad.reason == "1 of 384 values are missing, NaN or infinite, the first in 2m_temperature at 2019-12-31T06:00"
    found = samples(tmp_path / "out", made, max_bad_rate=1.0)
    assert len(found) == 5
    np.testing.assert_allclose(found["201912-30T0000"], frames_of(data, "2019-12-30"), atol=0.0051, rtol=1e-7)


def with_sea(land_gap=None):
    """Fields and a sea temperature that is NaN over two pixels of land; and at one time, over ``land_gap``."""
    data = era5()
    sea = data["2m_temperature"].copy(deep=True)
    sea[:, 1, 2:4] = np.nan
    if land_gap is not None:
        sea[5][land_gap] = np.nan
    data["sea_surface_temperature"] = sea
    return data


SEA = {"variables": ("2m_temperature", "sea_surface_temperature")}


@pytest.mark.parametrize("write", [wb2, netcdf3])
def test_a_field_of_the_sea_takes_the_value_that_is_given_over_land(tmp_path, write):
    data, path = with_sea(land_gap=(2, 5)), tmp_path / ("sea.zarr" if write is wb2 else "sea.nc")
    write(data, path)
    made = source(path, **SEA, fill=(271.5,))
    report = convert(made, tmp_path / "out", max_bad_rate=1.0)
    (bad,) = report.bad_items
    assert bad.name == "window 2019-12-31T00:00" and "1 of 256 values are missing, NaN or infinite, the" in bad.reason
    expected = data.fillna(271.5)
    for key, frames in samples(tmp_path / "out", made, max_bad_rate=1.0).items():
        first = int(
            np.flatnonzero(data.time.values == np.datetime64(f"{key[:4]}-{key[4:6]}-{key[7:12]}:{key[12:]}"))[0]
        )
        window = expected.isel(time=slice(first, first + 4))
        assert np.array_equal(frames, np.stack([window[name].values for name in SEA["variables"]], axis=1))


def test_without_a_value_for_land_the_line_says_which_option_gives_one(tmp_path):
    wb2(with_sea(), tmp_path / "sea.zarr")
    with pytest.raises(ValueError, match=r"8 of 256 values are missing, NaN or infinite, 2 pixels in all") as caught:
        convert(source(tmp_path / "sea.zarr", **SEA), tmp_path / "out", max_bad_rate=0.1)
    line = str(caught.value)
    assert "--fill VALUE takes a value there" in line and "\n" not in line
    with pytest.raises(ValueError, match=r"--fill has 3 values for 2 channels; give one, or one for each"):
        convert(source(tmp_path / "sea.zarr", **SEA, fill=(1.0, 2.0, 3.0)), tmp_path / "three", max_bad_rate=0.1)


def test_files_by_time_and_by_variable_make_one_catalogue(tmp_path):
    """Windows go on from file to file; whatever else lies beside them is named."""
    data = era5(40)
    (tmp_path / "in" / "surface").mkdir(parents=True)
    for year in (2019, 2020):
        of_year = data.sel(time=str(year))
        of_year[["2m_temperature"]].to_netcdf(tmp_path / "in" / "surface" / f"{year}.nc", engine="h5netcdf")
        of_year[["geopotential"]].to_netcdf(tmp_path / "in" / f"levels-{year}.nc", engine="h5netcdf")
    data[["geopotential"]].rename(geopotential="other").to_netcdf(tmp_path / "in" / "other.nc", engine="h5netcdf")
    (tmp_path / "in" / "README.txt").write_text("hello")
    made = source(tmp_path / "in", window_step=1)
    report = convert(made, tmp_path / "out")
    assert {item.reason for item in report.not_read} == {
        "it holds none of --variables",
        "files ending with .txt are not read",
    }
    found = samples(tmp_path / "out", made)
    assert len(found) == 37
    assert np.array_equal(found["201912-31T1200"], frames_of(data, "2019-12-31T12:00"))
    # an item is known by the files that hold its times, and by no others
    (item,) = made.plan()[0].items[:1]
    assert len(made.item_files(item)) == 4
    short = source(tmp_path / "in", num_frames=2, samples_per_shard=1)
    assert len(short.item_files(short.plan()[0].items[0])) == 2


def test_windows_lie_wholly_in_their_split_and_cross_no_gap(tmp_path):
    data = era5(40)
    data.isel(time=[n for n in range(40) if n not in (9, 10, 20)]).to_zarr(tmp_path / "gaps.zarr")
    made = source(
        tmp_path / "gaps.zarr",
        num_frames=3,
        time_stride=2,
        window_step=1,
        valid_start="2020-01-04",
        test_start="2020-01-06",
    )
    plan = made.plan()
    by_split = {}
    for task in plan:
        by_split.setdefault(task.split, []).extend(start for item in task.items for start in item[0])
    hours = {n: str(np.datetime64("2019-12-30T00:00") + np.timedelta64(6 * n, "h")) for n in range(40)}
    assert by_split["train"] == [hours[n] for n in (*range(5), *range(11, 16))]
    assert by_split["valid"] == [hours[n] for n in range(21, 24)]
    assert by_split["test"] == [hours[n] for n in range(28, 36)]
    lines = made.summary(plan)
    assert lines[0].startswith("3 channels (2m_temperature, geopotential_500, geopotential_850) of 4x8 pixels, round")
    assert lines[2] == f"valid: 3 windows that begin {hours[21]} to {hours[23]}"
    report = convert(made, tmp_path / "out")
    assert [item.name for item in report.not_read] == []
    short = source(tmp_path / "gaps.zarr", num_frames=8, test_start="2020-01-06")
    (aside,) = (item for task in short.plan() for item in task.aside)
    assert aside.reason == "the 7 times from it to a gap or end are no window" and aside.name.startswith("2020-01-04")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_lost_chunk_takes_the_windows_that_need_it_and_no_other(tmp_path, zarr_format):
    data, store = era5(), tmp_path / "era5.zarr"
    data.to_zarr(store, encoding=chunked(data), zarr_format=zarr_format)
    whole = samples(tmp_path / "whole", source(store))
    victim = store / "geopotential" / ("c/2/0/0/0" if zarr_format == 3 else "2.0.0.0")
    kept = victim.read_bytes()
    victim.write_bytes(kept[: len(kept) // 2])
    report = convert(source(store), tmp_path / "cut", max_bad_rate=1.0)
    assert [item.name for item in report.bad_items] == ["window 2020-01-01T00:00"]
    assert "era5.zarr" in report.bad_items[0].reason and "\n" not in report.bad_items[0].reason
    found = samples(tmp_path / "cut", source(store), max_bad_rate=1.0)
    assert whole.keys() - found.keys() == {"202001-01T0000"} and all(np.array_equal(found[k], whole[k]) for k in found)
    victim.unlink()
    report = convert(source(store), tmp_path / "lost", max_bad_rate=1.0)
    (bad,) = report.bad_items
    assert bad.name == "window 2020-01-01T00:00"
    assert "era5.zarr: chunks of 'geopotential' at 2020-01-01T00:00 are lost, cut off or were never" in bad.reason
    victim.write_bytes(kept)
    mended = samples(tmp_path / "lost", source(store))
    assert mended.keys() == whole.keys() and all(np.array_equal(mended[key], whole[key]) for key in whole)


def test_a_conversion_that_is_started_again_gives_the_same_bytes(tmp_path):
    """Whole, and with a shard, a manifest and a part of one lost; a changed file has the shards of its times anew."""
    data = era5(48)
    (tmp_path / "in").mkdir()
    for n in range(2):
        data.isel(time=slice(24 * n, 24 * n + 24)).to_netcdf(tmp_path / "in" / f"part{n}.nc", engine="h5netcdf")
    made = functools.partial(source, tmp_path / "in", samples_per_shard=2, test_start="2020-01-10")
    convert(made(), tmp_path / "whole")
    convert(made(), tmp_path / "again")
    (tmp_path / "again" / "train" / "train-000001.tar").unlink()
    (tmp_path / "again" / "train" / "manifest.json").unlink()
    (tmp_path / "again" / "train" / ".train-000001.tar.0123abcd.partial").write_bytes(b"half a shard")
    report = convert(made(), tmp_path / "again", num_processes=2)
    assert (report.num_written, report.num_reused) == (1, 6) and files(tmp_path / "again") == files(tmp_path / "whole")
    changed = data.isel(time=slice(24, 48)) + 1
    changed.to_netcdf(tmp_path / "in" / "part1.nc", engine="h5netcdf")
    report = convert(made(), tmp_path / "again")
    assert (report.num_written, report.num_reused) == (4, 3) and report.rewritten == {"their inputs changed": 4}
    convert(made(), tmp_path / "anew")
    assert files(tmp_path / "again") == files(tmp_path / "anew")


@pytest.fixture
def server(tmp_path):
    """URL of a web server of tmp_path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def put(memory, path):
    for each in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        memory.pipe(f"/weather/{each.relative_to(path.parent)}", each.read_bytes())


@pytest.mark.parametrize("place", ["memory", "http"])
def test_stores_elsewhere_are_read_and_known_by_their_metadata(tmp_path, server, place):
    data = era5()
    wb2(data[["geopotential"]], tmp_path / "levels.zarr")
    data[["2m_temperature"]].to_netcdf(tmp_path / "surface.nc", engine="h5netcdf")
    memory = fsspec.filesystem("memory")
    put(memory, tmp_path / "levels.zarr")
    put(memory, tmp_path / "surface.nc")
    root = "memory://weather" if place == "memory" else server
    made = functools.partial(source, f"{root}/levels.zarr", f"{root}/surface.nc")
    found = samples(tmp_path / "out", made())
    here = samples(tmp_path / "here", source(tmp_path / "levels.zarr", tmp_path / "surface.nc"))
    assert found.keys() == here.keys() and all(np.array_equal(found[key], here[key]) for key in here)
    assert convert(made(), tmp_path / "out").num_reused == 1
    (data[["2m_temperature"]] + 1).to_netcdf(tmp_path / "surface.nc", engine="h5netcdf", format="NETCDF4")
    with open(tmp_path / "surface.nc", "ab") as file:
        file.write(b" ")
    put(memory, tmp_path / "surface.nc")
    assert convert(made(), tmp_path / "out").rewritten == {"their inputs changed": 1}
    memory.rm("/weather", recursive=True)


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:pass-word@bucket/era5.zarr",
        "https://host/era5.zarr?token=pass-word",
        "file::s3://x:pass-word@b/e.zarr",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(address):
    with pytest.raises(ValueError) as caught:
        source(address)
    assert "give the plain URL" in str(caught.value)
    line = caught.value.errors()[0]["msg"]
    assert "pass-word" not in line


def test_chunks_that_would_pass_for_data_are_refused_elsewhere(tmp_path):
    import zarr

    group = zarr.open_group(tmp_path / "raw.zarr", mode="w", zarr_format=3)
    for name, values in (("time", np.arange(8)), ("lat", np.array([45.0, -45.0])), ("lon", np.arange(4) * 90.0)):
        axis = group.create_array(name, data=values, dimension_names=(name,))
        axis.attrs.update({"units": "days since 2020-01-01"} if name == "time" else {})
    group.create_array("t", data=np.ones((8, 2, 4), "f4"), chunks=(1, 2, 4), dimension_names=("time", "lat", "lon"))
    memory = fsspec.filesystem("memory")
    put(memory, tmp_path / "raw.zarr")
    made = functools.partial(source, "memory://weather/raw.zarr", variables=("t",))
    with pytest.raises(
        ValueError, match=r"'t' that were never written could not be told from data.*--absent-chunks fill"
    ):
        made().plan()
    assert len(samples(tmp_path / "out", made(absent_chunks="fill"))) == 2
    memory.rm("/weather", recursive=True)


def test_a_region_wraps_nowhere_and_a_projected_grid_has_no_latitudes(tmp_path):
    era5(num_columns=6).to_zarr(tmp_path / "region.zarr")
    made = source(tmp_path / "region.zarr")
    samples(tmp_path / "out", made)
    schema = ShardSet.open(tmp_path / "out" / "train").schema
    assert schema.allowed_augmentations == () and schema.latitudes == tuple(LATITUDES)
    data = era5().rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    data.to_netcdf(tmp_path / "projected.nc", engine="h5netcdf")
    found = samples(tmp_path / "projected", source(tmp_path / "projected.nc"))
    schema = ShardSet.open(tmp_path / "projected" / "train").schema
    assert schema.allowed_augmentations == () and schema.latitudes == ()
    assert np.array_equal(found["201912-30T0000"][:, 0], data["2m_temperature"].values[:4])


def test_a_field_without_time_is_the_same_in_every_frame(tmp_path):
    data = era5()
    data["orography"] = data["2m_temperature"][0].drop_vars("time")
    wb2(data, tmp_path / "era5.zarr")
    found = samples(tmp_path / "out", source(tmp_path / "era5.zarr", variables=("2m_temperature", "orography")))
    for frames in found.values():
        assert np.array_equal(frames[:, 1], np.broadcast_to(data.orography.values, (4, 4, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": ("2m_temprature",)}, "holds a variable '2m_temprature'"),
        ({"variables": ("geopotential:100",)}, "has no level 100; it has 500, 700, 850"),
        ({"variables": ("geopotential:low",)}, "write a name, or name:level,level"),
        ({"num_frames": 40}, "no window of 40 stored times lies wholly in the split 'train'"),
        ({"test_start": "2031-01-01"}, "in the split 'test'; the stores have 24 times from 2019-12-30T00:00 to"),
        ({"test_start": "soon"}, "test_start is 'soon'; write a time like"),
        ({"valid_start": "2020-02-01", "test_start": "2020-01-01"}, "give train, valid, test in order"),
        ({"root": ("two.zarr", "one.zarr")}, "'2m_temperature' at 2019-12-30T00:00 is in two.zarr, one.zarr; give one"),
        ({"root": ("one.zarr", "other.zarr")}, r"another grid \(4x6\)"),
        ({"root": ("nowhere",)}, "nowhere is not a folder"),
        ({"root": ("ensemble.nc",)}, "has an axis 'number' of 3, which is no time, level, latitude or longitude"),
        ({"root": ("noleap.nc",)}, "noleap.nc: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    roots = options.get("root", ("one.zarr",))
    writers = {
        "one.zarr": lambda path: wb2(era5(), path),
        "two.zarr": lambda path: wb2(era5(), path),
        "other.zarr": lambda path: wb2(era5(num_columns=6, start="2021-01-01"), path),
        "ensemble.nc": lambda path: era5().expand_dims(number=[0, 1, 2]).to_netcdf(path, engine="h5netcdf"),
        "noleap.nc": lambda path: noleap(path),
    }
    for name in roots:
        if name in writers:
            writers[name](Path(name))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        source(*roots, **{key: value for key, value in options.items() if key != "root"}).plan()
    assert "\n" not in str(caught.value)


def noleap(path):
    """A calendar without 29 February, as climate models have."""
    data = era5().drop_vars("time")
    data["time"] = ("time", np.arange(24) * 0.25, {"units": "days since 2020-02-20", "calendar": "noleap"})
    data.to_netcdf(path, engine="h5netcdf")


def test_without_its_packages_the_line_says_what_to_install(tmp_path, monkeypatch):
    wb2(era5(), tmp_path / "era5.zarr")
    monkeypatch.setattr("dydiff_dist.data.sources.weather_files.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need xarray, zarr; pip install 'dydiff_dist\[weather\]'"):
        source(tmp_path / "era5.zarr").plan()
