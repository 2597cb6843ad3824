"""Source ``radar_h5``: one HDF5 file of numbered radar sequences, as DiffCast's authors share them.

Groups ``train``, ``test`` (and ``valid``, where there is one) hold arrays (S, H, W) of 8 bits, named by their numbers:
``0`` or ``sample_1``. How many there should be stands beside them, as ``all_len`` in the group or ``train_len`` at the
root.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from pydantic import Field, model_validator

from dydiff_dist.data.hdf5 import dataset, open_hdf5
from dydiff_dist.data.inputs import SPLIT_FOLDERS, SPLITS
from dydiff_dist.data.manifest import FrameSchema
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
from dydiff_dist.data.video import resized
from dydiff_dist.strict_config import StrictConfig

_RESIZED: dict[str, Any] = {"size": (128, 128), "fit": "resize", "normalisation": "unit"}
PRESETS: dict[str, dict[str, Any]] = {
    "shanghai": _RESIZED,
    "meteonet": {**_RESIZED, "full_scale": 90.0},
    "cikm": {**_RESIZED, "fit": "pad"},
    "hko7": _RESIZED,
}
"""Sizes and normalisations of DiffCast's loaders: CIKM's 101 pixels are padded, the others resized; MeteoNet's values
are divided by 90. HKO-7 is not among its data sets and goes by Shanghai's. The scores' presets of the same names hold
thresholds."""


class RadarH5SourceConfig(StrictConfig):
    """Which file to take, and how its frames become those of samples."""

    file: str
    """The HDF5 file."""
    preset: Literal["shanghai", "meteonet", "cikm", "hko7"] | None = None
    """Size and normalisation of a data set; other options given beside it override it."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the frames; as they are if left out."""
    fit: Literal["resize", "pad"] = "resize"
    """How frames come to their size: resized (bilinear, with antialiasing; stored as float32), or cut around their
    centre and padded with zeros (stored as they are)."""
    normalisation: Literal["standard", "unit"] = "standard"
    """Network units: mean 0 and variance 1 over the training split, or stored values over full_scale."""
    full_scale: Annotated[float, Field(gt=0)] = 255.0
    """With the normalisation unit: the stored value that becomes 1."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training sequences for validation, the last ones by their numbers, where the file has none of its
    own. As neighbours may overlap in time, the sequence before them is left out."""
    sequences_per_shard: Annotated[int, Field(ge=1)] = 128
    """Sequences of one shard."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        return {**PRESETS.get(given.get("preset") or "", {}), **given} if isinstance(given, dict) else given


@register_source(
    "radar_h5", RadarH5SourceConfig, "Radar sequences in DiffCast's layout: Shanghai, MeteoNet, CIKM, HKO-7."
)
class RadarH5Source(Source[RadarH5SourceConfig]):
    """One sample (S, 1, H, W) for each sequence."""

    _has_valid: bool = False
    """Whether the file has sequences for validation; known when the inputs were planned."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split, by number; an item is (group, name of the array, number)."""
        path = Path(self.config.file)
        aside: list[BadItem | LeftOut] = []
        by_split: dict[str, list[tuple[tuple[str, str, int], int]]] = {split: [] for split in SPLITS}
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give another --file")
        for result in reading(str(path), self._groups(path)):
            if isinstance(result, BadItem):
                raise ValueError(f"{path}: {result.reason}")
            split, items, missing = result
            by_split[split] += items
            aside += missing
        if not by_split["train"]:
            raise ValueError(f"{path} has no group 'train' of numbered arrays; give another --file")
        train = by_split["train"]
        self._has_valid = bool(by_split["valid"])
        first = len(train) - round(len(train) * self.config.valid_fraction)
        if not self._has_valid and first < len(train):
            by_split |= {"train": train[: max(first - 1, 0)], "valid": train[first:]}
            aside.append(LeftOut("may overlap in time with the first of validation", "/".join(train[first - 1][0][:2])))
        if not by_split["train"]:
            raise ValueError(f"{path}: --valid-fraction {self.config.valid_fraction} leaves no training; give less")
        return split_tasks(by_split, self.config.sequences_per_shard, aside)

    def read_item(self, item: Any) -> Iterator[Sample]:
        """A sequence."""
        group, name, number = item
        with open_hdf5(Path(self.config.file)) as file:
            stored = dataset(file, f"{group}/{name}")
            frames = stored[()]
        if frames.ndim == 4 and 1 in (frames.shape[1], frames.shape[-1]):
            frames = frames.squeeze(1 if frames.shape[1] == 1 else -1)
        if frames.ndim != 3 or frames.dtype != np.uint8:
            raise ValueError(f"it is {frames.dtype} {frames.shape}; (S, H, W) of uint8 is expected")
        frames = self._fitted(frames)
        yield Sample(f"{group}_{number:06d}", frames[:, None], meta={"group": group, "number": number})

    def item_name(self, item: Any) -> str:
        """Group and array."""
        return f"{item[0]}/{item[1]}"

    def item_files(self, item: Any) -> list[Path]:
        """The file."""
        return [Path(self.config.file)]

    def split_hint(self, split: str) -> str:
        """The group or the fraction that decides."""
        chosen = f", and --valid-fraction {self.config.valid_fraction} chose none" if split == "valid" else ""
        return f"{self.config.file} has no group {split!r} of numbered arrays{chosen}"

    def schema(self, sample: Sample) -> FrameSchema:
        """One channel of radar. Storms have no preferred orientation that a flip would break."""
        return schema_of(
            sample,
            channels=("radar",),
            units="stored values of 8-bit radar images",
            allowed_augmentations=("flip", "rotate"),
            bounds=((0, 255),),
        )

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Stored values over ``full_scale``, or None for the training split's own mean and standard deviation."""
        return ((0.0,), (self.config.full_scale,)) if self.config.normalisation == "unit" else None

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """How many sequences each split has, and where those for validation are from."""
        counts = {split: sum(len(task.items) for task in tasks if task.split == split) for split in SPLITS}
        taken = "" if self._has_valid or not counts["valid"] else "; validation is the last of the training sequences"
        return [", ".join(f"{split}: {count} sequences" for split, count in counts.items()) + taken]

    def _groups(self, path: Path) -> Iterator[tuple[str, list[tuple[tuple[str, str, int], int]], list[BadItem]]]:
        """(split, items with their bytes in order of their numbers, those that are missing) of each group of a file."""
        with open_hdf5(path) as file:
            for group, content in file.items():
                split = SPLIT_FOLDERS.get(group.lower())
                if split is None or not isinstance(content, h5py.Group):
                    continue
                matches = [match for name in content if (match := re.fullmatch(r"(?:\w*_)?(\d{1,9})", name))]
                items = [((group, match[0], int(match[1])), self._bytes(content[match[0]])) for match in matches]
                yield split, sorted(items, key=lambda item: item[0][2]), _missing(file, group, len(items))

    def _fitted(self, frames_SHW: np.ndarray) -> np.ndarray:
        """Frames of the asked size."""
        size, stored = self.config.size, frames_SHW.shape[1:]
        if size is None or size == stored:
            return frames_SHW
        if self.config.fit == "resize":
            return np.stack([resized(frame.astype(np.float32), size) for frame in frames_SHW])
        for axis, (wanted, found) in enumerate(zip(size, stored, strict=True), start=1):
            cut, missing = max(found - wanted, 0) // 2, max(wanted - found, 0)
            frames_SHW = frames_SHW.take(range(cut, cut + min(wanted, found)), axis)
            width = [(0, 0)] * 3
            width[axis] = (missing // 2, missing - missing // 2)
            frames_SHW = np.pad(frames_SHW, width)
        return frames_SHW

    def _bytes(self, stored: h5py.Dataset) -> int:
        """About what a sequence takes in a shard."""
        shape = getattr(stored, "shape", ())
        pixels = shape[0] * int(np.prod(self.config.size or shape[1:])) if shape else 0
        return pixels * (4 if self.config.size and self.config.fit == "resize" else 1) + 2048


def _missing(file: h5py.File, group: str, count: int) -> list[BadItem]:
    """A bad input for each sequence that the file promises and does not hold."""
    for name in (f"{group}/all_len", f"{group}_len"):
        if name in file:
            promised = int(dataset(file, name)[()])
            reason = f"{name} promises {promised} sequences, there are {count}; the file is not whole"
            # more than there are good ones stop any conversion, so that a damaged number need not be listed
            absent = range(count, min(promised, 2 * count + 1))
            return [BadItem(f"{group}, sequence {n + 1} of {promised}", reason, True) for n in absent]
    return []
