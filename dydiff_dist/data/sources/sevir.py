"""Source ``sevir``: radar and satellite events in the layout of the SEVIR data set (CATALOG.csv beside HDF5 files).

An event is 49 frames at 5 minutes of one 384 km square. It is cut into windows; the splits are intervals of time, and a
window belongs to a split only if it lies wholly inside, so no frame of the training set is seen in a test, even where
events overlap in time.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from pydantic import Field, model_validator

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source, register_source, schema_of, shard_tasks
from dydiff_dist.data.sources.sevir_values import (
    IMAGE_TYPES,
    LIGHTNING_SIDE,
    NUM_FRAMES,
    VIL_MISSING,
    bounds,
    converted,
    flashes_to_frames,
    shift_and_scale,
)
from dydiff_dist.strict_config import StrictConfig

PRESETS: dict[str, dict[str, Any]] = {
    "sevir-lr": {
        "window_frames": 13,
        "window_step": 12,
        "time_stride": 2,
        "downsample": 3,
        "valid_start": "2019-01-01",
        "test_start": "2019-06-01",
        "normalisation": "unit",
    },
    "cascast": {
        "window_frames": 25,
        "window_step": 12,
        "valid_start": "2019-01-01",
        "test_start": "2019-06-01",
        "normalisation": "unit",
    },
    "diffcast": {
        "window_frames": 25,
        "window_step": 5,
        "downsample": 3,
        "valid_start": "2019-01-01",
        "test_start": "2019-10-01",
        "normalisation": "unit",
    },
}
"""Settings of published VIL benchmarks: PreDiff's SEVIR-LR (7 -> 6 frames, 128 pixels, 10 minutes), CasCast (13 -> 12,
384 pixels, 5 minutes) and DiffCast (5 -> 20, 128 pixels, 5 minutes). docs/data.md says where they still differ."""


class SevirSourceConfig(StrictConfig):
    """Which events to take and how to cut them."""

    root: str
    """Folder that holds CATALOG.csv and data/."""
    preset: Literal["sevir-lr", "cascast", "diffcast"] | None = None
    """Windows, sizes, dates and normalisation of a published benchmark; other options given beside it override it."""
    image_type: Literal["vil", "ir069", "ir107", "vis", "lght"] = "vil"
    """Which of the event's image types to convert; lght are counts of lightning flashes on a grid of 8 km."""
    values: Literal["stored", "physical", "log"] = "stored"
    """stored: as in the files, lossless; physical: kg/m2 (vil), degrees Celsius (ir069, ir107), reflectance (vis); log:
    log(1 + kg/m2) of vil, or log(1 + flashes). Scores of rain with published thresholds need stored values."""
    window_frames: Annotated[int, Field(ge=1)] = 15
    """Frames of a window, after the time stride."""
    window_step: Annotated[int, Field(ge=1)] = 5
    """Stored frames between the starts of two windows of one event."""
    time_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many stored frames (5 minutes each) one is taken."""
    downsample: Annotated[int, Field(ge=1)] = 1
    """Side of the squares of pixels that are averaged to one; above 1 the frames are stored as float32."""
    valid_start: str | None = None
    """Time (UTC, like 2019-01-01 or 2010-08-26T05:00) at which validation begins; training ends there."""
    test_start: str | None = None
    """Time (UTC) at which testing begins; validation, or training, ends there."""
    max_pct_missing: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Events with a larger share of missing pixels (percent, from the catalogue) are left out."""
    normalisation: Literal["standard", "unit", "sevir", "log_rain"] = "standard"
    """Network units: mean 0 and variance 1 over the training split; 0 to 1 (vil, vis); the published z-score of stored
    values (all but vis); or log(1 + mm/h) for values that are stored as 255 log(1 + mm/h) / log 101."""
    events_per_shard: Annotated[int, Field(ge=1)] = 16
    """Events whose windows make one shard."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") in PRESETS:
            return {**PRESETS[given["preset"]], **given}
        return given

    @model_validator(mode="after")
    def _times_are_ordered(self) -> "SevirSourceConfig":
        starts = [begin for _, begin, _ in self.intervals()]
        if starts != sorted(starts):
            raise ValueError(f"valid_start {self.valid_start} must come before test_start {self.test_start}; swap them")
        if self.values == "log" and self.image_type not in ("vil", "lght"):
            raise ValueError(f"values log is of vil and lght, image_type is {self.image_type}; use physical or stored")
        shift_and_scale(self.image_type, self.values, self.normalisation)
        return self

    def intervals(self) -> list[tuple[str, datetime, datetime]]:
        """(split, begin, end) in order of time; training begins with ``datetime.min``, the last ends with ``.max``."""
        named = [("valid", self.valid_start), ("test", self.test_start)]
        later = [(split, _parse_time(text, f"{split}_start")) for split, text in named if text is not None]
        starts = [("train", datetime.min), *later]
        ends = [begin for _, begin in later] + [datetime.max]
        return [(split, begin, end) for (split, begin), end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class SevirEvent:
    """One line of the catalogue."""

    event: str
    file: str
    """Relative to data/."""
    row: int
    """Index within the HDF5 dataset."""
    time: datetime
    """UTC, of offset 0."""
    minutes: tuple[float, ...]
    """Offset of each frame."""
    side: int
    """Pixels along H and W."""


@register_source("sevir", SevirSourceConfig, "Weather events in SEVIR's layout: CATALOG.csv and HDF5 files.")
class SevirSource(Source[SevirSourceConfig]):
    """Windows of events, one channel of one image type: samples (S, 1, H, W)."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split in order of time; an item is (event, HDF5 file, row, first frames of its windows)."""
        events = read_catalogue(Path(self.config.root), self.config.image_type, self.config.max_pct_missing)
        tasks: list[ShardTask] = []
        for split, begin, end in self.config.intervals():
            cut = [(event, self._window_starts(event, begin, end)) for event in events]
            items = [
                ((event.event, event.file, event.row, starts), len(starts) * self._window_bytes(event))
                for event, starts in cut
                if starts
            ]
            if not items:
                raise ValueError(
                    f"no window of {self.config.window_frames} frames lies wholly in the split {split!r}; the events "
                    f"span {_span(events)}: move --valid-start or --test-start, or shorten --window-frames"
                )
            tasks += shard_tasks(split, items, self.config.events_per_shard)
        return tasks

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem | LeftOut]:
        """The windows of the shard's events."""
        for event, file, row, starts in task.items:
            try:
                frames_SHW = self._read_event(file, row, event)
            except (OSError, KeyError, ValueError, IndexError) as error:
                yield BadItem(f"event {event} in {file}", str(error))
                continue
            for start in starts:
                stop = start + self._span_frames()
                window = frames_SHW[start : stop : self.config.time_stride]
                if self._lacks_pixels(window):
                    yield LeftOut(f"pixels are missing (stored {VIL_MISSING}), which have no value in {self._units()}")
                    continue
                window = converted(window, self.config.image_type, self.config.values)
                yield Sample(
                    f"{event}-{start:02d}", self._downsample(window)[:, None], meta={"event": event, "start": start}
                )

    def schema(self, sample: Sample) -> FrameSchema:
        """One channel of the chosen image type. Storms have no preferred orientation that a flip would break."""
        return schema_of(
            sample,
            channels=(self._channel(),),
            units=self._units(),
            allowed_augmentations=("flip", "rotate"),
            bounds=(bounds(self.config.image_type, self.config.values),),
        )

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Shift and scale by name; None for the training split's own mean and standard deviation."""
        found = shift_and_scale(self.config.image_type, self.config.values, self.config.normalisation)
        return None if found is None else ((found[0],), (found[1],))

    def _lacks_pixels(self, window: np.ndarray) -> bool:
        """Whether converted liquid would have gaps; stored values keep the number that says so."""
        is_converted = self.config.image_type == "vil" and self.config.values != "stored"
        return is_converted and bool((window == VIL_MISSING).any())

    def _channel(self) -> str:
        """Scores know stored VIL by its name, so converted values have another one."""
        name = self.config.image_type
        return name if self.config.values == "stored" else {"vil": "integrated_liquid"}.get(name, name)

    def _units(self) -> str:
        kind = IMAGE_TYPES[self.config.image_type]
        if self.config.values == "stored":
            return f"SEVIR's stored values of {self.config.image_type} ({kind.name})"
        return kind.physical_units if self.config.values == "physical" else f"log(1 + {kind.physical_units})"

    def details(self) -> dict[str, Any]:
        """Minutes between two frames of a sample."""
        return {"frame_interval_minutes": 5 * self.config.time_stride}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """Dates, windows and events of each split."""
        lines = []
        for split, begin, end in self.config.intervals():
            items = [item for task in tasks if task.split == split for item in task.items]
            windows = sum(len(window_starts) for _, _, _, window_starts in items)
            since = "the beginning" if begin == datetime.min else f"{begin:%Y-%m-%d %H:%M}"
            until = "the end" if end == datetime.max else f"{end:%Y-%m-%d %H:%M}"
            lines.append(
                f"{split}: {windows} windows of {self.config.window_frames} frames at {5 * self.config.time_stride} "
                f"minutes from {len(items)} events, {since} to {until}"
            )
        return lines

    def _span_frames(self) -> int:
        """Stored frames from a window's first to its last, inclusive."""
        return (self.config.window_frames - 1) * self.config.time_stride + 1

    def _window_starts(self, event: SevirEvent, begin: datetime, end: datetime) -> tuple[int, ...]:
        """First frames of the event's windows that lie wholly between two times."""
        inside = []
        for first in range(0, len(event.minutes) - self._span_frames() + 1, self.config.window_step):
            first_time = event.time + timedelta(minutes=event.minutes[first])
            last_time = event.time + timedelta(minutes=event.minutes[first + self._span_frames() - 1])
            if begin <= first_time and last_time < end:
                inside.append(first)
        return tuple(inside)

    def _window_bytes(self, event: SevirEvent) -> int:
        side = event.side // self.config.downsample
        is_float = self.config.downsample > 1 or self.config.values != "stored"
        pixel_bytes = 4 if is_float else (1 if self.config.image_type == "vil" else 2)
        return self.config.window_frames * side**2 * pixel_bytes + 2048

    def _read_event(self, file: str, row: int, event: str) -> np.ndarray:
        """All frames of an event, (S, H, W) as stored."""
        with h5py.File(Path(self.config.root) / "data" / file, "r") as data:
            if self.config.image_type == "lght":
                if event not in data:
                    raise ValueError("it is not in the file")
                return flashes_to_frames(data[event][()])
            stored = data["id"][row].decode()
            if stored != event:
                raise ValueError(f"row {row} holds event {stored}, the catalogue says {event}")
            return np.moveaxis(data[self.config.image_type][row], -1, 0)

    def _downsample(self, frames_SHW: np.ndarray) -> np.ndarray:
        """Means over squares of pixels, float32; unchanged at factor 1. Rows and columns beyond a multiple are cut."""
        factor = self.config.downsample
        if factor == 1:
            return np.ascontiguousarray(frames_SHW)
        S, H, W = frames_SHW.shape
        h, w = H // factor, W // factor
        squares = frames_SHW[:, : h * factor, : w * factor].reshape(S, h, factor, w, factor)
        return squares.mean((2, 4), dtype=np.float64).astype(np.float32)


