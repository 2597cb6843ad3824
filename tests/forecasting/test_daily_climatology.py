"""The climatology by day of the year as a baseline, against numpy, from stores as WeatherBench 2 has them."""

import gc
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.convert import convert
from dydiff_dist.data.sources.turbulence import TurbulenceConfig, TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.sources.weather import WeatherSource, WeatherSourceConfig
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.evaluate import evaluate
from dydiff_dist.forecasting.cases import CaseReader
from dydiff_dist.forecasting.daily_climatology import DailyClimatology

xarray = pytest.importorskip("xarray", reason="xarray is an extra")
pytest.importorskip("zarr", reason="zarr is an extra")

RNG = np.random.default_rng(0)
AXES = {"latitude": np.array([60.0, 0.0, -60.0]), "longitude": np.arange(4) * 90.0}
LEVELS = [500, 850]
STARTS = ("2019-12-29T00", "2020-02-27T12")
"""Of two stretches of weather: across a new year, and across a leap day."""


def field(dims: dict, name: str, level: bool) -> tuple:
    sizes = dims | ({"level": LEVELS} if level else {}) | AXES
    return tuple(sizes), RNG.normal(280, 9, [len(axis) for axis in sizes.values()]).astype(np.float32)


def of_weather(times: np.ndarray) -> "xarray.Dataset":
    fields = {"2m_temperature": field({"time": times}, "t", False), "z": field({"time": times}, "z", True)}
    return xarray.Dataset(fields, {"time": times, "level": LEVELS, **AXES})


def of_climate(hours: tuple[int, ...] = (0, 6, 12, 18)) -> "xarray.Dataset":
    dims = {"hour": np.array(hours), "dayofyear": np.arange(1, 367)}
    fields = {"2m_temperature": field(dims, "t", False), "z": field(dims, "z", True)}
    return xarray.Dataset(fields, {**dims, "level": LEVELS, **AXES})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CaseReader:
    """Windows of 8 frames, 12 hours apart, of which 3 are given and every second one is taken."""
    folder = tmp_path_factory.mktemp("weather")
    steps = np.arange(30) * np.timedelta64(6, "h")
    times = np.concatenate([np.datetime64(start, "ns") + steps for start in STARTS])
    of_weather(times).to_zarr(folder / "in.zarr")
    options = {"variables": ("2m_temperature", "z:850"), "num_frames": 8, "time_stride": 2, "window_step": 7}
    convert(WeatherSource(WeatherSourceConfig(root=(str(folder / "in.zarr"),), **options)), folder / "out")
    data = DataConfig(train="shards", num_history_frames=2, num_future_frames=2, frame_stride=2)
    return CaseReader.open(folder / "out" / "train", data)


def cases(reader: CaseReader) -> list[ForecastCase]:
    found = [reader.read(number) for number in range(len(reader))]
    return [case.with_members(np.zeros((1, *case.truth.shape), np.float32)) for case in found]


def expected(climate: "xarray.Dataset", key: str) -> np.ndarray:
    """(S, C, H, W) of the two forecast frames, which begin 48 h after the start and are 24 h apart."""
    start = np.datetime64(f"{key[:4]}-{key[4:6]}-{key[7:12]}:{key[12:]}")
    fields = []
    for hours in (48, 72):
        time = start + np.timedelta64(hours, "h")
        day = int((time.astype("M8[D]") - time.astype("M8[Y]").astype("M8[D]")).astype(int))
        hour = int((time - time.astype("M8[D]")).astype("m8[h]").astype(int)) // 6
        at = climate.transpose("hour", "dayofyear", "level", "latitude", "longitude")
        fields.append([at["2m_temperature"].values[hour, day], at["z"].values[hour, day, 1]])
    return np.array(fields)


def wb2(climate: "xarray.Dataset", path: Path) -> None:
    turned = climate.isel(latitude=slice(None, None, -1))
    turned.transpose("hour", "dayofyear", "level", "longitude", "latitude").to_zarr(path, zarr_format=2)


def netcdf(climate: "xarray.Dataset", path: Path) -> None:
    packed = {"dtype": "i2", "scale_factor": 0.25, "add_offset": 280.0, "_FillValue": -32767}
    climate.transpose("level", "dayofyear", "latitude", "longitude", "hour").to_netcdf(
        path, engine="h5netcdf", encoding={"z": packed}
    )


@pytest.mark.parametrize(("write", "name", "tolerance"), [(wb2, "climate.zarr", 0), (netcdf, "climate.nc", 0.126)])
def test_each_frame_takes_the_value_of_its_day_and_hour(reader, tmp_path, write, name, tolerance):
    climate = of_climate()
    write(climate, tmp_path / name)
    baseline, all_cases = DailyClimatology(str(tmp_path / name), reader), cases(reader)
    assert [case.key[:9] for case in all_cases] == [
        *("201912-29", "201912-30", "202001-01"),
        *("202002-27", "202002-29", "202003-02"),
    ]
    errors = []
    for case in all_cases:
        found, wanted = baseline.ensemble(case), expected(climate, case.key)
        assert found.shape == (1, 2, 2, 3, 4)
        np.testing.assert_allclose(found[0], wanted, rtol=1e-7, atol=tolerance)
        errors.append(np.abs(found[0] - case.truth).mean(axis=(1, 2, 3)))
    by_lead = evaluate(all_cases, baseline).by_lead("daily_climatology")
    np.testing.assert_allclose(by_lead["crps"], np.mean(errors, axis=0), rtol=1e-6)


