"""Files that are whole or not there: atomic writes, seals, hashes, and safetensors files written as a stream.

Everything that a later command reads is written through ``atomic_file``: whatever kills the writer, a reader finds the
old file or the new one, never half of either. JSON documents that decide a result carry a seal, their own SHA-256
(``seal``, ``parse_sealed``), so that no changed digit passes for the original. ``arrays.py`` reads arrays back.

The safetensors library's own writer takes all tensors at once. ``write_tensor_file`` holds one at a time and knows the
file's SHA-256 when its last byte is written.
"""

import fcntl
import glob
import hashlib
import itertools
import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
from pydantic import AfterValidator
from torch import Tensor

from dydiff_dist.errors import naming
from dydiff_dist.quoting import quoted, shortened

logger = logging.getLogger(__name__)

SEAL = "sha256"
"""Key of a document's own checksum."""

MAX_DOCUMENT_BYTES = 2**28
"""Larger JSON is refused before it is read: the manifest of a million shards takes less."""

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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields the name under which to write a file that is to stand at ``path``.

    When the block ends, the file is flushed to the disk and renamed, and the folder's list of names is flushed; an
    older file at ``path`` is replaced in that one step. If the block raises, nothing has changed. The name,
    ``.NAME.TOKEN.partial`` in the same folder, is another one each time, so that processes, on whatever hosts, that
    write the same file don't disturb each other: the last one to end wins. Only a writer that is killed leaves it
    behind; ``remove_partials`` is for that.

    Args:
        path: of the file; its folder must exist.

    Raises:
        OSError: no room, no permission, no such folder.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_file(folder / "notes.txt") as partial:
        ...     _ = partial.write_text("all of it")
        >>> [path.name for path in folder.iterdir()]
        ['notes.txt']
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with naming(path, partial):
            yield partial
            commit_file(partial, path)
    finally:
        with suppress(OSError):  # what the block raised is what counts
            partial.unlink(missing_ok=True)


def commit_file(partial: Path, path: Path) -> None:
    """Gives a finished file its name, as ``atomic_file`` does: for a partial file whose name the caller chose, so that
    a later process can go on with it."""
    flush_to_disk(partial)
    partial.replace(path)
    flush_to_disk(path.parent)


def remove_partials(path: Path) -> None:
    """Removes what killed writers of ``path`` left behind; for a caller who knows that nobody writes it now."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def hold_lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds a lock file, made where needed, for the length of the block. The system drops the lock when the process
    ends, however it ends; the empty file stays.

    Args:
        path: of the lock file; its folder must exist.
        busy: what to say where another process holds the lock; None waits for it.

    Raises:
        ValueError: ``busy``.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(busy) from None
        yield


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file through ``atomic_file``."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8, through ``atomic_file``."""
    write_bytes(path, text.encode())


def write_json(path: Path, tree: object, *, indent: int | None = 1, allow_nan: bool = True) -> None:
    """Writes a JSON file through ``atomic_file``.

    Args:
        path: of the file.
        tree: JSON types.
        indent: spaces per level; None writes one line.
        allow_nan: whether NaN and infinities may be written, which are Python's addition to JSON.

    Raises:
        ValueError: ``tree`` holds one and ``allow_nan`` is False.
    """
    write_text(path, json.dumps(tree, indent=indent, allow_nan=allow_nan) + "\n")


def plain_name(name: str) -> str:
    """Returns a file's name that a document states, to be joined to the document's folder, if that is all it is: one
    path component, so that nothing outside of the folder is ever meant.

    Raises:
        ValueError: it is empty, longer than 255 bytes, begins with a dot, or holds a separator or a control character.

    Examples:
        >>> plain_name("train-000000.tar")
        'train-000000.tar'
        >>> plain_name("../train-000000.tar")
        Traceback (most recent call last):
            ...
        ValueError: name '../train-000000.tar' is no plain file name (one path component, no leading dot)
    """
    separated = any(letter in "/\\" or not letter.isprintable() for letter in name)
    if separated or not name or name.startswith(".") or len(name.encode(errors="replace")) > 255:
        raise ValueError(f"name {quoted(name)} is no plain file name (one path component, no leading dot)")
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]
"""A field of a document that names a file beside it."""


