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
            of_trajectory, in_time = (bool(stored.attrs[f"{name}_varying"]) for name in ("sample", "time"))
            if stored.ndim > of_trajectory:
                pieces = StoredArray(stored).absent(self.number if of_trajectory else -1)
                absent |= pieces if in_time else pieces.any()
        return absent

    def window(self, field: WellField, steps: slice, cut: tuple[str, int] | None) -> np.ndarray:
        """(S, C, H, W) float32 of a field's components, repeated along what it does not vary along.

        Args:
            field: of the layout.
            steps: the window, from first to last + 1.
            cut: axis and index of the plane that is taken; None where space has two dimensions.

        Raises:
            ValueError: the array has not the shape that its attributes say.
        """
        stored = dataset(self.file, field.path)
        of_trajectory, in_time = (bool(stored.attrs[f"{name}_varying"]) for name in ("sample", "time"))
        place: list[Any] = [self.number] * of_trajectory + [steps] * in_time
        kept, has_all = self._stored_axes(field, stored, len(place))
        for axis in self.layout.axes if has_all else kept:
            is_cut = cut is not None and axis == cut[0]
            place.append((cut[1] if axis in kept else 0) if cut is not None and is_cut else slice(None))
        values = stored[tuple(place)].astype(np.float32)
        values = values if in_time else values[None]
        shown = {
            n: size for n, size in zip(self.layout.axes, self.layout.sizes, strict=True) if cut is None or n != cut[0]
        }
        for position, axis in enumerate(shown, start=1):
            if not has_all and axis not in kept:
                values = np.expand_dims(values, position)
        components = values.reshape(*values.shape[:3], -1)
        shape = (steps.stop - steps.start, *shown.values(), components.shape[-1])
        return np.moveaxis(np.broadcast_to(components, shape), -1, 1)

    def _stored_axes(self, field: WellField, stored: h5py.Dataset, num_leading: int) -> tuple[list[str], bool]:
        """Axes of space along which a field varies, and whether its array has the others too, with one entry."""
        axes, sizes = self.layout.axes, self.layout.sizes
        varying = [bool(each) for each in stored.attrs["dim_varying"]]
        kept = [axis for axis, varies in zip(axes, varying, strict=True) if varies]
        components = [(len(axes),) * field.order, *([(len(axes) ** 2,)] if field.order == 2 else [])]
        for has_all in (True, False):
            pairs = zip(sizes, varying, strict=True)
            spatial = tuple(size if varies else 1 for size, varies in pairs if has_all or varies)
            if any(stored.shape[num_leading:] == spatial + each for each in components):
                return kept, has_all
        raise ValueError(f"{field.path} has shape {stored.shape}, which its attributes don't say on a grid of {sizes}")


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
