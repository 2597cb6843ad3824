"""Reading a folder of shards: validated at opening, then any sample by number, checked against its checksum.

Shards are ordinary webdataset tar files. webdataset reads them from front to back; here samples are fetched one by one,
by the byte ranges of the index, so that ranks and workers read what is theirs and nothing else.
"""

import hashlib
import logging
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dydiff_dist.data.manifest import (
    MANIFEST_NAME,
    FrameSchema,
    Manifest,
    ShardEntry,
    ShardIndex,
    document_bytes,
    parse_document,
)
from dydiff_dist.data.members import (
    ACTIONS_MEMBER,
    LOGVAR_MEMBER,
    META_MEMBER,
    STATES_MEMBER,
    MemberError,
    all_finite,
    decode_frames,
    decode_json,
    decode_npy,
    tar_members,
)
from dydiff_dist.data.remote import RemoteConfig, RemoteStore
from dydiff_dist.data.shard_writer import Sample, index_path, scan_shard
from dydiff_dist.data.source import reason_of
from dydiff_dist.data.stores import LocalStore, Store
from dydiff_dist.quoting import first_line, quoted

logger = logging.getLogger(__name__)

Check = Literal["none", "size", "sha256"]

MAX_OPEN_INDICES = 256
"""Shard indices held in memory; one of 1000 samples takes about 100 KB."""

CHECK_PIECE_BYTES = 2**24
"""Bytes read at once to verify a shard."""


class DamagedSampleError(ValueError):
    """A sample that is not what the manifest and the index say; the message names shard and key."""


@dataclass(frozen=True)
class SampleAddress:
    """Where a sample lies: which shard of the manifest, which sample in it."""

    shard: int
    item: int


