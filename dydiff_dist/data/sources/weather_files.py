"""Fields on a grid in zarr stores and netCDF files, by the names of their dimensions, whatever the order of the axes.

xarray reads them, from this machine or through fsspec. Packing is undone by ``packing.py``, as in all arrays, which
refuses what it doesn't know.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dydiff_dist.data.array_files import ArrayFile
from dydiff_dist.data.packing import unpack, value_attributes
from dydiff_dist.data.remote import RemoteConfig
from dydiff_dist.data.remote_files import Result, in_time
from dydiff_dist.quoting import first_line

NETCDF_SUFFIXES = (".nc", ".nc4", ".netcdf")
ROLES = {
    "time": ("time", "valid_time"),
    "level": ("level", "lev", "plev", "pressure_level", "isobaricinhpa", "air_pressure", "height", "depth"),
    "row": ("latitude", "lat", "y", "rlat", "south_north", "grid_latitude", "projection_y_coordinate"),
    "column": ("longitude", "lon", "x", "rlon", "west_east", "grid_longitude", "projection_x_coordinate"),
}
"""What a dimension is -> names, in small letters, of it or of its coordinate's CF standard name."""
LIMITS = RemoteConfig()
"""Of reads of what lies elsewhere, as of shards that do."""
METADATA_BYTES = 2**20
"""That opening a store may bring; with ``LIMITS`` two minutes at most."""
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
_STATE_KEYS = tuple("size mtime ETag etag LastModified Last-Modified last_modified updated generation".split())
"""What stores call a file's size, time of change and tag."""


