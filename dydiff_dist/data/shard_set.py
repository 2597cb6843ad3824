"""Reading a folder of shards: validated at opening, then any sample by number, checked against its checksum."""

import hashlib
import io
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from dydiff_dist.data.manifest import (
    MANIFEST_NAME,
    FrameSchema,
    Manifest,
    ShardEntry,
    ShardIndex,
    document_bytes,
    file_sha256,
    parse_document,
    read_document,
)
from dydiff_dist.data.shard_writer import ACTIONS_MEMBER, FRAMES_MEMBER, Sample, index_path, scan_shard

logger = logging.getLogger(__name__)

Check = Literal["none", "size", "sha256"]

MAX_OPEN_INDICES = 256
"""Shard indices held in memory; one of 1000 samples takes about 100 KB."""


class DamagedSampleError(ValueError):
    """A sample that is not what the manifest and the index say; the message names shard and key."""


@dataclass(frozen=True)
class SampleAddress:
    """Where a sample lies: which shard of the manifest, which sample in it."""

    shard: int
    item: int


class ShardSet:
    """A folder of shards with its manifest. Picklable: file handles and indices are opened where they are used."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self._first_sample = np.concatenate([[0], np.cumsum([entry.num_samples for entry in manifest.shards])])

    @classmethod
    def open(cls, path: str | Path, check: Check = "size") -> "ShardSet":
        """Opens the shards in folder ``path``.

        Args:
            path: folder that holds manifest.json and the shards.
            check: what to verify of the shards now: nothing, their sizes, or their SHA-256 (reads everything). Samples
                are checked against their own checksums when they are read, whatever stands here.

        Raises:
            FileNotFoundError: no such folder, no manifest in it, or a shard is missing.
            ValueError: the manifest is not valid, or a shard has another size or checksum than the manifest says.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"shard folder {folder} does not exist; make it with tools/make_shards.py")
        if not (folder / MANIFEST_NAME).exists():
            inside = [child.name for child in sorted(folder.iterdir()) if (child / MANIFEST_NAME).exists()]
            hint = f"did you mean {folder / inside[0]}?" if inside else "run tools/make_shards.py to its end"
            raise FileNotFoundError(f"{folder} has no {MANIFEST_NAME}; {hint}")
        shards = cls(folder, read_document(folder / MANIFEST_NAME, Manifest))
        if check != "none":
            for entry in shards.manifest.shards:
                shards.check_shard(entry, check)
        return shards

    def __len__(self) -> int:
        """Samples in all shards."""
        return self.manifest.num_samples

    @property
    def schema(self) -> FrameSchema:
        """What a sample holds."""
        return self.manifest.frames

    def check_shard(self, entry: ShardEntry, check: Check) -> None:
        """Raises a one-line error if the shard is missing, truncated or altered."""
        path = self.folder / entry.name
        if not path.exists():
            raise FileNotFoundError(f"shard {path} is missing; restore it or run tools/make_shards.py again")
        size = path.stat().st_size
        if size != entry.bytes:
            kind = "truncated" if size < entry.bytes else "longer than written"
            raise ValueError(
                f"shard {path} is {kind}: {size} bytes, the manifest says {entry.bytes}"
                f"{self._first_missing(entry, size)}; restore it or run tools/make_shards.py again"
            )
        if check == "sha256" and file_sha256(path) != entry.sha256:
            raise ValueError(f"shard {path} was altered: its SHA-256 differs from the manifest's; restore it")

    def address(self, number: int) -> SampleAddress:
        """The address of sample ``number`` (0 ≤ number < len) in manifest order."""
        shard = int(np.searchsorted(self._first_sample, number, side="right")) - 1
        return SampleAddress(shard, number - int(self._first_sample[shard]))

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard; ``DamagedSampleError`` if it is missing or altered."""
        return _load_index(self.folder, self.manifest.shards[shard])

    def key(self, address: SampleAddress) -> str:
        """The key of a sample."""
        return self.index(address.shard).keys[address.item]

    def read(self, address: SampleAddress) -> Sample:
        """Reads and checks one sample; ``DamagedSampleError`` names shard and key of a bad one."""
        entry = self.manifest.shards[address.shard]
        index = self.index(address.shard)
        key = index.keys[address.item]
        where = f"sample {key!r} of shard {self.folder / entry.name}"
        offset, size = index.offsets[address.item], index.sizes[address.item]
        try:
            with open(self.folder / entry.name, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DamagedSampleError(f"{where} cannot be read: {error.strerror or error}") from None
        if len(data) != size:
            raise DamagedSampleError(f"{where} is cut off: {len(data)} of {size} bytes at offset {offset}")
        if zlib.crc32(data) != index.crc32[address.item]:
            raise DamagedSampleError(f"{where} was altered: its CRC-32 differs from the index's")
        return decode_sample(data, key, self.schema, where)

    def _first_missing(self, entry: ShardEntry, size: int) -> str:
        """Which sample a truncation hits first, for the message."""
        try:
            index = _load_index(self.folder, entry)
        except DamagedSampleError:
            return ""
        lost = [
            key
            for key, start, length in zip(index.keys, index.offsets, index.sizes, strict=True)
            if start + length > size
        ]
        return f", sample {lost[0]!r} and {len(lost) - 1} after it are lost" if lost else ""


@lru_cache(maxsize=MAX_OPEN_INDICES)
def _load_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    """The index of a shard. A missing or altered one is rebuilt from the tar if that gives what was written."""
    path = index_path(folder / entry.name)
    try:
        data = path.read_bytes()
        problem = "was altered: its SHA-256 differs from the manifest's"
    except OSError as error:
        data = b""
        problem = f"cannot be read: {error.strerror or error}"
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        data = _rebuilt_index(folder / entry.name)
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            raise DamagedSampleError(f"index {path} {problem}, and the shard does not give it back: it is damaged too")
        logger.warning("index %s %s; rebuilt from the shard", path, problem)
    index = parse_document(data, ShardIndex, str(path))
    if len(index.keys) != entry.num_samples:
        raise DamagedSampleError(f"index {path} lists {len(index.keys)} samples, the manifest {entry.num_samples}")
    return index


def _rebuilt_index(shard: Path) -> bytes:
    """The index file's bytes as they must have been, or nothing where the shard cannot be scanned."""
    try:
        return document_bytes(scan_shard(shard))
    except Exception:  # whatever tarfile raises on damaged headers: the caller names the shard
        return b""


