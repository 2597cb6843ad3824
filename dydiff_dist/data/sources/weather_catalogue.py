"""Stores and files of weather data as one catalogue: which channels there are, at which times, and where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dydiff_dist.data.inputs import find_files, first_names
from dydiff_dist.data.source import BadItem, LeftOut, reading
from dydiff_dist.data.sources.weather_files import (
    NETCDF_SUFFIXES,
    Channel,
    WeatherFile,
    check_installed,
    describe,
    is_zarr,
    time_text,
)

Asked = tuple[str, tuple[float, ...]]
"""A variable, and its levels; none for all that it has."""


@dataclass(frozen=True)
class Catalogue:
    """What all stores and files hold together."""

    files: tuple[WeatherFile, ...]
    channels: tuple[Channel, ...]
    times: np.ndarray
    """(T,) int64, seconds since 1970, at which all variables are there."""
    aside: tuple[BadItem | LeftOut, ...]

    def stretches(self, begin: int, end: int) -> list[np.ndarray]:
        """Numbers of the times from ``begin`` to before ``end``, cut where a step is far from the usual one."""
        inside = np.flatnonzero((self.times >= begin) & (self.times < end))
        steps = np.diff(self.times[inside])
        usual = self.usual_step
        return np.split(inside, np.flatnonzero((steps > 1.5 * usual) | (steps < 0.5 * usual)) + 1)

    @cached_property
    def usual_step(self) -> int:
        """Seconds between two times, mostly."""
        steps, counts = np.unique(np.diff(self.times), return_counts=True)
        return int(steps[counts.argmax()]) if len(steps) else 0

    def holders(self, variable: str, times: np.ndarray) -> Iterator[tuple[WeatherFile, np.ndarray, np.ndarray]]:
        """(file, which of ``times`` it has of a variable, their numbers in the file) of each file that holds some."""
        for file in self.files:
            if variable not in file.variables:
                continue
            if "time" not in file.variables[variable].axes:
                yield file, np.arange(len(times)), np.zeros(1, np.int64)
                return
            places = np.searchsorted(file.times, times).clip(max=len(file.times) - 1)
            which = np.flatnonzero(file.times[places] == times)
            if len(which):
                yield file, which, places[which]


def build_catalogue(
    root: Sequence[str], variables: Sequence[str], levels: tuple[float, ...], reject_absent: bool
) -> Catalogue:
    """What stores and files hold of some variables.

    Args:
        root: stores, files and folders of them, or URLs of stores and files.
        variables: their names, with :500,850 after one for its own levels.
        levels: of the variables that have some and say none themselves; all if empty.
        reject_absent: whether chunks that are not in a store must be told from data.

    Raises:
        FileNotFoundError, ValueError: no such place, variable or level, stores of different grids, or two that hold the
            same.
    """
    asked = [_asked(text, levels) for text in variables]
    addresses, aside = _addresses(root)
    check_installed(addresses)
    names = [name for name, _ in asked]

    def described(address: str) -> Iterator[WeatherFile | LeftOut]:
        yield describe(address, names, reject_absent) or LeftOut("it holds none of --variables", address)

    files: list[WeatherFile] = []
    for address in addresses:
        for found in reading(address, described(address)):
            files.append(found) if isinstance(found, WeatherFile) else aside.append(found)
    _check_together(files, names, aside)
    channels = tuple(channel for each in asked for channel in _channels(each, files))
    times = [held for name in names if len(held := _times_of(files, name))]
    if not times:
        raise ValueError(f"none of --variables {' '.join(names)} has an axis of time")
    common = times[0]
    for other in times[1:]:
        common = np.intersect1d(common, other)
    return Catalogue(tuple(files), channels, np.sort(common), tuple(aside))


def _asked(text: str, levels: tuple[float, ...]) -> Asked:
    name, colon, own = text.partition(":")
    try:
        return name, tuple(float(level) for level in own.split(",")) if colon else levels
    except ValueError:
        raise ValueError(f"--variables has {text!r}; write a name, or name:level,level") from None


def _addresses(root: Sequence[str]) -> tuple[list[str], list[BadItem | LeftOut]]:
    """Stores and files, those in folders too, and what else lies in these."""
    found: list[str] = []
    aside: list[BadItem | LeftOut] = []
    for place in root:
        if "://" in place or is_zarr(place) or Path(place).is_file():
            found.append(place.rstrip("/"))
            continue
        inside = find_files(Path(place), NETCDF_SUFFIXES, folder_suffix=".zarr")
        found += [str(Path(place) / name) for name in inside.files]
        aside += inside.aside
    return found, aside


def _check_together(files: list[WeatherFile], names: list[str], aside: list[BadItem | LeftOut]) -> None:
    """One-line ``ValueError`` unless each variable is there, on one grid, once at any time."""
    there = list(dict.fromkeys(name for file in files for name in file.variables))
    for name in names:
        if name not in there:
            fault = next((item for item in aside if isinstance(item, BadItem)), None)
            if fault:
                raise ValueError(f"{fault.name}: {fault.reason}; nothing else holds a variable {name!r}")
            raise ValueError(f"no store or file holds a variable {name!r}; of --variables there are {there or 'none'}")
    first = files[0]
    for file in files[1:]:
        if file.grid != first.grid:
            raise ValueError(
                f"{file.address} has another grid ({file.grid.shape[0]}x{file.grid.shape[1]}) than {first.address} "
                f"({first.grid.shape[0]}x{first.grid.shape[1]}); bring them to one first, or give one of them"
            )
    for name in names:
        times = np.sort(_times_of(files, name))
        twice = times[1:][np.diff(times) == 0]
        if len(twice):
            holding = [file.address for file in files if name in file.variables and twice[0] in file.times]
            raise ValueError(f"{name!r} at {time_text(twice[0])} is in {first_names(holding)}; give one of them")


def _times_of(files: list[WeatherFile], name: str) -> np.ndarray:
    """All times of a variable, of one file after the other; empty where it has no axis of time."""
    holding = [file for file in files if name in file.variables and "time" in file.variables[name].axes]
    return np.concatenate([np.zeros(0, np.int64), *(file.times for file in holding)])


def _channels(asked: Asked, files: list[WeatherFile]) -> list[Channel]:
    """Of one variable, a channel for each of its levels."""
    name, levels = asked
    holding = [file for file in files if name in file.variables]
    there = holding[0].variables[name].levels
    for file in holding[1:]:
        if file.variables[name].levels != there:
            raise ValueError(f"{file.address} has other levels of {name!r} than {holding[0].address}; give one of them")
    if not there:
        return [Channel(name)]
    for level in levels:
        if not np.isclose(there, level).any():
            raise ValueError(f"{name!r} has no level {level:g}; it has {', '.join(f'{each:g}' for each in there)}")
    return [Channel(name, level) for level in levels or there]