def time_text(seconds: int | np.integer) -> str:
    """Seconds since 1970 as 2018-01-01T06:00."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M}"


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a field lie."""

    rows: tuple[float, ...]
    """Coordinates from the first stored row to the last; pixels counted where there are none."""
    columns: tuple[float, ...]
    is_geographic: bool
    """Whether the coordinates are latitude and longitude."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.rows), len(self.columns)

    @property
    def is_turned(self) -> bool:
        """Whether the stored rows go from south to north, so that they are turned round."""
        return self.is_geographic and self.rows[0] < self.rows[-1]

    @property
    def latitudes(self) -> tuple[float, ...]:
        """From north to south; empty where rows are no circles of latitude."""
        return tuple(sorted(self.rows, reverse=True)) if self.is_geographic else ()

    @property
    def is_round(self) -> bool:
        """Whether columns go once round the globe in equal steps."""
        steps = np.diff(self.columns)
        if not self.is_geographic or not len(steps):
            return False
        step = abs(float(steps.mean()))
        return bool(np.allclose(steps, steps[0], rtol=1e-3) and abs(step * len(self.columns) - 360) < step / 2)


@dataclass(frozen=True)
class Variable:
    """One variable of a file."""

    axes: tuple[str, ...]
    """Role of each of its axes in their order, "" for one of a single entry."""
    levels: tuple[float, ...]
    """Coordinates of its levels; empty where it has no such axis."""
    units: str


@dataclass(frozen=True)
class WeatherFile:
    """What a store or file holds of the variables that are asked for."""

    address: str
    variables: dict[str, Variable]
    times: np.ndarray
    """(T,) int64, seconds since 1970, rising; of all its variables."""
    grid: Grid
    state: str = ""
    """Tells whether a store elsewhere is still the same; empty for what lies on this machine."""


@dataclass(frozen=True)
class Channel:
    """A channel of the frames."""

    variable: str
    level: float | None = None

    @property
    def name(self) -> str:
        """geopotential_500 of geopotential at 500."""
        return self.variable if self.level is None else f"{self.variable}_{self.level:g}"


def is_zarr(address: str) -> bool:
    """Whether an address is that of a zarr store, and not of a netCDF file or a folder of inputs."""
    if "://" in address:
        return not address.lower().endswith(NETCDF_SUFFIXES)
    path = Path(address)
    return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / mark).exists() for mark in _ZARR_MARKS))


def check_installed(addresses: Sequence[str]) -> None:
    """One-line ``ValueError`` where a package is not there that reads one of the addresses."""
    needed = {"xarray", "zarr" if any(map(is_zarr, addresses)) else "h5netcdf"}
    needed |= {"fsspec"} if any("://" in address for address in addresses) else set()
    missing = sorted(name for name in needed if find_spec(name) is None)
    if missing:
        raise ValueError(f"weather data need {', '.join(missing)}; pip install 'dydiff_dist[weather]'")


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """The xarray dataset at an address, its values as they are stored, for the length of the block."""
    import xarray  # an extra

    settings: dict[str, Any] = {"mask_and_scale": False, "decode_timedelta": False, "cache": False}
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that are not consolidated: slower to open, nothing else
                place: Any = nullcontext(address)
                if is_zarr(address):
                    settings |= {"engine": "zarr", "storage_options": _store_options(address) or None}
                elif "://" in address:
                    import fsspec

                    place = fsspec.open(address, "rb", **_store_options(address))
                found = _in_time(
                    address, METADATA_BYTES, lambda: xarray.open_dataset(stack.enter_context(place), **settings)
                )
        except ImportError as error:
            raise ValueError(f"it needs a package that is not installed: {first_line(error)}") from None
        yield stack.enter_context(found)


def stored_values(address: str, data: Any) -> np.ndarray:
    """The values of a part of an opened variable; ``NetworkError`` where they lie elsewhere and do not come in time."""
    chunks = data.encoding.get("preferred_chunks", {})
    extents = [data.sizes[dim] + 2 * chunks.get(dim, 0) for dim in data.dims]  # chunks come whole
    return _in_time(address, math.prod(extents) * data.dtype.itemsize, lambda: np.asarray(data.values))


def _in_time(address: str, num_bytes: int, action: Callable[[], Result]) -> Result:
    if "://" not in address:
        return action()
    return in_time(action, num_bytes, LIMITS.timeout_sec, LIMITS.min_bytes_per_sec)


def _store_options(address: str) -> dict[str, Any]:
    """For fsspec. Of a web server the time without a byte is limited too, in place of five minutes for a whole answer;
    packages of object stores have such limits of their own."""
    if not address.startswith(("http://", "https://")):
        return {}
    import aiohttp  # fsspec needs it for these

    silence = {"sock_connect": LIMITS.timeout_sec, "sock_read": LIMITS.timeout_sec}
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, **silence)}}


def describe(address: str, wanted: Sequence[str], reject_absent: bool) -> WeatherFile | None:
    """What a store or file holds of the variables ``wanted``; None where it holds none of them.

    Args:
        address: of a zarr store or netCDF file, local or a URL.
        wanted: names of variables.
        reject_absent: whether chunks that are not in the store must be told from data.

    Raises:
        ValueError: axes that can't be told apart, unsorted times, or chunks that, elsewhere, would pass for data.
    """
    with opened(address) as dataset:
        names = [name for name in wanted if name in dataset]
        variables, grids, times = {}, set(), np.zeros(0, np.int64)
        for name in names:
            data = dataset[name]
            axes = tuple(_role(dim, data) for dim in data.dims)
            dims = dict(zip(axes, data.dims, strict=True))
            if not {"row", "column"} <= set(axes) or len(set(axes) - {""}) < len([role for role in axes if role]):
                raise ValueError(f"{name!r} has axes {data.dims}, not one latitude and one longitude among them")
            grids.add(_grid(data, dims["row"], dims["column"]))
            if "time" in dims:
                before, times = times, _times(data[dims["time"]])
                if len(before) and not np.array_equal(before, times):
                    raise ValueError(f"{name!r} has other times than the variables before it")
            if reject_absent and "://" in address and is_zarr(address) and _absent_is_data(data):
                raise ValueError(
                    f"chunks of {name!r} that were never written could not be told from data, as its fill value is "
                    "no missing value; give --absent-chunks fill if there are none"
                )
            levels = tuple(_coordinate(data, dims["level"])) if "level" in dims else ()
            variables[name] = Variable(axes, levels, str(data.attrs.get("units", "")))
    if not names:
        return None
    if len(grids) > 1:
        raise ValueError(f"its variables {', '.join(names)} lie on different grids; give them in runs of their own")
    return WeatherFile(address, variables, times, grids.pop(), _state(address))


def read(
    file: WeatherFile, channels: Sequence[Channel], places: np.ndarray, packing: str, reject_absent: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Channels of a file at some of its times.

    Args:
        file: which holds all of their variables.
        channels: in the order wanted.
        places: (T,) numbers of its times, rising.
        packing: cf or stored, as for arrays.
        reject_absent: whether to look first for chunks that are not in the file.

    Returns:
        values (T, C, H, W) float32, rows from north to south; and which of them are missing, bool.

    Raises:
        ValueError: chunks that are not there.
    """
    shape = (len(places), len(channels), *file.grid.shape)
    values, missing = np.empty(shape, np.float32), np.zeros(shape, bool)
    with opened(file.address) as dataset:
        for name in dict.fromkeys(channel.variable for channel in channels):
            numbers = [number for number, channel in enumerate(channels) if channel.variable == name]
            variable, data = file.variables[name], dataset[name]
            if reject_absent and "time" in variable.axes:
                absent = absent_places(file.address, name, variable.axes.index("time"), places)
                if absent.any():
                    time = time_text(file.times[places[absent.argmax()]])
                    raise ValueError(
                        f"chunks of {name!r} at {time} are lost, cut off or were never written; if they hold "
                        "the fill value, --absent-chunks fill"
                    )
            levels = [channels[number].level for number in numbers]
            wanted = {"time": _compact(places), "level": _level_places(variable, levels)}
            place = {dim: wanted.get(role, slice(None)) for dim, role in zip(data.dims, variable.axes, strict=True)}
            stored = stored_values(file.address, data.isel(place))
            unpacked = unpack(stored, stored_attributes(data) if packing == "cf" else {})
            values[:, numbers] = _in_order(unpacked.values, variable.axes, file.grid.is_turned)
            if unpacked.is_missing is not None:
                missing[:, numbers] = _in_order(unpacked.is_missing, variable.axes, file.grid.is_turned)
    return values, missing


