"""Source ``sevir``: radar and satellite events in the layout of the SEVIR data set (CATALOG.csv beside HDF5 files).

An event is 49 frames at 5 minutes of one 384 km square. It is cut into windows; the splits are intervals of time, and a
window belongs to a split only if it lies wholly inside, so no frame of the training set is seen in a test, even where
events overlap in time.
"""

from collections.abc import Iterator
from dataclasses import astuple
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dydiff_dist.data.manifest import FrameSchema, Independent
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import LeftOut, ShardTask, Source, register_source, schema_of, split_tasks
from dydiff_dist.data.sources.sevir_catalogue import Catalogue, SevirEvent, read_catalogue
from dydiff_dist.data.sources.sevir_files import Layout, StoredEvent, files_without_ids, read_event
from dydiff_dist.data.sources.sevir_values import (
    FRAME_SEC,
    IMAGE_TYPES,
    VIL_MISSING,
    bounds,
    converted,
    shift_and_scale,
)
from dydiff_dist.data.tables import parse_time
from dydiff_dist.strict_config import StrictConfig

_DIFFCAST = {
    "window_frames": 25,
    "window_step": 5,
    "downsample": 3,
    "valid_start": "2019-01-01",
    "test_start": "2019-10-01",
    "split_by": "event",
    "normalisation": "unit",
}
PRESETS: dict[str, dict[str, Any]] = {
    "sevir-lr": {
        "window_frames": 13,
        "window_step": 12,
        "time_stride": 2,
        "downsample": 3,
        "valid_start": "2019-01-01",
        "test_start": "2019-06-01",
        "split_by": "event",
        "normalisation": "unit",
    },
    "cascast": {
        "window_frames": 25,
        "window_step": 12,
        "valid_start": "2019-01-01",
        "test_start": "2019-06-01",
        "split_by": "event",
        "normalisation": "unit",
    },
    "diffcast": _DIFFCAST,
    "nowcastdit": _DIFFCAST,
}
"""Settings of published VIL benchmarks: PreDiff's SEVIR-LR (7 -> 6 frames, 128 pixels, 10 minutes), CasCast (13 -> 12,
384 pixels, 5 minutes) and DiffCast (5 -> 20, 128 pixels, 5 minutes), which NowcastDiT takes over (arXiv 2609.37038).
The scores' presets of the same names hold thresholds and aggregation. docs/data.md says where they still differ."""