def parse_json(data: bytes, name: str, remedy: str) -> Any:
    """JSON as Python has it, from bytes that may be anything.

    Args:
        data: the file's content.
        name: of the file, for the error.
        remedy: ends the error line: what to do about a damaged file.

    Raises:
        ValueError: no JSON, or nested deeper than Python can go.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{name} is damaged (nested too deep); {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{name} is damaged (not JSON: {shortened(str(error))}); {remedy}") from None


def read_document_bytes(path: Path) -> bytes:
    """The content of a JSON file of at most ``MAX_DOCUMENT_BYTES``.

    Raises:
        OSError: it can't be read; ``FileNotFoundError`` where there is none.
        ValueError: it is larger.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} has more than {MAX_DOCUMENT_BYTES} bytes, too many for a document")
    return data


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """``size`` bytes of an unbuffered file from ``offset`` on, fewer where it ends: no more is reserved than it has."""
    descriptor = file.fileno()
    end = min(offset + size, os.fstat(descriptor).st_size)
    data = os.pread(descriptor, max(end - offset, 0), offset)
    while offset + len(data) < end and (more := os.pread(descriptor, end - offset - len(data), offset + len(data))):
        data += more  # the system gives 2 GiB at once
    return data


def seal(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its checksum under the key ``SEAL``: SHA-256 of all else in it, whatever the layout.

    Examples:
        >>> sealed = seal({"steps": 3})
        >>> parse_sealed(json.dumps(sealed).encode(), "run.json", "make it again")
        {'steps': 3}
    """
    content = {name: value for name, value in tree.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {SEAL: digest, **content}


def parse_sealed(data: bytes, name: str, remedy: str) -> dict[str, Any]:
    """What ``seal`` sealed, without the seal. A document of an earlier version, which has none, is taken as it is, and
    the log says so.

    Args:
        data: JSON of an object.
        name: of the file, for the messages.
        remedy: ends them: how to have the document written anew.

    Raises:
        ValueError: no JSON object, or one that was altered.
    """
    tree = parse_json(data, name, remedy)
    if not isinstance(tree, dict):
        raise ValueError(f"{name} is damaged (it holds no JSON object); {remedy}")
    try:
        expected = seal(tree)[SEAL]
    except RecursionError:  # just below the depth that the parser still takes
        raise ValueError(f"{name} is damaged (nested too deep); {remedy}") from None
    stated = tree.pop(SEAL, None)
    if stated is None or stated == "":
        _name_unsealed(name, remedy)
    elif stated != expected:
        raise ValueError(f"{name} was altered: its checksum does not fit its content; restore it, or {remedy}")
    return tree


@lru_cache(maxsize=1024)  # a command may read a document several times
def _name_unsealed(name: str, remedy: str) -> None:
    logger.warning("%s has no checksum, so a changed value in it goes unnoticed; %s", name, remedy)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Returns when the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Writes a safetensors file, in place, and flushes it to the disk.

    Args:
        path: of the file; overwritten if it exists, so give a partial name where somebody may read it.
        specs: every tensor's dtype and shape, by name.
        data: CPU tensors whose bytes, one after the other, are those of the tensors in ``file_order(specs)``. Pulled
            one at a time; they may be cut differently from ``specs``, e.g. one tensor for all.

    Raises:
        OSError: no room, no permission.
    """
    header, hasher = _header(specs), hashlib.sha256()
    num_bytes = len(header) + sum(spec.num_bytes for spec in specs.values())
    with naming(path), open(path, "wb") as file:
        for block in itertools.chain([memoryview(header)], map(_bytes_of, data)):
            for start in range(0, len(block), _CHUNK_BYTES):
                chunk = block[start : start + _CHUNK_BYTES]
                file.write(chunk)
                hasher.update(chunk)
        assert file.tell() == num_bytes, f"{file.tell()} bytes were given for {num_bytes}"
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(num_bytes=num_bytes, sha256=hasher.hexdigest())


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
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