class ShardSet:
    """A folder of shards with its manifest. Picklable, for worker processes."""

    def __init__(self, store: Store, manifest: Manifest):
        self.store = store
        self.manifest = manifest
        self._first_sample = np.concatenate([[0], np.cumsum([entry.num_samples for entry in manifest.shards])])
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()

    @classmethod
    def open(
        cls, path: str | Path, check: Check = "size", remote: RemoteConfig | None = None, use_actions: bool = True
    ) -> "ShardSet":
        """Opens the shards in folder ``path``.

        Args:
            path: folder that holds manifest.json and the shards, on this machine or as a URL (http, https, s3, …).
            check: what to verify of the shards now: nothing, their sizes, or their SHA-256 (reads everything). Samples
                are checked against their own checksums when they are read, whatever stands here.
            remote: how a URL is read; the defaults if left out.
            use_actions: False leaves actions unread, as if the shards held none.

        Raises:
            FileNotFoundError: no such folder, no manifest in it, or a shard is missing.
            ValueError: the manifest is not valid, or a shard has another size or checksum than the manifest says.

        Examples:
            >>> ShardSet.open("none")
            Traceback (most recent call last):
                ...
            FileNotFoundError: shard folder none does not exist; make it with tools/make_shards.py or encode_latents.py

            and, where there are shards::

                shards = ShardSet.open("shards/turbulence/train")
                sample = shards.read(shards.address(0))  # sample.frames: (S, C, H, W) in stored units
        """
        store = RemoteStore(str(path), remote or RemoteConfig()) if "://" in str(path) else LocalStore(Path(path))
        if not store.exists():
            made = "make it with tools/make_shards.py or encode_latents.py"
            raise FileNotFoundError(f"shard folder {path} does not exist; {made}")
        try:
            data = store.read(MANIFEST_NAME)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} has no {MANIFEST_NAME}; {_hint_for_folder(Path(path))}") from None
        except OSError as error:
            raise ValueError(f"{store.where(MANIFEST_NAME)} cannot be read: {reason_of(error)}") from None
        manifest = parse_document(data, Manifest, store.where(MANIFEST_NAME))
        try:
            manifest.check_plausible()
        except ValueError as error:
            raise ValueError(f"{store.where(MANIFEST_NAME)} is damaged: {error}; {manifest.remedy}") from None
        if not use_actions:
            frames = manifest.frames.model_copy(update={"num_actions": 0})
            manifest = manifest.model_copy(update={"frames": frames})
        shards = cls(store, manifest)
        if check != "none":
            for number in range(len(shards.manifest.shards)):
                shards.check_shard(number, check)
        return shards

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_indices": OrderedDict()}

    def __len__(self) -> int:
        """Samples in all shards."""
        return self.manifest.num_samples

    @property
    def folder(self) -> str:
        """Where the shards lie, for messages."""
        return self.store.where("").rstrip("/")

    @property
    def schema(self) -> FrameSchema:
        """What a sample holds."""
        return self.manifest.frames

    def check_shard(self, number: int, check: Check) -> None:
        """Looks at one shard as ``open`` does.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it is truncated or altered.
        """
        entry = self.manifest.shards[number]
        where = self.store.where(entry.name)
        try:
            size = self.store.size(entry.name)
            altered = check == "sha256" and size == entry.bytes and self._sha256(entry) != entry.sha256
        except FileNotFoundError:
            raise FileNotFoundError(f"shard {where} is missing; restore it or run tools/make_shards.py again") from None
        except OSError as error:
            raise ValueError(f"shard {where} cannot be read: {reason_of(error)}") from None
        if size != entry.bytes:
            kind = "truncated" if size < entry.bytes else "longer than written"
            raise ValueError(
                f"shard {where} is {kind}: {size} bytes, the manifest says {entry.bytes}"
                f"{self._first_missing(number, size)}; restore it or run tools/make_shards.py again"
            )
        if altered:
            raise ValueError(f"shard {where} was altered: its SHA-256 differs from the manifest's; restore it")

    def address(self, number: int) -> SampleAddress:
        """The address of sample ``number`` (0 ≤ number < len) in manifest order."""
        shard = int(np.searchsorted(self._first_sample, number, side="right")) - 1
        return SampleAddress(shard, number - int(self._first_sample[shard]))

    def in_units(self, shift: Sequence[float], scale: Sequence[float]) -> "ShardSet":
        """The same shards with other network units, (stored - shift) / scale."""
        manifest = self.manifest.model_copy(update={"shift": tuple(shift), "scale": tuple(scale)})
        return ShardSet(self.store, manifest)

    def first_sample(self, shard: int) -> int:
        """The number, in manifest order, of a shard's first sample."""
        return int(self._first_sample[shard])

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard; a missing or altered one is rebuilt from the tar if that gives what was written.

        Raises:
            DamagedSampleError: it does not.
        """
        index = self._indices.pop(shard, None) or self._load_index(self.manifest.shards[shard])
        self._indices[shard] = index
        if len(self._indices) > MAX_OPEN_INDICES:
            self._indices.popitem(last=False)
        return index

    def key(self, address: SampleAddress) -> str:
        """The key of a sample."""
        return self.index(address.shard).keys[address.item]

    def read(self, address: SampleAddress, with_extras: bool = False) -> Sample:
        """Reads and checks one sample.

        Args:
            address: see ``address``.
            with_extras: whether to read states and meta too, which training has no use for.

        Returns:
            Arrays in stored units, views of the bytes that were read: read-only.

        Raises:
            DamagedSampleError: naming shard and key.
        """
        entry = self.manifest.shards[address.shard]
        index = self.index(address.shard)
        key = index.keys[address.item]
        where = f"sample {quoted(key)} of shard {self.store.where(entry.name)}"
        try:
            data = self._checked_bytes(entry, index, address.item, where)
        except DamagedSampleError:
            if not self.store.forget(entry.name):
                raise
            data = self._checked_bytes(entry, index, address.item, where)
        return decode_sample(data, key, self.schema, where, with_extras)

    def _checked_bytes(self, entry: ShardEntry, index: ShardIndex, item: int, where: str) -> bytes:
        """The tar stretch of a sample, as long as it must be and with the right checksum."""
        offset, size = index.offsets[item], index.sizes[item]
        try:
            data = self.store.read_range(entry.name, offset, size)
        except OSError as error:
            raise DamagedSampleError(f"{where} cannot be read: {reason_of(error)}") from None
        if len(data) != size:
            raise DamagedSampleError(f"{where} is cut off: {len(data)} of {size} bytes at offset {offset}")
        if zlib.crc32(data) != index.crc32[item]:
            raise DamagedSampleError(f"{where} was altered: its CRC-32 differs from the index's")
        return data

    def _first_missing(self, number: int, size: int) -> str:
        """Which sample a truncation hits first, for the message."""
        try:
            index = self.index(number)
        except DamagedSampleError:
            return ""
        ranges = zip(index.keys, index.offsets, index.sizes, strict=True)
        lost = [key for key, start, length in ranges if start + length > size]
        return f", sample {lost[0]!r} and {len(lost) - 1} after it are lost" if lost else ""

    def _load_index(self, entry: ShardEntry) -> ShardIndex:
        name = index_path(Path(entry.name)).name
        where = self.store.where(name)
        try:
            data = self.store.read(name)
            problem = "was altered: its SHA-256 differs from the manifest's"
        except (OSError, ValueError) as error:
            data = b""
            problem = f"cannot be read: {reason_of(error)}"
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            data = self._rebuilt_index(entry)
            if hashlib.sha256(data).hexdigest() != entry.index_sha256:
                raise DamagedSampleError(
                    f"index {where} {problem}, and the shard does not give it back: it is damaged too"
                )
            logger.warning("index %s %s; rebuilt from the shard", where, problem)
        try:
            index = parse_document(data, ShardIndex, where)
            index.check_fits(entry, where)
        except ValueError as error:
            raise DamagedSampleError(f"index {error}") from None
        return index

    def _rebuilt_index(self, entry: ShardEntry) -> bytes:
        """The index file's bytes as they must have been, or nothing where the shard cannot be scanned."""
        try:
            return document_bytes(scan_shard(entry.name, self.store.read_range(entry.name, 0, entry.bytes)))
        except (OSError, ValueError, tarfile.TarError):  # the caller names the shard
            return b""

    def _sha256(self, entry: ShardEntry) -> str:
        """SHA-256 of a shard, read in pieces."""
        digest = hashlib.sha256()
        for offset in range(0, entry.bytes, CHECK_PIECE_BYTES):
            digest.update(self.store.read_range(entry.name, offset, min(CHECK_PIECE_BYTES, entry.bytes - offset)))
        return digest.hexdigest()