def read_catalogue(root: Path, image_type: str, max_pct_missing: float) -> list[SevirEvent]:
    """The events of one image type in order of time, without those that miss too many pixels."""
    path = root / "CATALOG.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --root must be the folder that holds CATALOG.csv and data/")
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["img_type"] == image_type]
    kept = [_event(row) for row in rows if float(row["pct_missing"] or 0) <= max_pct_missing]
    if not kept:
        raise ValueError(
            f"{path} lists {len(rows)} events of type {image_type!r}, none with at most {max_pct_missing} percent "
            "missing; choose another --image-type or --max-pct-missing"
        )
    return sorted(kept, key=lambda event: (event.time, event.event))


def _event(row: dict[str, str]) -> SevirEvent:
    return SevirEvent(
        event=row["id"],
        file=row["file_name"],
        row=int(row["file_index"]),
        time=datetime.fromisoformat(row["time_utc"]),
        minutes=tuple(float(offset) for offset in row["minute_offsets"].split(":"))
        if row["minute_offsets"]
        else tuple(5.0 * number - 120 for number in range(NUM_FRAMES)),
        side=LIGHTNING_SIDE if row["img_type"] == "lght" else int(float(row["size_x"] or 384)),
    )


def _parse_time(text: str, name: str) -> datetime:
    """A time in UTC without its zone, as the catalogue has them; one that is given is converted."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; write a time like 2019-01-01 or 2019-01-01T12:00") from None
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)


def _span(events: list[SevirEvent]) -> str:
    first = min(event.time + timedelta(minutes=event.minutes[0]) for event in events)
    last = max(event.time + timedelta(minutes=event.minutes[-1]) for event in events)
    return f"{first:%Y-%m-%dT%H:%M} to {last:%Y-%m-%dT%H:%M}"
