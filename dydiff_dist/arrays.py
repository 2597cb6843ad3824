"""Reading arrays back: npy, npz and safetensors files that may be damaged or hostile.

A file's own sizes are believed only as far as the file is long, members are read whole, through their checksum, before
anything in them is used, and nothing that is read can run. Whatever is wrong is one ``ValueError``.
"""

import io
import math
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from dydiff_dist.quoting import first_line

_MAX_DEFLATE_RATIO = 1100
"""A little more than deflate can reach (1032): what claims more is refused before it is unpacked."""


def parse_npy(data: bytes | memoryview) -> np.ndarray:
    """The array of an npy file's bytes, a view of them; no pickled objects.

    Raises:
        ValueError: no such file, or not as long as its header says.
    """
    length_bytes = 2 if bytes(data[6:8]) == b"\1\0" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    try:
        shape, fortran_order, dtype = _npy_header(bytes(data[:start]))
    except Exception as error:  # a damaged npy header raises SyntaxError, TokenError, EOFError and others
        raise ValueError(f"damaged npy header ({type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or dtype.itemsize * count != len(data) - start:
        raise ValueError(f"npy header says {dtype} {shape}, {len(data) - start} bytes of data follow")
    array = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, type) of an npy file."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran_order, dtype = read(stream)
    if stream.read(1):
        raise ValueError("longer than its text")
    return shape, fortran_order, dtype


def read_npz(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, or the one called ``only`` if it is there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, in a few words that don't name it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _npz_member(archive, info) for name, info in members.items() if only in (None, name)}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and bz2 have no common error
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from None


def _npz_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """A member, read whole through its CRC-32 before it is parsed."""
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _MAX_DEFLATE_RATIO}.get(info.compress_type, 0)
    if info.file_size > ratio * info.compress_size:
        raise ValueError(
            f"a member of {info.compress_size} bytes, method {info.compress_type}, claims {info.file_size}"
        )
    data = archive.read(info)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise ValueError("a member differs from its CRC-32")
    return parse_npy(data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or of another format.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # the library's own, and what torch says of a header that it passed
        raise ValueError(f"{path} is not a safetensors file: {first_line(error)}") from None
