"""Safetensors files written as a stream: tensors go to the disk one after the other and are hashed on the way.

The library's own writer takes all tensors at once. Here the caller holds one at a time, the file's SHA-256 is known
when its last byte is written, and the file is on the disk (fsync) before it is spoken of. Reading is the library's:
nothing that runs when it is read.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes."""

_CHUNK_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a file says of a tensor before its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file as it was written."""

    num_bytes: int
    sha256: str


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names in the order of their data: wide dtypes first, so that each tensor is aligned to its elements."""
    return sorted(specs, key=lambda name: -specs[name].dtype.itemsize)


def write_tensor_file(path: Path, specs: Mapping[str, TensorSpec], data: Iterable[Tensor]) -> FileRecord:
    """Writes a safetensors file and flushes it to the disk.

    Args:
        path: of the file; replaced if it exists.
        specs: every tensor's dtype and shape, by name.
        data: CPU tensors whose bytes, one after the other, are those of the tensors in ``file_order(specs)``. Pulled
            one at a time; they may be cut differently from ``specs``, e.g. one tensor for all.

    Raises:
        OSError: no room, no permission.
    """
    header, hasher = _header(specs), hashlib.sha256()
    num_bytes = len(header) + sum(spec.num_bytes for spec in specs.values())
    with open(path, "wb") as file:
        for block in itertools.chain([memoryview(header)], map(_bytes_of, data)):
            for start in range(0, len(block), _CHUNK_BYTES):
                chunk = block[start : start + _CHUNK_BYTES]
                file.write(chunk)
                hasher.update(chunk)
        assert file.tell() == num_bytes, f"{file.tell()} bytes were given for {num_bytes}"
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(num_bytes=num_bytes, sha256=hasher.hexdigest())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Returns when the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, tree: object, indent: int | None = 1) -> None:
    """Writes a JSON file, flushed to the disk, in one step: a reader sees the old one or the new one, whole."""
    write_text(path, json.dumps(tree, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Like ``write_json``, for any text."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    flush_to_disk(partial)
    partial.replace(path)


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    """Length and JSON that open a safetensors file."""
    entries, end = {}, 0
    for name in file_order(specs):
        start, end = end, end + specs[name].num_bytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order, without a copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