def _in_order(found: np.ndarray, axes: Sequence[str], is_turned: bool) -> np.ndarray:
    """(T or 1, levels or 1, H, W) of an array with ``axes``, rows from north to south."""
    kept = [role for role in axes if role]
    found = found.reshape([size for size, role in zip(found.shape, axes, strict=True) if role])
    found = found.transpose([kept.index(role) for role in ROLES if role in kept])
    for axis, role in enumerate(("time", "level")):
        found = found if role in kept else np.expand_dims(found, axis)
    return found[:, :, ::-1] if is_turned else found


def _compact(places: np.ndarray) -> slice | np.ndarray:
    """The places as a slice where they are evenly spaced, which libraries read faster."""
    steps = np.unique(np.diff(places))
    if len(places) == 1 or len(steps) == 1:
        return slice(int(places[0]), int(places[-1]) + 1, int(steps[0]) if len(steps) else 1)
    return places


def _level_places(variable: Variable, levels: Sequence[float | None]) -> list[int]:
    return [int(np.argmin(np.abs(np.array(variable.levels) - level))) for level in levels if level is not None]


def _role(dim: Any, data: Any) -> str:
    """Of an axis of a variable; "" for one of a single entry that is none of them."""
    standard = str(data[dim].attrs.get("standard_name", "")) if dim in data.coords else ""
    for role, names in ROLES.items():
        if str(dim).lower() in names or standard in names:
            return role
    if data.sizes[dim] > 1:
        raise ValueError(
            f"{data.name!r} has an axis {dim!r} of {data.sizes[dim]}, which is no time, level, latitude or longitude; "
            "choose one entry of it first"
        )
    return ""


