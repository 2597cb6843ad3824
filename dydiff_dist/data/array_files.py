"""Arrays in npy, npz, HDF5, netCDF-4 and zarr files: by name, read piece by piece, in values and not as packed.

What such files pass over in silence is found here: pieces of an array that were never written, or that a copy has lost,
and which the libraries read as if they held the fill value.
"""

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dydiff_dist.arrays import read_npz
from dydiff_dist.data.inputs import first_names
from dydiff_dist.data.packing import Unpacked, unpack, value_attributes

HDF5_SUFFIXES = (".h5", ".hdf5", ".nc", ".nc4")
ARRAY_SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES, ".zarr")


@dataclass(frozen=True)
class StoredArray:
    """An array of an open file."""

    array: Any
    """What numpy, h5py or zarr give."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Those that change values, see ``packing``; none where the stored values are wanted as they are."""
    units: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array as it is stored, in any layout."""
        return tuple(self.array.shape)

    def read(self, number: int, frames: slice | None = None) -> Unpacked:
        """All of it (number -1), or entry ``number`` of its first axis; ``frames`` of the axis that frames are along,
        the first of what is asked for, where not all are wanted."""
        whole: Any = number if number >= 0 else ()
        place = whole if frames is None else (number, frames) if number >= 0 else frames
        return unpack(np.asarray(self.array[place]), self.attributes)

    def absent(self, number: int, frames: slice = slice(None), frame_axis: int | None = None) -> np.ndarray:
        """(S,) bool: which ``frames`` of entry ``number``, or of the whole array (-1), have pieces that are not in the
        file. ``frame_axis`` is the array's axis that frames are along; the first of what is asked for if left out."""
        axis = (1 if number >= 0 else 0) if frame_axis is None else frame_axis
        absent = np.zeros(self.shape[axis], bool)
        first, stop, _ = frames.indices(len(absent))
        for start, end in _absent_pieces(self.array, number, axis, range(first, stop)):
            absent[start:end] = True
        return absent[frames]


@contextmanager
def open_arrays(path: Path, packing: str = "cf") -> Iterator["ArrayFile"]:
    """Opens a file of arrays for the length of the block.

    Args:
        path: its name ends with one of ``ARRAY_SUFFIXES``, in capitals or not; a zarr store is a folder.
        packing: cf applies the arrays' attributes, stored leaves values as they lie in the file.

    Raises:
        ValueError, OSError, and whatever else numpy, h5py and zarr raise on a damaged file.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        yield ArrayFile({"": np.load(path, mmap_mode="r", allow_pickle=False)}, packing)
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
        yield ArrayFile({name: _NpzArray(path, name) for name in names}, packing)
    elif suffix == ".zarr":
        import zarr  # an extra

        store = zarr.open(store=str(path), mode="r")
        yield ArrayFile({"": store} if hasattr(store, "shape") else store, packing)
    else:
        with h5py.File(path, "r") as file:
            yield ArrayFile(file, packing)


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of an open file."""

    content: Any
    """Arrays by name: a dict, or a group of HDF5 or zarr. That of a file that is one array alone has the name ""."""
    packing: str

    def get(self, name: str, or_alone: bool = False) -> StoredArray | None:
        """The array of that name (with / between groups), None if there is none; ``or_alone`` takes that of a file that
        is one array alone."""
        if isinstance(self.content, dict) and "" in self.content:
            return self._stored(self.content[""], name) if or_alone else None
        return self._stored(self.content[name], name) if name in self.content else None

    def names(self) -> list[str]:
        """Of what it holds."""
        return list(self.content)

    def _stored(self, array: Any, name: str) -> StoredArray:
        if isinstance(array, _NpzArray):
            array = array.load()
        if not hasattr(array, "shape"):
            raise ValueError(f"{name!r} is a group of {first_names(list(array))}, not an array")
        given = getattr(array, "attrs", {})
        units = given.get("units", "")
        attributes = {}
        if self.packing == "cf":
            attributes = value_attributes(given) | _fill_of_zarr(array, given)
        if isinstance(array, h5py.Dataset) and array.is_virtual:
            _check_sources(array)
        return StoredArray(array, attributes, units.decode() if isinstance(units, bytes) else str(units))


@dataclass(frozen=True)
class _NpzArray:
    """An array of an npz file, which is read whole; the last one is kept, as its trajectories are asked for in turn."""

    path: Path
    name: str

    def load(self) -> np.ndarray:
        """The array, as the file is now."""
        return _load_npz(self.path, self.name, self.path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _load_npz(path: Path, name: str, _: int) -> np.ndarray:
    return read_npz(path, only=name)[name]


def _fill_of_zarr(array: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """xarray keeps _FillValue as the fill value of a zarr 2 array; 0 is what zarr itself writes by default."""
    is_xarrays = "_ARRAY_DIMENSIONS" in given and "_FillValue" not in given
    fill = getattr(array, "fill_value", None) if is_xarrays else None
    return {} if fill is None or fill == 0 else {"_FillValue": fill}


def _check_sources(dataset: h5py.Dataset) -> None:
    """Refuses a virtual HDF5 data set of which a file is not there."""
    folder = Path(dataset.file.filename).parent
    for source in dataset.virtual_sources():
        if source.file_name != "." and not (folder / source.file_name).exists():
            raise ValueError(f"it is made of other files, of which {source.file_name} is missing")


def _absent_pieces(array: Any, number: int, frame_axis: int, frames: range) -> Iterator[tuple[int, int]]:
    """(first, last + 1) along the frame axis of chunks that hold some of ``frames`` and are not in the file."""
    if isinstance(array, h5py.Dataset):
        if array.is_virtual or array.external or not array.size:
            return
        if array.chunks is None:
            if array.id.get_storage_size() == 0:
                yield 0, array.shape[frame_axis]
            return
        chunks = array.chunks
        if array.id.get_num_chunks() == math.prod(-(-n // c) for n, c in zip(array.shape, chunks, strict=True)):
            return
    elif hasattr(array, "metadata") and hasattr(array, "chunks"):  # zarr
        chunks = array.shards or array.chunks
    else:
        return
    counts = [range(-(-n // c)) for n, c in zip(array.shape, chunks, strict=True)]
    size = chunks[frame_axis]
    counts[frame_axis] = range(frames.start // size, -(-frames.stop // size))
    if number >= 0:
        counts[0] = range(number // chunks[0], number // chunks[0] + 1)
    for place in itertools.product(*counts):
        if not _has_chunk(array, place, chunks):
            yield place[frame_axis] * size, min((place[frame_axis] + 1) * size, array.shape[frame_axis])


def _has_chunk(array: Any, place: tuple[int, ...], chunks: tuple[int, ...]) -> bool:
    if isinstance(array, h5py.Dataset):
        offset = tuple(n * size for n, size in zip(place, chunks, strict=True))
        return array.id.get_chunk_info_by_coord(offset).byte_offset is not None
    path = Path(array.store_path.store.root) / array.store_path.path / array.metadata.encode_chunk_key(place)
    return path.exists() and not _is_cut_off(array, path)


def _is_cut_off(array: Any, chunk: Path) -> bool:
    """Whether a chunk that Blosc compressed is shorter than it says: the library would read what lies behind it in
    memory."""
    if array.shards or not any("blosc" in type(codec).__name__.lower() for codec in array.compressors[-1:]):
        return False
    with open(chunk, "rb") as file:
        head = file.read(16)
    return len(head) < 16 or chunk.stat().st_size < struct.unpack("<I", head[12:])[0]
