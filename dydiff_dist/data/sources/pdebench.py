"""Source ``pdebench``: two-dimensional simulations in PDEBench's HDF5 files, told apart by what they hold.

    compressible        density, pressure, Vx, Vy    (N, T, X, Y) each
    incompressible      velocity (N, T, X, Y, 2), particles (N, T, X, Y, 1), force (N, X, Y, 2)
    reaction_diffusion  a group per seed, 0000 and so on, with data (T, X, Y, 2)
    shallow_water       a group per seed, 0000 and so on, with data (T, X, Y, 1)

Rows are along X and columns along Y, as the files have them. Windows are read one by one, so a file may be of any size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.array_files import HDF5_SUFFIXES, ArrayFile, StoredArray, open_arrays
from dydiff_dist.data.inputs import first_names
from dydiff_dist.data.manifest import Augmentation, FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, register_source, schema_of
from dydiff_dist.data.sources.trajectory_files import TrajectoryFilesConfig, TrajectoryFilesSource


@dataclass(frozen=True)
class Equation:
    """What the files of one equation hold."""

    fields: dict[str, tuple[str, ...]]
    """Names of the channels of each stored array."""
    usual: tuple[str, ...]
    """The arrays that are read where the user names none."""
    symmetries: tuple[Augmentation, ...] = ()
    """Augmentations under which equation, edges and first states keep their law, as they are generated."""
    vector: tuple[str, str] | None = None
    """Channels of a velocity along W and along H."""
    has_static: tuple[str, ...] = ()
    """Arrays without an axis of time."""


_GAS = ("density", "pressure", "Vx", "Vy")
EQUATIONS = {
    "compressible": Equation({name: (name,) for name in _GAS}, _GAS, vector=("Vy", "Vx")),
    "incompressible": Equation(
        {
            "velocity": ("velocity_x", "velocity_y"),
            "particles": ("particles",),
            "force": ("force_x", "force_y"),
        },
        ("velocity", "particles"),
        vector=("velocity_y", "velocity_x"),
        has_static=("force",),
    ),
    "reaction_diffusion": Equation({"data": ("activator", "inhibitor")}, ("data",), ("flip", "rotate")),
    "shallow_water": Equation({"data": ("height",)}, ("data",), ("flip", "rotate")),
}


class PdebenchSourceConfig(TrajectoryFilesConfig):
    """Where the files are, and how they are cut into samples."""

    num_frames: Annotated[int, Field(ge=2)]
    """Frames of a sample."""
    time_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many stored times one is a frame."""
    window_step: Annotated[int, Field(ge=1)] | None = None
    """Stored times between the starts of two samples; num_frames times time_stride if left out: no overlap."""
    space_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many grid points along X and Y one is a pixel, as PDEBench's reduced_resolution."""
    fields: tuple[str, ...] = ()
    """Arrays to be read, in the order of the channels: density, pressure, Vx, Vy; or velocity, particles, force (the
    same in every frame). All but force if left out."""
    boundary: Literal["periodic", "open"] | None = None
    """Whether the fields wrap around, so that runs may shift them. Left out, those whose file's name has "periodic" in
    it do, as PDEBench names compressible flow, and no others."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 16
    """Trajectories whose samples make one shard."""

    @property
    def span(self) -> int:
        """Stored times from a sample's first frame to its last, inclusive."""
        return (self.num_frames - 1) * self.time_stride + 1


