"""Files of The Well (https://github.com/PolymathicAI/the_well, docs/data_format.md): what they hold, and windows of it.

``t0_fields`` are scalars, ``t1_fields`` vectors, ``t2_fields`` tensors of the space's D dimensions, each
([N,] [T,] X, Y[, Z] [, D[, D]]). An axis along which a field does not vary, as its attributes say, is left out or has
one entry; it is repeated here.

Letters: N trajectories, T steps, S frames of a window, C channels, H W height and width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml  # which webdataset brings

from dydiff_dist.data.array_files import StoredArray
from dydiff_dist.data.hdf5 import dataset
from dydiff_dist.quoting import first_line

MIN_STD = 1e-4
"""Published deviations below it count as this, as The Well's own loader has it."""


@dataclass(frozen=True)
class WellField:
    """A field by name."""

    name: str
    order: int
    """0 of scalars, 1 of vectors, 2 of tensors."""
    is_constant: bool
    """Whether it does not vary in time."""

    @property
    def path(self) -> str:
        """Of its array in a file."""
        return f"t{self.order}_fields/{self.name}"

    def channels(self, axes: Sequence[str]) -> list[str]:
        """Names of its components, in the order of their storage.

        Examples:
            >>> WellField("D", 2, False).channels("xy")
            ['D_xx', 'D_xy', 'D_yx', 'D_yy']
        """
        return ["_".join([self.name, "".join(each)][: 1 + self.order]) for each in product(axes, repeat=self.order)]


@dataclass(frozen=True)
class WellLayout:
    """What all files of a data set have in common."""

    dataset_name: str
    grid_type: str
    axes: tuple[str, ...]
    """Of space, in the order of the arrays' axes."""
    sizes: tuple[int, ...]
    """Grid points along each."""
    periodic: tuple[str, ...]
    """Axes of which every boundary is periodic."""
    fields: tuple[WellField, ...]


def read_layout(file: h5py.File) -> tuple[WellLayout, int, int]:
    """(layout, N, T) of an open file.

    Raises:
        KeyError, ValueError: it is not of The Well's layout.
    """
    axes = _words(file["dimensions"].attrs["spatial_dims"])
    sizes = tuple(dataset(file, f"dimensions/{axis}").shape[-1] for axis in axes)
    fields = []
    for order in range(3):
        group = file.get(f"t{order}_fields")
        for name in () if group is None else _words(group.attrs["field_names"]):
            found = dataset(group, name)
            fields.append(WellField(name, order, not found.attrs["time_varying"]))
    facts = [_words(file.attrs.get(name, ""))[0] for name in ("dataset_name", "grid_type")]
    layout = WellLayout(facts[0], facts[1], axes, sizes, _periodic_axes(file), tuple(fields))
    return layout, int(file.attrs["n_trajectories"]), dataset(file, "dimensions/time").shape[-1]


def _periodic_axes(file: h5py.File) -> tuple[str, ...]:
    by_type: dict[bool, set[str]] = {True: set(), False: set()}
    for boundary in file["boundary_conditions"].values():
        is_periodic = _words(boundary.attrs["bc_type"])[0].upper() == "PERIODIC"
        by_type[is_periodic] |= set(_words(boundary.attrs["associated_dims"]))
    return tuple(sorted(by_type[True] - by_type[False]))


def _words(value: Any) -> tuple[str, ...]:
    """An attribute's texts, however HDF5 holds them."""
    return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in np.atleast_1d(value).tolist())


@dataclass(frozen=True)
class WellTrajectory:
    """A trajectory of an open file."""

    file: h5py.File
    layout: WellLayout
    number: int

    def absent(self, fields: Sequence[WellField], num_steps: int) -> np.ndarray:
        """(T,) bool: steps of which chunks are not in the file, lost by a copy or never written."""
        absent = np.zeros(num_steps, bool)
        for field in fields:
            stored = dataset(self.file, field.path)
            in_sample, in_time = _leading(stored)
            if stored.ndim > in_sample:
                pieces = StoredArray(stored).absent(self.number if in_sample else -1)
                absent |= pieces if in_time else pieces.any()
        return absent

    def window(self, field: WellField, steps: slice, cut: tuple[int, int] | None) -> np.ndarray:
        """(S, C, H, W) float32 of a field's components, repeated along what it does not vary along.

        Args:
            field: of the layout.
            steps: the window, from first to last + 1.
            cut: number of the axis that the plane is taken across, and its index; None in two dimensions.

        Raises:
            ValueError: the array has not the shape that its attributes say.
        """
        stored, sizes = dataset(self.file, field.path), self.layout.sizes
        in_sample, in_time = _leading(stored)
        first, varies = in_sample + in_time, [bool(each) for each in stored.attrs["dim_varying"]]
        spatial = tuple(size if varying else 1 for size, varying in zip(sizes, varies, strict=True))
        has_all = stored.shape[first : first + len(sizes)] == spatial
        kept = [n for n, varying in enumerate(varies) if varying or has_all]
        num_parts, last = len(sizes) ** field.order, first + len(kept)
        if stored.shape[first:last] != tuple(spatial[n] for n in kept) or np.prod(stored.shape[last:]) != num_parts:
            raise ValueError(f"{field.path} has shape {stored.shape}, not what its attributes say on a grid of {sizes}")
        across, index = (-1, 0) if cut is None else cut
        planes = [slice(index, index + 1) if n == across and varies[n] else slice(None) for n in kept]
        values = stored[(*[self.number] * in_sample, *[steps] * in_time, *planes)].astype(np.float32)
        shape = [1 if n == across else size for n, size in enumerate(sizes)]
        values = values.reshape(-1, *map(min, shape, spatial), num_parts)
        frames = np.moveaxis(np.broadcast_to(values, (steps.stop - steps.start, *shape, num_parts)), -1, 1)
        return frames if cut is None else frames.squeeze(2 + across)


def _leading(stored: h5py.Dataset) -> tuple[bool, bool]:
    """Whether a field's array has an axis of trajectories, and one of steps."""
    return bool(stored.attrs["sample_varying"]), bool(stored.attrs["time_varying"])


def published_normalisation(path: Path, fields: Sequence[WellField], num_axes: int) -> Iterator[tuple[float, float]]:
    """(mean, standard deviation) of each channel as ``stats.yaml`` has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file can't be read, or a field is not in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give --normalisation standard, which measures it")
    try:
        stats = yaml.safe_load(path.read_text())
        for field in fields:
            pairs = zip(*(np.ravel(stats[kind][field.name]).astype(float) for kind in ("mean", "std")), strict=True)
            found = list(pairs)
            if len(found) != num_axes**field.order:
                raise ValueError(f"{field.name} has {len(found)} numbers, not {num_axes**field.order}")
            yield from ((mean, max(std, MIN_STD)) for mean, std in found)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OSError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{path}: {what}; mend it, or give --normalisation standard") from None