class SevirSourceConfig(StrictConfig):
    """Which events to take and how to cut them."""

    root: str
    """Folder that holds CATALOG.csv and data/."""
    layout: Layout | None = None
    """Where the frames stand in the files: time_last as in SEVIR's own (event, height, width, frame), or time_first
    (event, frame, height, width). Found by the catalogue's numbers if left out."""
    stored_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many frames of the catalogue the files hold one: 2 in PreDiff's SEVIR-LR. All other options count the
    catalogue's frames."""
    stored_downsample: Annotated[int, Field(ge=1)] = 1
    """Side of the squares of the catalogue's pixels that are one in the files: 3 in PreDiff's SEVIR-LR. ``downsample``
    counts from the catalogue's pixels too."""
    preset: Literal["sevir-lr", "cascast", "diffcast", "nowcastdit"] | None = None
    """Windows, sizes, dates and normalisation of a published benchmark; other options given beside it override it."""
    image_type: Literal["vil", "ir069", "ir107", "vis", "lght"] = "vil"
    """Which of the event's image types to convert; lght are counts of lightning flashes on a grid of 8 km."""
    values: Literal["stored", "physical", "log"] = "stored"
    """stored: as in the files, lossless; physical: kg/m2 (vil), degrees Celsius (ir069, ir107), reflectance (vis); log:
    log(1 + kg/m2) of vil, or log(1 + flashes). Scores of rain with published thresholds need stored values."""
    window_frames: Annotated[int, Field(ge=1)] = 15
    """Frames of a window, after the time stride."""
    window_step: Annotated[int, Field(ge=1)] = 5
    """Frames of the catalogue between the starts of two windows of one event."""
    time_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many frames of the catalogue (5 minutes each) one is taken; as many as the files hold if left out."""
    downsample: Annotated[int, Field(ge=1)] = 1
    """Side of the squares of pixels that are averaged to one, missing ones left out; above 1 the frames are stored as
    float32. As the files hold them if left out."""
    valid_start: str | None = None
    """Time (UTC unless it has a zone; like 2019-01-01 or 2010-08-26T05:00) at which validation begins; training ends
    there."""
    test_start: str | None = None
    """Time, likewise, at which testing begins; validation, or training, ends there."""
    split_by: Literal["window", "event"] = "window"
    """window: a window belongs to a split only if it lies wholly inside, so that nothing leaks; event: all windows of
    an event go by the event's time, as published loaders do, and those of two splits may share up to four hours."""
    max_pct_missing: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Events with a larger share of missing pixels (percent, from the catalogue) are left out. At 0, windows of VIL in
    which a pixel is missing (stored 255) are too; above, stored values keep the 255."""
    normalisation: Literal["standard", "unit", "sevir", "log_rain"] = "standard"
    """Network units: mean 0 and variance 1 over the training split; 0 to 1 (vil, vis); the published z-score of stored
    values (all but vis); or log(1 + mm/h) for values that are stored as 255 log(1 + mm/h) / log 101."""
    events_per_shard: Annotated[int, Field(ge=1)] = 16
    """Events whose windows make one shard."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {**PRESETS.get(given.get("preset", ""), {}), **given}
        stride = given.get("stored_stride", 1)
        if isinstance(stride, int) and stride > 1:
            given = {"time_stride": stride, "window_step": -(-5 // stride) * stride, **given}
        return {"downsample": given.get("stored_downsample", 1), **given}

    @model_validator(mode="after")
    def _times_are_ordered(self) -> "SevirSourceConfig":
        starts = [begin for _, begin, _ in self.intervals()]
        if starts != sorted(starts):
            raise ValueError(f"valid_start {self.valid_start} must come before test_start {self.test_start}; swap them")
        for name, stored in (
            ("time_stride", "stored_stride"),
            ("window_step", "stored_stride"),
            ("downsample", "stored_downsample"),
        ):
            value, step = getattr(self, name), getattr(self, stored)
            if value % step:
                raise ValueError(f"{name} {value} is no multiple of {stored} {step}; the files hold no more than that")
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


@register_source("sevir", SevirSourceConfig, "Weather events in SEVIR's layout: CATALOG.csv and HDF5 files.")
class SevirSource(Source[SevirSourceConfig]):
    """Windows of events, one channel of one image type: samples (S, 1, H, W)."""

    _interval: float = FRAME_SEC / 60
    """Minutes between two frames of the catalogue; known when it was read."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split in order of time; an item is (event, HDF5 file, row, first frames of its windows, number
        of frames, height and width of the event in the file, number of windows left out for a gap)."""
        catalogue = read_catalogue(Path(self.config.root), self.config.image_type, self.config.max_pct_missing)
        self._interval = catalogue.frame_interval()
        events = self._with_files(catalogue)
        by_split: dict[str, list[tuple[tuple[Any, ...], int]]] = {}
        for split, begin, end in self.config.intervals():
            items = []
            for event in events:
                starts, num_crossing = self._window_starts(event, begin, end)
                if starts or num_crossing:
                    stored = self._stored_event(event)
                    item = (stored.event, stored.file, stored.row, starts, *astuple(stored)[3:], num_crossing)
                    items.append((item, len(starts) * self._window_bytes(event)))
            if not any(item[3] for item, _ in items):
                raise ValueError(
                    f"no window of {self.config.window_frames} frames lies wholly in the split {split!r}; the events "
                    f"span {_span(events)}: move --valid-start or --test-start, or shorten --window-frames"
                )
            by_split[split] = items
        return split_tasks(by_split, self.config.events_per_shard, catalogue.aside)

    def read_item(self, item: Any) -> Iterator[Sample | LeftOut]:
        """The windows of an event."""
        event, file, row, starts, num_frames, height, width, num_crossing = item
        for _ in range(num_crossing):
            yield LeftOut("a window would cross a gap in the catalogue's minute_offsets")
        if not starts:
            return
        stored = StoredEvent(event, file, row, num_frames, height, width)
        frames_SHW = read_event(self._data_folder(), stored, self.config.image_type, self.config.layout)
        for start in starts:
            first, step = start // self.config.stored_stride, self.config.time_stride // self.config.stored_stride
            window = frames_SHW[first : first + (self.config.window_frames - 1) * step + 1 : step]
            if self._lacks_pixels(window):
                yield LeftOut(f"pixels are missing (stored {VIL_MISSING}), which have no value in {self._units()}")
                continue
            window = converted(self._downsample(window), self.config.image_type, self.config.values)
            window = np.ascontiguousarray(window[:, None])
            yield Sample(f"{event}-{start:02d}", window, meta={"event": event, "start": start})

    def item_name(self, item: Any) -> str:
        """The event and its file."""
        return f"event {item[0]} in {item[1]}"

    def item_files(self, item: Any) -> list[Path]:
        """The event's HDF5 file."""
        return [self._data_folder() / item[1]]

    def independent(self, split: str) -> Independent:
        """Each event: keys go on with a window's first frame."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """The option that makes the split."""
        return f"--{split}-start is not given"

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
        """Whether a window of VIL has gaps that cannot be kept: converted values have no number that says so."""
        if self.config.image_type != "vil" or (self.config.values == "stored" and self.config.max_pct_missing > 0):
            return False
        return bool((window == VIL_MISSING).any())

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
        return {"frame_interval_minutes": self._interval * self.config.time_stride}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """Dates, windows and events of each split."""
        lines = []
        names = dict.fromkeys(item[1] for task in tasks for item in task.items)
        unnamed = [] if self.config.image_type == "lght" else files_without_ids(self._data_folder(), names)
        if unnamed:
            more = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
            lines.append(f"{unnamed[0]}{more}: no names of events in the file, they are taken by their file_index")
        for split, begin, end in self.config.intervals():
            items = [item for task in tasks if task.split == split for item in task.items]
            windows = sum(len(item[3]) for item in items)
            since = "the beginning" if begin == datetime.min else f"{begin:%Y-%m-%d %H:%M}"
            until = "the end" if end == datetime.max else f"{end:%Y-%m-%d %H:%M}"
            lines.append(
                f"{split}: {windows} windows of {self.config.window_frames} frames at "
                f"{self._interval * self.config.time_stride:g} minutes from {len(items)} events, {since} to {until}"
            )
        return lines

    def _data_folder(self) -> Path:
        return Path(self.config.root) / "data"

    def _with_files(self, catalogue: Catalogue) -> list[SevirEvent]:
        """The events whose file is there; the others are left out by name, as few people fetch all of SEVIR."""
        names = dict.fromkeys(event.file for event in catalogue.events)
        there = {name for name in names if (self._data_folder() / name).exists()}
        for event in catalogue.events:
            if event.file not in there:
                catalogue.aside.append(LeftOut("its file is not below data/", f"{event.event} in {event.file}"))
        if not there:
            raise FileNotFoundError(
                f"{self._data_folder()} holds none of the files that the catalogue names, like {next(iter(names))}; "
                "fetch them, or give another --root"
            )
        return [event for event in catalogue.events if event.file in there]

    def _stored_event(self, event: SevirEvent) -> StoredEvent:
        """What the file should hold of an event."""
        sides = [side and side // self.config.stored_downsample for side in (event.height, event.width)]
        num_frames = -(-len(event.minutes) // self.config.stored_stride)
        return StoredEvent(event.event, event.file, event.row, num_frames, *sides)

    def _window_starts(self, event: SevirEvent, begin: datetime, end: datetime) -> tuple[tuple[int, ...], int]:
        """First frames of the event's windows that lie wholly between two times, and the number of those that are left
        out as they would cross a gap."""
        inside, num_crossing = [], 0
        step = self.config.time_stride
        span = (self.config.window_frames - 1) * step + 1
        for first in range(0, len(event.minutes) - span + 1, self.config.window_step):
            times = [event.time_of(first), event.time_of(first + span - 1)]
            if self.config.split_by == "event":
                times = [event.time] * 2
            if not (begin <= times[0] and times[1] < end):
                continue
            minutes = event.minutes[first : first + span]
            # half a frame is more than the times of a scan vary
            if any(abs(b - a - self._interval) > self._interval / 2 for a, b in pairwise(minutes)):
                num_crossing += 1
            else:
                inside.append(first)
        return tuple(inside), num_crossing

    def _window_bytes(self, event: SevirEvent) -> int:
        pixels = (event.height or 384) * (event.width or 384) // self.config.downsample**2
        is_float = self.config.downsample > self.config.stored_downsample or self.config.values != "stored"
        pixel_bytes = 4 if is_float else (1 if self.config.image_type == "vil" else 2)
        return self.config.window_frames * pixels * pixel_bytes + 2048

    def _downsample(self, frames_SHW: np.ndarray) -> np.ndarray:
        """Means over squares of pixels, float32; unchanged at factor 1. Rows and columns beyond a multiple are cut.
        Missing pixels of VIL have no part in a mean; a square of nothing else is missing itself."""
        factor = self.config.downsample // self.config.stored_downsample
        if factor == 1:
            return frames_SHW
        S, H, W = frames_SHW.shape
        h, w = H // factor, W // factor
        squares = frames_SHW[:, : h * factor, : w * factor].reshape(S, h, factor, w, factor)
        if self.config.image_type != "vil" or not (squares == VIL_MISSING).any():
            return squares.mean((2, 4), dtype=np.float64).astype(np.float32)
        is_known = squares != VIL_MISSING
        count = is_known.sum((2, 4))
        total = np.where(is_known, squares, 0).sum((2, 4), dtype=np.float64)
        return np.where(count > 0, total / np.maximum(count, 1), VIL_MISSING).astype(np.float32)


def _parse_time(text: str, name: str) -> datetime:
    """A time in UTC without its zone, as the catalogue has them; one that is given is converted."""
    try:
        return parse_time(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; write a time like 2019-01-01 or 2019-01-01T12:00") from None


def _span(events: list[SevirEvent]) -> str:
    first, last = min(event.time_of(0) for event in events), max(event.time_of(-1) for event in events)
    return f"{first:%Y-%m-%dT%H:%M} to {last:%Y-%m-%dT%H:%M}"
