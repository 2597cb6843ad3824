"""Writing one shard: a tar file that plain webdataset reads, its index, and the moments of its frames."""

import hashlib
import io
import itertools
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset

from dydiff_dist.data.manifest import ShardEntry, ShardIndex, document_bytes
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
    tar_members,
    walk_tar,
)
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.files import atomic_file, file_sha256, write_bytes

MAX_KEY_BYTES = 88
"""Longest key of a sample: with the name of a member after it it fits the 100 bytes of a plain tar header."""


@dataclass
class Sample:
    """One sample on its way into a shard."""

    key: str
    """Unique within its split. What stands before the last hyphen names the event or trajectory that it is a part of,
    where there are such (``Source.independent``). Stored as ``plain_key`` gives it."""
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


def plain_key(key: str, max_bytes: int = MAX_KEY_BYTES, told_apart_by: str = "") -> str:
    """The key itself where every reader of tar files takes it: ASCII letters, digits, - _ = + @ and inner slashes; no
    dot, as webdataset splits names at the first. Any other text becomes such a key, with a hash of it in its name, so
    that different texts stay different.

    Args:
        key: any text.
        max_bytes: of the result.
        told_apart_by: what the hash is of, where there must be one.

    Examples:
        >>> plain_key("storm-7"), plain_key("Überflug 3.2")
        ('storm-7', 'Uberflug_3_2_85aaa3058c')
    """
    if re.fullmatch(r"[\w=+@-]+(/[\w=+@-]+)*", key, re.ASCII) and len(key) <= max_bytes and not told_apart_by:
        return key
    letters = unicodedata.normalize("NFKD", key).encode("ascii", "ignore").decode()
    digest = hashlib.blake2b((told_apart_by or key).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    return f"{re.sub('[^A-Za-z0-9=+@-]+', '_', letters).strip('_')[: max_bytes - 11]}_{digest}"


def write_shard(
    tar_path: Path,
    samples: Iterable[Sample],
    measured_frames: Callable[[Sample], np.ndarray] = lambda sample: sample.frames,
    encoding: EncodingConfig = PLAIN,
) -> tuple[ShardEntry, FrameMoments]:
    """Writes ``samples`` to ``tar_path`` and its index beside it; returns the manifest's entry and the moments of
    ``measured_frames`` of the samples as a reader gets them back.

    Both files appear under their final names only when complete. The bytes depend on the samples alone: owner and times
    are fixed. Without a sample there is no file, as no reader takes an empty shard.
    """
    moments, rest = FrameMoments(), iter(samples)
    first = next(rest, None)
    if first is None:
        for path in (tar_path, index_path(tar_path)):
            path.unlink(missing_ok=True)
        return ShardEntry(name=tar_path.name, num_samples=0, bytes=0, sha256="", index_sha256=""), moments
    with atomic_file(tar_path) as partial:
        index = _write_tar(partial, tar_path.name, itertools.chain([first], rest), moments, measured_frames, encoding)
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
        try:
            for sample in samples:
                assert sample.key == plain_key(sample.key), sample.key
                keys.append(sample.key)
                offsets.append(writer.tarstream.offset)
                frame_members = encode_frames(sample.frames, encoding)
                writer.write(_members(sample, frame_members))
                if encoding.encoding not in LOSSLESS:
                    sample.frames = decode_frames(frame_members, encoding.encoding, *sample.frames.shape[:2])
                moments.add(measured_frames(sample), sample.logvar)
            end = writer.tarstream.offset
            writer.close()
        except BaseException:
            writer.tarstream.fileobj.closed = True  # else it writes its last block when it is collected
            raise
        return _build_index(name, file, keys, offsets, end)


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
    sizes = [after - before for before, after in itertools.pairwise([*offsets, end])]
    checksums = []
    for key, offset, size in zip(keys, offsets, sizes, strict=True):
        file.seek(offset)
        data = file.read(size)
        tar_members(data, key)  # the reader's way to it: a name that it could not read would raise here
        checksums.append(zlib.crc32(data))
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