@register_source("pdebench", PdebenchSourceConfig, "PDEBench's two-dimensional simulations in HDF5.")
class PdebenchSource(TrajectoryFilesSource[PdebenchSourceConfig]):
    """Windows of trajectories: samples (S, C, X, Y) float32."""

    unlike_hint = "convert files of each equation, size and boundary in a run of their own"
    suffixes = HDF5_SUFFIXES

    def read_item(self, item: Any) -> Iterator[Sample | BadItem]:
        """The windows of a trajectory."""
        name, trajectory, stem = item
        config = self.config
        with open_arrays(Path(config.root) / name) as arrays:
            equation = find_equation(arrays)
            fields = [(field, self._array(arrays, field, trajectory)) for field in self._fields(equation)]
            first, entry = next(found for field, found in fields if field not in EQUATIONS[equation].has_static)
            num_times = first.shape[entry >= 0]
            if num_times < config.span:
                raise ValueError(
                    f"{num_times} times are fewer than the {config.span} of --num-frames and --time-stride"
                )
            step = config.window_step or config.num_frames * config.time_stride
            for start in range(0, num_times - config.span + 1, step):
                times = slice(start, start + config.span, config.time_stride)
                try:
                    parts = [self._window(field, *found, times, equation) for field, found in fields]
                except ValueError as error:
                    yield BadItem(f"{self.item_name(item)}, times {start} to {times.stop - 1}", str(error))
                    continue
                facts = {"file": name, "trajectory": trajectory, "start": start, "equation": equation}
                yield Sample(f"{stem}-{trajectory}-{start:05d}", np.concatenate(parts, axis=1), meta=facts)

    def schema(self, sample: Sample) -> FrameSchema:
        """Named channels without units, and what the equation and its edges allow."""
        equation = EQUATIONS[sample.meta["equation"]]
        channels = tuple(c for field in self._fields(sample.meta["equation"]) for c in equation.fields[field])
        periodic = self.config.boundary == "periodic" or (
            self.config.boundary is None and "periodic" in Path(sample.meta["file"]).name.lower()
        )
        symmetries = [
            s for s in equation.symmetries if s != "rotate" or sample.frames.shape[2] == sample.frames.shape[3]
        ]
        has_vector = equation.vector is not None and set(equation.vector) <= set(channels)
        return schema_of(
            sample,
            channels=channels,
            allowed_augmentations=(*(["periodic_shift"] if periodic else []), *symmetries),
            vector_channels=tuple(map(channels.index, equation.vector or ())) if has_vector else None,
        )

    def trajectories(self, path: Path) -> Iterator[tuple[str, int]]:
        """(name, bytes) of each trajectory in a file."""
        with open_arrays(path) as arrays:
            equation = find_equation(arrays)
            fields = self._fields(equation)
            in_groups = fields == ("data",)
            names = sorted(arrays.names()) if in_groups else [""]
            timed = next(field for field in fields if field not in EQUATIONS[equation].has_static)
            array, _ = self._array(arrays, timed, names[0])
            number = len(names) if in_groups else array.shape[0]
        num_channels = sum(len(EQUATIONS[equation].fields[field]) for field in fields)
        times, width, height = array.shape[not in_groups :][:3]
        windows = max(0, times - self.config.span) // (self.config.window_step or self.config.span) + 1
        pixels = prod(-(-side // self.config.space_stride) for side in (width, height))
        size = 4 * windows * self.config.num_frames * num_channels * pixels
        yield from ((names[n] if in_groups else f"{n:05d}", size) for n in range(number))

    def _fields(self, equation: str) -> tuple[str, ...]:
        known = EQUATIONS[equation].fields
        wrong = [field for field in self.config.fields if field not in known]
        if wrong:
            raise ValueError(f"--fields names {wrong[0]!r}, a file of {equation} has {', '.join(known)}")
        fields = self.config.fields or EQUATIONS[equation].usual
        if set(fields) <= set(EQUATIONS[equation].has_static):
            raise ValueError(f"--fields {' '.join(fields)} has no axis of time; add {' or '.join(known)}")
        return fields

    def _array(self, arrays: ArrayFile, field: str, trajectory: str) -> tuple[StoredArray, int]:
        """The array that holds a field of a trajectory, and the trajectory's number in it, -1 if it is alone."""
        in_group = field == "data"
        found = arrays.get(f"{trajectory or sorted(arrays.names())[0]}/data" if in_group else field)
        if found is None:
            raise ValueError(f"it has no {field!r}, only {first_names(arrays.names())}")
        return found, -1 if in_group else int(trajectory or 0)

    def _window(self, field: str, array: StoredArray, entry: int, times: slice, equation: str) -> np.ndarray:
        """(S, channels, X, Y) float32 of one field.

        Raises:
            ValueError: other axes, or values that are missing.
        """
        known = EQUATIONS[equation]
        num_channels, is_static = len(known.fields[field]), field in known.has_static
        absent = array.absent(entry, slice(None) if is_static else times)
        if absent.any():
            raise ValueError(f"pieces of {field!r} are not in the file: lost by a copy, or never written")
        unpacked = array.read(entry, None if is_static else times)
        if unpacked.is_missing is not None:
            raise ValueError(f"{int(unpacked.is_missing.sum())} values of {field!r} are missing, NaN or infinite")
        values = unpacked.values[None] if is_static else unpacked.values
        values = values[..., None] if values.ndim == 3 else values
        if values.ndim != 4 or values.shape[3] != num_channels:
            raise ValueError(f"{field!r} has shape {array.shape}, not that of {equation}")
        step = self.config.space_stride
        values = values[:, ::step, ::step].transpose(0, 3, 1, 2).astype(np.float32)
        return np.broadcast_to(values, (self.config.num_frames, *values.shape[1:]))


def find_equation(arrays: ArrayFile) -> str:
    """The key of ``EQUATIONS`` that a file's arrays tell.

    Raises:
        ValueError: they are of none of them; one line says what they are.
    """
    names = arrays.names()
    for name, marks, axes, what in (
        ("compressible", _GAS[:2], 4, "(N, T, X, Y)"),
        ("incompressible", ("velocity",), 5, "(N, T, X, Y, 2)"),
    ):
        if set(marks) <= set(names):
            found = arrays.get(marks[0])
            shape = found.shape if found else ()
            if len(shape) != axes:
                raise ValueError(
                    f"its {marks[0]!r} has shape {shape}; of {name} flow, {what} in two dimensions is read"
                )
            return name
    if "tensor" in names:
        raise ValueError("its 'tensor' is of an equation in one dimension, or of Darcy flow, which has no time")
    first = sorted(names)[0] if names else ""
    found = arrays.get(f"{first}/data") if first else None
    if found is None:
        raise ValueError(f"it holds {first_names(names) or 'nothing'}, which no two-dimensional file of PDEBench does")
    equations = {2: "reaction_diffusion", 1: "shallow_water"}
    if len(found.shape) != 4 or found.shape[3] not in equations:
        raise ValueError(
            f"its {first}/data has shape {found.shape}; reaction-diffusion (T, X, Y, 2) and shallow water "
            "(T, X, Y, 1) are read"
        )
    return equations[found.shape[3]]
