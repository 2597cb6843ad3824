"""Source ``weather``: reanalyses and other fields on a grid, from zarr stores and netCDF files, here or elsewhere.

Axes go by their names, so their order does not matter. Variables, each at its levels, are the channels; windows of time
are the samples, and intervals of dates the splits. A window belongs to a split only if it lies wholly inside, and none
crosses a gap in time.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.inputs import first_names
from dydiff_dist.data.manifest import FrameSchema, Independent
from dydiff_dist.data.packing import describe_missing, fill_masks
from dydiff_dist.data.remote import Address
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import (
    BadItem,
    LeftOut,
    ShardTask,
    Source,
    reading,
    register_source,
    schema_of,
    split_tasks,
)
from dydiff_dist.data.sources.weather_catalogue import Catalogue, build_catalogue
from dydiff_dist.data.sources.weather_files import WeatherFile, read, time_text
from dydiff_dist.data.tables import parse_time
from dydiff_dist.strict_config import StrictConfig

BLOCK_BYTES = 2**26
"""Frames of windows that are read together, float32; a single window may be larger."""


class WeatherSourceConfig(StrictConfig):
    """Which fields are read, and how they are cut into samples."""

    root: Annotated[tuple[Address, ...], Field(min_length=1)]
    """Zarr stores, netCDF files, and folders of them, of this machine or URLs of stores and files (http, https, s3, gs,
    …), as many as hold the variables and times."""
    variables: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the variables, in the order of the channels; with :500,850 after a name, only these of its levels."""
    levels: tuple[float, ...] = ()
    """Levels of the variables that have some and say none themselves; all if left out."""
    num_frames: Annotated[int, Field(ge=2)]
    """Frames of a sample."""
    time_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many stored times one is a frame."""
    window_step: Annotated[int, Field(ge=1)] | None = None
    """Stored times between the starts of two samples; num_frames times time_stride if left out: no overlap."""
    train_start: str | None = None
    """First time of training, like 1979-01-01 or 1979-01-01T12:00 (UTC); the first stored if left out."""
    valid_start: str | None = None
    """First time of validation, and the end of training; without it there is no validation."""
    test_start: str | None = None
    """First time of testing, and the end of what comes before; without it there is no testing."""
    test_end: str | None = None
    """The end of testing (of the last split), not included."""
    packing: Literal["cf", "stored"] = "cf"
    """cf: attributes of the CF conventions are applied (scale_factor, _FillValue, …), and windows with missing values
    rejected; stored: values as they lie in the file."""
    absent_chunks: Literal["reject", "fill"] = "reject"
    """Windows of which chunks are not in a store or file are rejected, or take the fill value."""
    fill: tuple[float, ...] = ()
    """Value, in the units of the file, that stands where a channel has none in all frames of a window, as a sea
    temperature over land; one for all channels, or one for each. Windows that lack others are rejected still."""
    samples_per_shard: Annotated[int, Field(ge=1)] = 64
    """Samples that make one shard, about."""

    def intervals(self) -> list[tuple[str, int, int]]:
        """(split, begin, end) in seconds since 1970, in order of time."""
        named = (("train", self.train_start), ("valid", self.valid_start), ("test", self.test_start))
        begins = [(split, _seconds(text, f"{split}_start")) for split, text in named if text is not None]
        if self.train_start is None:
            begins.insert(0, ("train", -(2**62)))
        end = 2**62 if self.test_end is None else _seconds(self.test_end, "test_end")
        ends = [begin for _, begin in begins[1:]] + [end]
        for (split, begin), after in zip(begins, ends, strict=True):
            if begin >= after:
                raise ValueError(f"{split}_start is not before what follows it; give train, valid, test in order")
        return [(split, begin, after) for (split, begin), after in zip(begins, ends, strict=True)]


def _seconds(text: str, name: str) -> int:
    try:
        return int(parse_time(text).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ValueError(f"{name} is {text!r}; write a time like 2018-01-01 or 2018-01-01T12:00") from None


@register_source("weather", WeatherSourceConfig, "Fields on a grid by their names: zarr stores or netCDF, ERA5's too.")
class WeatherSource(Source[WeatherSourceConfig]):
    """Windows of time: samples (S, C, H, W) float32, rows from north to south."""

    unlike_hint = "give stores of one grid"

    @cached_property
    def catalogue(self) -> Catalogue:
        """What is there to be read; goes with the source to other processes."""
        config = self.config
        return build_catalogue(config.root, config.variables, config.levels, config.absent_chunks == "reject")

    def plan(self) -> list[ShardTask]:
        """Shards of each split in order of time; an item is (first times of windows that are read together, states of
        the stores elsewhere)."""
        config, catalogue = self.config, self.catalogue
        frame_bytes = 4 * len(catalogue.channels) * int(np.prod(catalogue.files[0].grid.shape))
        length = config.num_frames * config.time_stride
        step = config.window_step or length
        more = (BLOCK_BYTES // frame_bytes - config.num_frames) // min(step, config.num_frames)
        per_block = max(1, min(config.samples_per_shard, 1 + more))
        span = (config.num_frames - 1) * config.time_stride + 1
        aside: list[BadItem | LeftOut] = list(catalogue.aside)
        by_split: dict[str, list[tuple[tuple[tuple[str, ...], tuple[str, ...]], int]]] = {}
        for split, begin, end in config.intervals():
            starts: list[str] = []
            for stretch in catalogue.stretches(begin, end):
                firsts = stretch[: max(0, len(stretch) - span + 1) : step]
                starts += [time_text(time) for time in catalogue.times[firsts]]
                if 0 < len(stretch) < span:
                    name = f"{time_text(catalogue.times[stretch[0]])} of {split}"
                    aside.append(LeftOut(f"the {len(stretch)} times from it to a gap or end are no window", name))
            if not starts:
                raise ValueError(
                    f"no window of {span} stored times lies wholly in the split {split!r}; the stores have "
                    f"{len(catalogue.times)} times from {self._span()}: move --{split}-start, or lower --num-frames"
                )
            blocks = [tuple(starts[first : first + per_block]) for first in range(0, len(starts), per_block)]
            by_split[split] = [
                ((block, self._states(block)), len(block) * config.num_frames * frame_bytes) for block in blocks
            ]
        return split_tasks(by_split, max(1, config.samples_per_shard // per_block), aside)

    def read_item(self, item: Any) -> Iterator[Sample | BadItem]:
        """The windows of one block of time; where it can't be read as a whole, those of them that can."""
        starts, _ = item
        try:
            yield from self._windows(starts)
        except Exception:
            if len(starts) == 1:
                raise
            for start in starts:
                for result in reading(f"window {start}", self._windows((start,))):
                    yield replace(result, is_whole_input=False) if isinstance(result, BadItem) else result

    def _windows(self, starts: tuple[str, ...]) -> Iterator[Sample | BadItem]:
        """Reads what some windows need, once, before it yields the first."""
        numbers = self._frames(starts)
        needed = np.unique(numbers)
        values, missing = self._read(self.catalogue.times[needed])
        for start, frames in zip(starts, np.searchsorted(needed, numbers), strict=True):
            window, lacking = values[frames], missing[frames]
            fill_masks(window, lacking, self.config.fill)
            reason = self._fault(lacking, needed[frames])
            if reason:
                yield BadItem(f"window {start}", reason)
                continue
            # the month before the hyphen: windows of one month count as one observation
            key = f"{start[:4]}{start[5:7]}-{start[8:].replace(':', '')}"
            yield Sample(key, window, meta={"start": start, "step_sec": self.step_sec})

    @property
    def step_sec(self) -> int:
        """Seconds from frame to frame."""
        return self.catalogue.usual_step * self.config.time_stride

    def item_name(self, item: Any) -> str:
        """The times that its windows begin at."""
        starts, _ = item
        return f"windows {starts[0]} to {starts[-1]}"

    def item_files(self, item: Any) -> list[Path]:
        """Stores and files of this machine that hold its times."""
        return [Path(file.address) for file in self._holders(item[0]) if "://" not in file.address]

    def independent(self, split: str) -> Independent:
        """Windows of one month together."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """The option that makes it."""
        return f"give --{split}-start"

    def schema(self, sample: Sample) -> FrameSchema:
        """Named channels, latitudes, and shifts along longitude where the grid goes round the globe."""
        grid, channels = self.catalogue.files[0].grid, self.catalogue.channels
        units = [
            next(file.variables[c.variable].units for file in self.catalogue.files if c.variable in file.variables)
            for c in channels
        ]
        return schema_of(
            sample,
            channels=tuple(channel.name for channel in channels),
            units=units[0] if len(set(units)) == 1 else ", ".join(units),
            latitudes=grid.latitudes,
            allowed_augmentations=("periodic_shift_w",) if grid.is_round else (),
        )

    def details(self) -> dict[str, Any]:
        """The interval of frames, and the columns' coordinates."""
        grid = self.catalogue.files[0].grid
        return {"frame_interval_sec": self.step_sec, "columns": [grid.columns[0], grid.columns[-1]]}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """The channels, the grid, and what of time each split takes."""
        grid, names = self.catalogue.files[0].grid, [channel.name for channel in self.catalogue.channels]
        around = "round the globe" if grid.is_round else "not round the globe"
        lines = [
            f"{len(names)} channels ({first_names(names)}) of {grid.shape[0]}x{grid.shape[1]} pixels, {around}; "
            f"{len(self.catalogue.times)} times, {self._span()}, mostly every {self.catalogue.usual_step / 3600:g} h"
        ]
        for split in dict.fromkeys(task.split for task in tasks):
            starts = [start for task in tasks if task.split == split for item in task.items for start in item[0]]
            lines.append(f"{split}: {len(starts)} windows that begin {starts[0]} to {starts[-1]}")
        return lines

    def _span(self) -> str:
        times = self.catalogue.times
        return f"{time_text(times[0])} to {time_text(times[-1])}" if len(times) else "none"

    def _frames(self, starts: tuple[str, ...]) -> np.ndarray:
        """(windows, S) numbers of times."""
        seconds = [_seconds(start, "start") for start in starts]
        firsts = np.searchsorted(self.catalogue.times, seconds)
        return firsts[:, None] + np.arange(self.config.num_frames) * self.config.time_stride

    def _holders(self, starts: tuple[str, ...]) -> list[WeatherFile]:
        times = self.catalogue.times[np.unique(self._frames(starts))]
        variables = dict.fromkeys(channel.variable for channel in self.catalogue.channels)
        found = [file for variable in variables for file, _, _ in self.catalogue.holders(variable, times)]
        return list({file.address: file for file in found}.values())

    def _states(self, starts: tuple[str, ...]) -> tuple[str, ...]:
        if not any(file.state for file in self.catalogue.files):
            return ()
        return tuple(file.state for file in self._holders(starts))

    def _read(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (T, C, H, W) and which of them are missing."""
        catalogue, config = self.catalogue, self.config
        shape = (len(times), len(catalogue.channels), *catalogue.files[0].grid.shape)
        values, missing = np.empty(shape, np.float32), np.ones(shape, bool)
        pieces: dict[tuple[str, bytes], tuple[WeatherFile, np.ndarray, np.ndarray, list[int]]] = {}
        for number, channel in enumerate(catalogue.channels):
            for file, which, places in catalogue.holders(channel.variable, times):
                piece = pieces.setdefault((file.address, places.tobytes()), (file, which, places, []))
                piece[3].append(number)
        for file, which, places, numbers in pieces.values():
            channels = [catalogue.channels[number] for number in numbers]
            one = (read(file, channels, places, config.packing, config.absent_chunks == "reject") for _ in range(1))
            for found in reading(file.address.rpartition("/")[2], one):
                if isinstance(found, BadItem):
                    raise ValueError(f"{found.name}: {found.reason}")
                place = np.ix_(which, np.array(numbers))
                values[place], missing[place] = found
        return values, missing

    def _fault(self, missing: np.ndarray, numbers: np.ndarray) -> str | None:
        """Why a window of these times can't be taken; None where it can."""
        if not missing.any():
            return None
        frame, channel = np.argwhere(missing.any(axis=(2, 3)))[0]
        return (
            f"{describe_missing(missing)}, the first in "
            f"{self.catalogue.channels[channel].name} at {time_text(self.catalogue.times[numbers[frame]])}"
        )
