"""Writing one shard: a tar file that plain webdataset reads, its index, and the moments of its frames."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset
from webdataset.tariterators import base_plus_ext

from dydiff_dist.data.manifest import (
    ShardEntry,
    ShardIndex,
    document_bytes,
)
from dydiff_dist.data.members import (
    ACTIONS_MEMBER,
    LOGVAR_MEMBER,
    LOSSLESS,
    META_MEMBER,
    PLAIN,
    STATES_MEMBER,
    EncodingConfig,
    decode_frames,
    encode_frames,
    npy_bytes,
)
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.files import atomic_file, file_sha256, write_bytes


@dataclass
class Sample:
    """One sample on its way into a shard."""

    key: str
    """Unique within the data set; no dots and no slashes at the ends, as webdataset splits names at the first dot."""
    frames: np.ndarray
    """(S, C, H, W)."""
    actions: np.ndarray | None = None
    """(S, A) float32; the action at frame s leads to frame s, zeros at frame 0."""
    meta: dict[str, Any] = field(default_factory=dict)
    states: np.ndarray | None = None
    """(S, D) float32, kept for other uses; training does not read it."""
    logvar: np.ndarray | None = None
    """Where ``frames`` are the mean of a Gaussian: the logarithm of its variance, of the same shape and type."""


def index_path(tar_path: Path) -> Path:
    """Where the index of a shard lies."""
    return tar_path.with_suffix(".index.json")


def write_shard(
    tar_path: Path,
    samples: Iterable[Sample],
    measured_frames: Callable[[Sample], np.ndarray] = lambda sample: sample.frames,
    encoding: EncodingConfig = PLAIN,
) -> tuple[ShardEntry, FrameMoments]:
    """Writes ``samples`` to ``tar_path`` and its index beside it; returns the manifest's entry and the moments of
    ``measured_frames`` of the samples as a reader gets them back.

    Both files appear under their final names only when complete. The bytes depend on the samples alone: owner and times
    are fixed.
    """
    moments = FrameMoments()
    with atomic_file(tar_path) as partial:
        index = _write_tar(partial, tar_path.name, samples, moments, measured_frames, encoding)
        index_data = document_bytes(index)
        entry = ShardEntry(
            name=tar_path.name,
            num_samples=len(index.keys),
            bytes=partial.stat().st_size,
            sha256=file_sha256(partial),
            index_sha256=hashlib.sha256(index_data).hexdigest(),
        )
    write_bytes(index_path(tar_path), index_data)
    return entry, moments


def _write_tar(
    partial: Path,
    name: str,
    samples: Iterable[Sample],
    moments: FrameMoments,
    measured_frames: Callable[[Sample], np.ndarray],
    encoding: EncodingConfig,
) -> ShardIndex:
    """Writes the tar file, adds its frames to ``moments`` and returns its index."""
    keys: list[str] = []
    offsets: list[int] = []
    with open(partial, "w+b") as file:
        writer = webdataset.TarWriter(file, encoder=False, user="", group="", mtime=0, compress=False)
        for sample in samples:
            if "." in sample.key or not sample.key:
                raise ValueError(f"sample key {sample.key!r} must be non-empty and hold no dot; rename the sample")
            keys.append(sample.key)
            offsets.append(writer.tarstream.offset)
            frame_members = encode_frames(sample.frames, encoding)
            writer.write(_members(sample, frame_members))
            if encoding.encoding not in LOSSLESS:
                sample.frames = decode_frames(frame_members, encoding.encoding, *sample.frames.shape[:2])
            moments.add(measured_frames(sample), sample.logvar)
        end = writer.tarstream.offset
        writer.close()
        return _build_index(name, file, keys, offsets, end)


@dataclass(frozen=True)
class TarMember:
    """A member of a tar file and where it lies: from its header's first byte to the end of its padding."""

    key: str
    suffix: str
    start: int
    size: int
    """Of its content, which begins one block after ``start``."""

    @property
    def data_start(self) -> int:
        """First byte of the content."""
        return self.start + tarfile.BLOCKSIZE

    @property
    def end(self) -> int:
        """First byte behind the padding."""
        return self.data_start + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def walk_tar(data: bytes) -> Iterator[TarMember]:
    """The members of a plain tar file, or of a stretch of one, in order, up to its end or the first block of zeros.
    Every step goes forward, whatever the headers say; tarfile follows a negative size backwards for ever.

    Raises:
        tarfile.TarError: no header where one must be.
        ValueError: a header's size is negative, or more than there is.
    """
    position = 0
    while position < len(data):
        block = data[position : position + tarfile.BLOCKSIZE]
        if not any(block):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        key, suffix = base_plus_ext(header.name)
        member = TarMember(key, suffix, position, header.size)
        if header.size < 0 or member.data_start + header.size > len(data):
            raise ValueError(f"a header claims {header.size} bytes, {len(data) - member.data_start} follow")
        yield member
        position = member.end


def scan_shard(name: str, data: bytes) -> ShardIndex:
    """The index of a shard that lost it, from the tar file's bytes alone.

    Raises:
        tarfile.TarError, ValueError: as ``walk_tar``.
    """
    keys: list[str] = []
    offsets: list[int] = []
    end = 0
    for member in walk_tar(data):
        if not keys or member.key != keys[-1]:
            keys.append(member.key)
            offsets.append(member.start)
        end = member.end
    return _build_index(name, io.BytesIO(data), keys, offsets, end)


def _build_index(name: str, file: BinaryIO, keys: list[str], offsets: list[int], end: int) -> ShardIndex:
    """The index of samples that start at ``offsets``; the last one ends at ``end``."""
    sizes = [after - before for before, after in zip(offsets, [*offsets[1:], end], strict=True)]
    checksums = []
    for offset, size in zip(offsets, sizes, strict=True):
        file.seek(offset)
        checksums.append(zlib.crc32(file.read(size)))
    return ShardIndex(name=name, keys=tuple(keys), offsets=tuple(offsets), sizes=tuple(sizes), crc32=tuple(checksums))


def _members(sample: Sample, frame_members: dict[str, bytes]) -> dict[str, Any]:
    """The tar members of a sample."""
    members: dict[str, Any] = {"__key__": sample.key, **frame_members}
    if sample.logvar is not None:
        members[LOGVAR_MEMBER] = npy_bytes(sample.logvar)
    if sample.actions is not None:
        members[ACTIONS_MEMBER] = npy_bytes(sample.actions.astype(np.float32))
    if sample.states is not None:
        members[STATES_MEMBER] = npy_bytes(sample.states.astype(np.float32))
    if sample.meta:
        members[META_MEMBER] = json.dumps(sample.meta, sort_keys=True).encode()
    return members