def decode_sample(data: bytes, key: str, schema: FrameSchema, where: str, with_extras: bool = False) -> Sample:
    """Parses the tar members of one sample and checks them against the schema; ``where`` starts every error. States and
    meta, which are no part of the schema, are read ``with_extras`` where they are there."""
    try:
        members = tar_members(data, key)
    except (tarfile.TarError, ValueError) as error:
        raise DamagedSampleError(f"{where} is not a readable tar member: {first_line(error)}") from None
    shape, actions_shape = (schema.num_frames, *schema.shape), (schema.num_frames, schema.num_actions)
    logvar = actions = states = None
    meta: dict[str, Any] = {}
    try:
        found = decode_frames(members, schema.encoding, schema.num_frames, schema.shape[0])
        frames = _checked(found, "frames", shape, schema.dtype)
        if schema.has_logvar:
            logvar = _checked(decode_npy(members, LOGVAR_MEMBER), "logvar", shape, schema.dtype)
        if schema.num_actions:
            actions = _checked(decode_npy(members, ACTIONS_MEMBER), "actions", actions_shape, "float32")
        if with_extras and STATES_MEMBER in members:
            states = decode_npy(members, STATES_MEMBER)
        if with_extras and META_MEMBER in members:
            meta = decode_json(members, META_MEMBER)
    except MemberError as error:
        raise DamagedSampleError(f"{where} {error}") from None
    for name, array in (("frames", frames), ("logvar", logvar), ("actions", actions)):
        if array is not None and not all_finite(array):
            raise DamagedSampleError(f"{where} has NaN or infinite {name}")
    return Sample(key, frames, actions, meta, states, logvar)


def _checked(array: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that must have this shape and type."""
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise MemberError(f"has {name} {array.dtype} {array.shape}, the manifest says {dtype} {shape}")
    return array


def _hint_for_folder(folder: Path) -> str:
    """What the user may have meant by a folder without a manifest."""
    if not folder.is_dir():
        return "is the URL that of a folder of shards?"
    inside = [child.name for child in sorted(folder.iterdir()) if (child / MANIFEST_NAME).exists()]
    return f"did you mean {folder / inside[0]}?" if inside else "run tools/make_shards.py to its end"