def decode_sample(data: bytes, key: str, schema: FrameSchema, where: str) -> Sample:
    """Parses the tar members of one sample and checks them against the schema; ``where`` starts every error."""
    try:
        members = dict(_single_sample(data))
    except Exception as error:  # tarfile raises many kinds on damaged headers; all mean the same here
        raise DamagedSampleError(f"{where} is not a readable tar member: {error}") from None
    if members.get("__key__") != key:
        raise DamagedSampleError(f"{where} is stored under another key, {members.get('__key__')!r}")
    frames = _decode_array(members, FRAMES_MEMBER, where)
    expected = (schema.num_frames, *schema.shape)
    if frames.shape != expected or frames.dtype != np.dtype(schema.dtype):
        raise DamagedSampleError(
            f"{where} has frames {frames.dtype} {frames.shape}, the manifest says {schema.dtype} {expected}"
        )
    actions = None
    if schema.num_actions:
        actions = _decode_array(members, ACTIONS_MEMBER, where)
        if actions.shape != (schema.num_frames, schema.num_actions):
            raise DamagedSampleError(
                f"{where} has actions {actions.shape}, the manifest says {(schema.num_frames, schema.num_actions)}"
            )
    for name, array in (("frames", frames), ("actions", actions)):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedSampleError(f"{where} has NaN or infinite {name}")
    return Sample(key, frames, actions)


def _single_sample(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a tar stretch that holds one sample, parsed by webdataset."""
    files = tar_file_expander([{"url": "", "stream": io.BytesIO(data)}])
    samples = list(group_by_keys(files))
    if len(samples) != 1:
        raise ValueError(f"{len(samples)} samples where one is expected")
    return iter(samples[0].items())


def _decode_array(members: dict, name: str, where: str) -> np.ndarray:
    if name not in members:
        raise DamagedSampleError(f"{where} lacks its member {name}")
    try:
        return np.lib.format.read_array(io.BytesIO(members[name]), allow_pickle=False)
    except Exception as error:  # a damaged npy header raises SyntaxError, ValueError, EOFError and others
        raise DamagedSampleError(f"{where} has an unreadable {name}: {error}") from None
