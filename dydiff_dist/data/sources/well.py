"""Source ``well``: any data set of The Well by its folder: ``data/{train,valid,test}/*.hdf5`` and ``stats.yaml``.

Frames are the grid's two axes, the first one along the height; of three-dimensional space, planes are taken.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.hdf5 import open_hdf5
from dydiff_dist.data.inputs import SPLITS, find_files, unique_stems
from dydiff_dist.data.manifest import Augmentation, FrameSchema, Independent
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
from dydiff_dist.data.sources.well_files import WellLayout, WellTrajectory, published_normalisation, read_layout
from dydiff_dist.strict_config import StrictConfig


class WellSourceConfig(StrictConfig):
    """Which fields to take and how to cut them."""

    root: str
    """Folder of one data set, which holds data/train, data/valid, data/test and stats.yaml."""
    num_frames: Annotated[int, Field(ge=2)]
    """Frames of a sample."""
    window_step: Annotated[int, Field(ge=1)] | None = None
    """Steps between the starts of two samples of one trajectory. num_frames if left out: no overlap."""
    fields: tuple[str, ...] = ()
    """Names of the fields, of any order: vectors and tensors give a channel for each component. All that vary in time
    if left out; one that does not is repeated."""
    slice_axis: str | None = None
    """Of three-dimensional data: the axis that the planes are taken across."""
    slice_index: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Of three-dimensional data: grid points on that axis. Each gives samples of its own, those of a trajectory
    counting as one observation."""
    normalisation: Literal["standard", "stats"] = "standard"
    """Network units: mean 0 and variance 1 over the training split as measured, or by the data set's stats.yaml."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 4
    """Trajectories whose samples make one shard."""


@register_source("well", WellSourceConfig, "Any data set of The Well: simulations in HDF5, by its folder.")
class WellSource(Source[WellSourceConfig]):
    """Windows of trajectories, the chosen fields' components as channels: samples (S, C, H, W) float32."""

    _layout: WellLayout | None = None
    """Of the first file, with the chosen fields alone; known when the inputs were planned."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (file relative to data/, trajectory, stem of the keys, steps)."""
        data = Path(self.config.root) / "data"
        found = find_files(data, (".hdf5", ".h5"))
        folders = found.by_split()
        if folders is None:
            raise FileNotFoundError(f"{data} has no folder train/ with .hdf5 files; give another --root")
        stems = unique_stems(found.files)
        by_split: dict[str, list[tuple[tuple[str, int, str, int], int]]] = {split: [] for split in SPLITS}
        first = ""
        for split, names in folders.items():
            for name in names:
                for result in reading(name, _look(data / name)):
                    if isinstance(result, BadItem):
                        found.aside.append(result)
                        continue
                    layout, num_trajectories, num_steps = result
                    if not first:
                        first, self._layout = name, self._chosen(layout)
                    problem = self._unlike(layout)
                    if problem:
                        found.aside.append(BadItem(name, f"{problem} in {first}", is_whole_input=True))
                        continue
                    size = len(self._starts(num_steps)) * self._window_bytes()
                    items = (((name, number, stems[name], num_steps), size) for number in range(num_trajectories))
                    by_split[split].extend(items)
        if not by_split["train"]:
            raise ValueError(f"{data} has no trajectory for training{found.first_fault()}")
        self.normalisation()
        return split_tasks(by_split, self.config.trajectories_per_shard, found.aside)

    def read_item(self, item: Any) -> Iterator[Sample | BadItem | LeftOut]:
        """The windows of a trajectory, plane by plane."""
        name, number, stem, num_steps = item
        layout, starts = self._known(), self._starts(num_steps)
        if not starts:
            yield LeftOut("trajectories of fewer steps than --num-frames")
            return
        with open_hdf5(Path(self.config.root) / "data" / name) as file:
            trajectory = WellTrajectory(file, layout, number)
            absent = trajectory.absent(layout.fields, num_steps)
            for start in starts:
                steps = slice(start, start + self.config.num_frames)
                if absent[steps].any():
                    missing = start + int(absent[steps].argmax())
                    yield BadItem(f"{self.item_name(item)}, step {start}", f"chunks of step {missing} are not there")
                    continue
                for cut in self._cuts():
                    frames = np.concatenate([trajectory.window(field, steps, cut) for field in layout.fields], axis=1)
                    plane = "" if cut is None else f"_{self.config.slice_axis}{cut[1]}"
                    facts = {"file": name, "trajectory": number, "start": start, "plane": plane[1:]}
                    yield Sample(f"{stem}-{number:04d}-{start:05d}{plane}", frames, meta=facts)

    def item_name(self, item: Any) -> str:
        """File and trajectory."""
        return f"{item[0]}, trajectory {item[1]}"

    def item_files(self, item: Any) -> list[Path]:
        """The trajectory's file."""
        return [Path(self.config.root) / "data" / item[0]]

    def independent(self, split: str) -> Independent:
        """Each trajectory: keys go on with the window's first step and the plane."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """The folder that is missing."""
        return f"there is no folder data/{split} with files under {self.config.root}"

    def schema(self, sample: Sample) -> FrameSchema:
        """The fields' components, with shifts along the frames' periodic axes; walls and open boundaries allow none."""
        layout, along = self._known(), self._frame_axes()
        periodic = [axis in layout.periodic for axis in along]
        shifts: tuple[Augmentation, ...] = ("periodic_shift",)
        if not all(periodic):
            one_axis: tuple[Augmentation, Augmentation] = ("periodic_shift_h", "periodic_shift_w")
            shifts = tuple(compress(one_axis, periodic))
        channels = self._channels()
        vector = next((field.name for field in layout.fields if field.order == 1), None)
        if vector is not None and layout.grid_type == "cartesian":
            vector_channels = (channels.index(f"{vector}_{along[1]}"), channels.index(f"{vector}_{along[0]}"))
        else:
            vector_channels = None
        return schema_of(
            sample, channels=channels, allowed_augmentations=shifts, vector_channels=vector_channels, units=""
        )

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of stats.yaml, or None for the training split's own."""
        if self.config.normalisation == "standard":
            return None
        layout, path = self._known(), Path(self.config.root) / "stats.yaml"
        shift, scale = zip(*published_normalisation(path, layout.fields, len(layout.axes)), strict=True)
        return shift, scale

    def details(self) -> dict[str, Any]:
        """What the files say of themselves."""
        layout = self._known()
        return {"dataset_name": layout.dataset_name, "grid_type": layout.grid_type, "frame_axes": self._frame_axes()}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """Fields, axes and the number of trajectories of each split."""
        layout = self._known()
        constant = [field.name for field in layout.fields if field.is_constant]
        size = "×".join(str(layout.sizes[layout.axes.index(axis)]) for axis in self._frame_axes())
        lines = [
            f"{layout.dataset_name}: channels {', '.join(self._channels())}"
            + (f" ({', '.join(constant)} repeated in time)" if constant else ""),
            f"frames {size} along {', '.join(self._frame_axes())}; periodic: {', '.join(layout.periodic) or 'none'}",
        ]
        counts = {split: sum(len(task.items) for task in tasks if task.split == split) for split in SPLITS}
        return [*lines, ", ".join(f"{split}: {count} trajectories" for split, count in counts.items())]

    def _known(self) -> WellLayout:
        assert self._layout is not None, "plan comes first"
        return self._layout

    def _chosen(self, layout: WellLayout) -> WellLayout:
        """The layout with the chosen fields alone; one-line ``ValueError`` where the options don't fit it."""
        axis, indices, by_name = self.config.slice_axis, self.config.slice_index, {f.name: f for f in layout.fields}
        if len(layout.axes) not in (2, 3):
            raise ValueError(f"{layout.dataset_name} has {len(layout.axes)} dimensions of space; 2 or 3 are read")
        if len(layout.axes) == 2 and (axis or indices):
            raise ValueError(f"{layout.dataset_name} has two dimensions; leave out --slice-axis and --slice-index")
        if len(layout.axes) == 3:
            sizes = ", ".join(f"{name} of {size}" for name, size in zip(layout.axes, layout.sizes, strict=True))
            if axis not in layout.axes or not indices or max(indices) >= layout.sizes[layout.axes.index(axis)]:
                raise ValueError(
                    f"--slice-axis {axis} --slice-index {' '.join(map(str, indices)) or None} is no plane of "
                    f"{layout.dataset_name}, whose axes are {sizes} points; for example --slice-axis "
                    f"{layout.axes[-1]} --slice-index {layout.sizes[-1] // 2}"
                )
        unknown = [name for name in self.config.fields if name not in by_name]
        if unknown:
            raise ValueError(f"--fields {unknown[0]} is not in {layout.dataset_name}, which has {', '.join(by_name)}")
        names = self.config.fields or [name for name, field in by_name.items() if not field.is_constant]
        if not names:
            raise ValueError(f"{layout.dataset_name} has no field that varies in time; name some with --fields")
        return replace(layout, fields=tuple(by_name[name] for name in dict.fromkeys(names)))

    def _unlike(self, layout: WellLayout) -> str:
        """What a file has unlike the first one, in words; "" where nothing."""
        known = self._known()
        pairs = [(name, getattr(layout, name), getattr(known, name)) for name in ("axes", "sizes", "periodic")]
        pairs.append(("fields", [f.path for f in known.fields if f in layout.fields], [f.path for f in known.fields]))
        return "; ".join(f"{name} {one}, not {other} as" for name, one, other in pairs if one != other)

    def _frame_axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in self._known().axes if axis != self.config.slice_axis)

    def _channels(self) -> tuple[str, ...]:
        layout = self._known()
        return tuple(channel for field in layout.fields for channel in field.channels(layout.axes))

    def _cuts(self) -> list[tuple[int, int] | None]:
        """(number of the axis, index) of each plane; of two dimensions, the whole."""
        axis = self.config.slice_axis
        return [None] if axis is None else [(self._known().axes.index(axis), n) for n in self.config.slice_index]

    def _starts(self, num_steps: int) -> range:
        length = self.config.num_frames
        return range(0, num_steps - length + 1, self.config.window_step or length)

    def _window_bytes(self) -> int:
        layout = self._known()
        points = int(np.prod([layout.sizes[layout.axes.index(axis)] for axis in self._frame_axes()]))
        return self.config.num_frames * len(self._channels()) * points * 4 * len(self._cuts())


def _look(path: Path) -> Iterator[tuple[WellLayout, int, int]]:
    with open_hdf5(path) as file:
        yield read_layout(file)