def test_a_climatology_by_day_alone_is_the_same_at_every_hour(reader, tmp_path):
    climate = of_climate(hours=(0,))
    climate.isel(hour=0, drop=True).to_zarr(tmp_path / "days.zarr")
    baseline = DailyClimatology(str(tmp_path / "days.zarr"), reader)
    whole = xarray.concat([climate.assign_coords(hour=[hour]) for hour in (0, 6, 12, 18)], "hour")
    for case in cases(reader):
        assert np.array_equal(baseline.ensemble(case)[0], expected(whole, case.key))


@pytest.mark.parametrize(("write", "name"), [(wb2, "climate.zarr"), (netcdf, "climate.nc")])
def test_a_store_elsewhere_gives_what_the_folder_gives(reader, tmp_path, write, name):
    write(of_climate(), tmp_path / name)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / name), f"/climate/{name}", recursive=True)
    here, there = (DailyClimatology(f"{root}/{name}", reader) for root in (tmp_path, "memory://climate"))
    gc.collect()
    for case in cases(reader):
        assert np.array_equal(there.ensemble(case), here.ensemble(case))
    memory.rm("/climate", recursive=True)


def without_pixel(climate: "xarray.Dataset") -> "xarray.Dataset":
    climate["z"][:, :, 1, 0, 0] = np.nan
    return climate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.drop_vars("z"), "holds no 'z_850', only 2m_temperature"),
        (lambda c: c.sel(level=[500]), "no field 'z_850' for each dayofyear"),
        (
            lambda c: c.isel(level=[0, 0]).assign_coords(level=[300, 500]),
            r"no field 'z_850' for each dayofyear; its axes",
        ),
        (lambda c: c.rename(dayofyear="day"), r"no field '2m_temperature' for each dayofyear; its axes: .*'day': 366"),
        (lambda c: c.isel(latitude=[0, 1]), "has '2m_temperature' on another grid than .*; regrid one"),
        (lambda c: c.assign_coords(latitude=[70.0, 0.0, -60.0]), "on another grid than"),
        (lambda c: c.isel(hour=[1, 3]), "has no '2m_temperature' for 31 December, 00:00"),
        (lambda c: c.isel(dayofyear=slice(0, 300)), "has no '2m_temperature' for 31 December, 00:00"),
        (without_pixel, "lacks pixels of 'z' for 31 December, 00:00"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(reader, tmp_path, change, message):
    change(of_climate()).to_zarr(tmp_path / "climate.zarr")
    with pytest.raises(ValueError, match=message) as caught:
        DailyClimatology(str(tmp_path / "climate.zarr"), reader).ensemble(cases(reader)[0])
    assert "climate.zarr" in str(caught.value) and "\n" not in str(caught.value)


def test_a_lost_chunk_is_no_value(reader, tmp_path):
    of_climate().to_zarr(tmp_path / "climate.zarr", zarr_format=2)
    (tmp_path / "climate.zarr" / "z" / "0.0.0.0.0").unlink()
    with pytest.raises(ValueError, match=r"climate.zarr lacks chunks of 'z'; copy it again"):
        DailyClimatology(str(tmp_path / "climate.zarr"), reader)


def test_a_damaged_store_is_named(reader, tmp_path):
    store, damaged = tmp_path / "climate.zarr", r"climate.zarr can't be read: \S"
    of_climate().to_zarr(store, zarr_format=2)
    chunk = store / "z" / "0.0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:16] + bytes(chunk.stat().st_size - 16))
    with pytest.raises(ValueError, match=damaged):
        DailyClimatology(str(store), reader).ensemble(cases(reader)[0])
    (store / ".zmetadata").write_text("{")
    with pytest.raises(ValueError, match=damaged):
        DailyClimatology(str(store), reader)
    with pytest.raises(ValueError, match=r"nowhere.zarr can't be read: .* does not exist"):
        DailyClimatology(str(tmp_path / "nowhere.zarr"), reader)
    with pytest.raises(ValueError, match="give the plain URL"):
        DailyClimatology("s3://me:secret@bucket/climate.zarr", reader)


def test_frames_without_a_date_have_none(tmp_path):
    flow = TurbulenceConfig(resolution=16, force_max_wavenumber=5.0, spin_up_frames=1)
    source = TurbulenceSource(TurbulenceSourceConfig(train=1, valid=0, test=0, num_frames=4, flow=flow))
    convert(source, tmp_path / "flow")
    data = DataConfig(train="shards", num_history_frames=2, num_future_frames=2)
    of_climate().to_zarr(tmp_path / "climate.zarr")
    with pytest.raises(ValueError, match=r"no climatology by day of the year: samples of .* don't say when they are"):
        DailyClimatology(str(tmp_path / "climate.zarr"), CaseReader.open(tmp_path / "flow" / "train", data))
