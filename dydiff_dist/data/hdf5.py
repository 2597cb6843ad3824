"""HDF5 files as they are met: held by another process, half copied, with groups where arrays are expected."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens a file for reading, for the length of the block.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is held by a process that writes to it, cut off, or no HDF5.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(_why_not(error)) from None
    with file:
        yield file


def _why_not(error: OSError) -> str:
    text = str(error)
    if (error.errno in (errno.EAGAIN, errno.EACCES) and "lock" in text) or "already open for write" in text:
        return "a process holds it open for writing; wait until it has closed it"
    if "truncated file" in text:
        return "it is cut off, shorter than its header says; fetch it again"
    if "signature not found" in text or "bad superblock" in text:
        return "it is no HDF5 file; fetch it again"
    return error.strerror or text


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """An array of numbers by its name, with / between groups.

    Raises:
        ValueError: there is none of that name, it is a group, or it holds no numbers.
    """
    try:
        found = group[name]
    except KeyError:  # also a link to nothing
        inside = ", ".join(sorted(group)[:6]) or "nothing"
        raise ValueError(f"it has no {name!r}, only {inside}") from None
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name!r} is a group, not an array")
    if found.shape is None or found.dtype.kind not in "iufb":
        raise ValueError(f"{name!r} holds {'nothing' if found.shape is None else found.dtype}, not numbers")
    return found