def _grid(data: Any, row: Any, column: Any) -> Grid:
    rows, columns = _coordinate(data, row), _coordinate(data, column)
    names = [{str(dim).lower(), str(data[dim].attrs.get("standard_name", ""))} for dim in (row, column)]
    is_geographic = bool(names[0] & {"latitude", "lat"} and names[1] & {"longitude", "lon"})
    for dim, found in ((row, rows), (column, columns)):
        steps = np.diff(found)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError(f"its coordinate {dim!r} neither rises nor falls throughout")
    return Grid(tuple(rows), tuple(columns), is_geographic)


def _coordinate(data: Any, dim: Any) -> list[float]:
    """Values along an axis, or their numbers where it has none."""
    if dim not in data.coords:
        return [float(number) for number in range(data.sizes[dim])]
    coordinate = data[dim]
    return [float(value) for value in unpack(np.asarray(coordinate.values), value_attributes(coordinate.attrs)).values]


def _times(coordinate: Any) -> np.ndarray:
    if coordinate.dtype.kind != "M":
        raise ValueError(f"its times are {coordinate.dtype}, not dates of the usual calendar")
    times = np.asarray(coordinate.values).astype("datetime64[s]").astype(np.int64)
    if not (np.diff(times) > 0).all():
        raise ValueError("its times do not rise throughout; sort them")
    return times


def stored_attributes(data: Any) -> dict[str, Any]:
    """Those that change values. xarray takes the fill value of a zarr 2 array for a missing value, but 0 is what zarr
    itself writes by default."""
    found = value_attributes(data.attrs)
    is_zarr_2 = "compressors" in data.encoding and "serializer" not in data.encoding
    if is_zarr_2 and found.get("_FillValue") == 0:
        del found["_FillValue"]
    return found


def _absent_is_data(data: Any) -> bool:
    """Whether a chunk that is not in a zarr store would be taken for values."""
    attributes = stored_attributes(data)
    fill = data.encoding.get("fill_value", attributes.get("_FillValue"))
    return fill is None or unpack(np.full(1, fill, data.dtype), attributes).is_missing is None


def absent_places(address: str, name: str, time_axis: int, places: np.ndarray) -> np.ndarray:
    """(T,) bool: which times lack chunks in a store or file of this machine; elsewhere, ``_absent_is_data`` decides."""
    frames = slice(int(places[0]), int(places[-1]) + 1)
    with ExitStack() as stack:
        if "://" not in address and is_zarr(address):
            import zarr  # an extra

            content = zarr.open_group(store=address, mode="r")
        elif "://" not in address and h5py.is_hdf5(address):
            content = stack.enter_context(h5py.File(address, "r"))
        else:  # netCDF-3 has no chunks
            return np.zeros(len(places), bool)
        stored = ArrayFile(content, "stored").get(name)
        assert stored is not None, name
        return stored.absent(-1, frames, time_axis)[places - places[0]]


def _state(address: str) -> str:
    """Of what lies elsewhere: size and time of change, as the store gives them, of a file or of a zarr store's
    metadata."""
    if "://" not in address:
        return ""
    import fsspec

    def facts() -> str:
        system, path = fsspec.core.url_to_fs(address, **_store_options(address))
        marks = [f"{path}/{mark}" for mark in _ZARR_MARKS] if is_zarr(address) else [path]
        infos = {mark: system.info(mark) for mark in marks if system.exists(mark)}
        return repr([[mark, *(str(info[key]) for key in _STATE_KEYS if key in info)] for mark, info in infos.items()])

    return hashlib.sha256(_in_time(address, METADATA_BYTES, facts).encode()).hexdigest()[:16]
