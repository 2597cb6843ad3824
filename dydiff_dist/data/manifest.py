"""The manifest beside a folder of shards, and the index beside each shard.

``manifest.json`` says what the samples are (schema, normalisation, source) and lists the shards. ``NAME.index.json``
lists the samples of ``NAME.tar`` with their byte ranges and checksums, so that a reader can fetch one sample without
reading the ones before it. Plain webdataset needs neither: the tar files stand on their own.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError, model_validator

from dydiff_dist.data.members import Encoding
from dydiff_dist.files import SEAL, PlainName, parse_sealed, read_document_bytes, seal
from dydiff_dist.strict_config import StrictConfig, describe_error

MANIFEST_NAME = "manifest.json"

Augmentation = Literal["periodic_shift", "flip", "rotate", "periodic_shift_h", "periodic_shift_w"]
"""``periodic_shift`` is of fields that wrap around along both axes, and allows the shifts along one of them too."""

Independent = Literal["case", "key_prefix"]
"""What counts as one independent observation: each sample, or all samples whose keys agree up to the last hyphen, as
windows of one event, clips of one trajectory and what several cameras saw of it are named."""

RGB = ("red", "green", "blue")
"""Names of the channels of colour pictures."""

Bounds = tuple[float | None, float | None]
"""The least and the largest value that a channel can have; None where nothing bounds it."""


Size = Annotated[int, Field(ge=1, le=2**24)]
"""An axis of an array; larger ones are a mistake or an attack."""
Count = Annotated[int, Field(ge=0, le=2**53)]
"""Of samples or bytes."""


StoredType = Literal["uint8", "uint16", "int16", "float16", "float32"]


class SealedDocument(StrictConfig):
    """A document that carries its own checksum, under the key ``sha256`` (`dydiff_dist.files.seal`)."""

    remedy: ClassVar[str]
    """How to have it written anew, for messages."""


class FrameSchema(StrictConfig):
    """What one sample holds.

    Examples:
        >>> FrameSchema(num_frames=15, shape=(2, 64, 64), dtype="float32", allowed_augmentations=("flip",)).num_actions
        0
    """

    num_frames: Size
    """S: frames in every sample."""
    shape: tuple[Size, Size, Size]
    """(C, H, W) of a frame."""
    dtype: StoredType
    """Stored type of the frames."""
    num_actions: Annotated[int, Field(ge=0)] = 0
    """A: action channels; 0 means that samples have no ``actions.npy``."""
    encoding: Encoding = "npy"
    """How frames are stored; npy and png are lossless."""
    channels: tuple[str, ...] = ()
    """Name of each channel."""
    units: str = ""
    """Units of the stored values, before shift and scale."""
    allowed_augmentations: tuple[Augmentation, ...] = ()
    """Changes that leave the data's law unchanged; a run may ask for no others."""
    vector_channels: tuple[int, int] | None = None
    """Channels that hold a vector along (W, H); flips and rotations turn them as a vector."""
    sample_scaling: Literal["none", "history_mean"] = "none"
    """history_mean: readers divide each channel of a sample by the mean absolute value of its history before shift and
    scale (``scaling.py``); the stored values keep their units."""
    empty_history_scale: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """With ``history_mean``: what stands for the mean absolute value of each channel where the history is all zeros.
    Empty where nothing is known: then it is 1."""
    frames_per_sec: float | None = None
    """Of videos; None where it is not known or the source says it otherwise."""
    has_logvar: bool = False
    """Whether the frames are the mean of a Gaussian whose log-variance stands beside them in ``logvar.npy``."""
    latitudes: tuple[Annotated[float, Field(ge=-90, le=90)], ...] = ()
    """Degrees north of each row, the first one first, where rows are circles of latitude: scores then weight rows by
    their length. Empty where they are none."""
    bounds: tuple[Bounds, ...] = ()
    """(low, high) of each channel in stored units, which no value of the quantity can leave: (0, 255) of 8-bit colours,
    (0, null) of rain. Empty where nothing is known. What a forecast has beyond them is clipped to them."""

    @model_validator(mode="after")
    def _numbers_fit_the_channels(self) -> "FrameSchema":
        if self.empty_history_scale and len(self.empty_history_scale) != self.shape[0]:
            raise ValueError(f"empty_history_scale {self.empty_history_scale} is not of {self.shape[0]} channels")
        if self.bounds and len(self.bounds) != self.shape[0]:
            raise ValueError(f"bounds are of {len(self.bounds)} channels, shape {self.shape} has {self.shape[0]}")
        if self.latitudes and len(self.latitudes) != self.shape[1]:
            raise ValueError(f"latitudes are of {len(self.latitudes)} rows, shape {self.shape} has {self.shape[1]}")
        for low, high in self.bounds:
            if low is not None and high is not None and not low < high:
                raise ValueError(f"bounds ({low}, {high}) are not in order; write the least value first")
        return self

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are the colours of a picture: they are called so, or are three of 8 bits without names.
        Black and white are the ends of their ``bounds``."""
        return self.channels == RGB or (not self.channels and self.shape[0] == 3 and self.dtype == "uint8")

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """``bounds`` as (low, high), (C, 1, 1) float64 each in stored units, infinite where there is none.

        Examples:
            >>> schema = FrameSchema(num_frames=2, shape=(1, 4, 4), dtype="float32", bounds=((0, None),))
            >>> np.clip(np.full((2, 1, 4, 4), -0.5), *schema.limits()).max()
            np.float64(0.0)
        """
        known = self.bounds or ((None, None),) * self.shape[0]
        low = [-np.inf if low is None else low for low, _ in known]
        high = [np.inf if high is None else high for _, high in known]
        return np.array(low, np.float64)[:, None, None], np.array(high, np.float64)[:, None, None]


class LatentsSchema(StrictConfig):
    """Of shards that hold an autoencoder's latents: which one made them, and from what."""

    autoencoder_sha256: str
    """Identity of the autoencoder, as its ``autoencoder.json`` states it."""
    source_frames: FrameSchema
    """What was encoded: the frames of the source shards."""
    source_sha256: str
    """Of the source shards' manifest."""
    temporal_ratio: Annotated[int, Field(ge=1)] = 1
    """Frames per latent frame after the first one."""
    mirrored: bool = False
    """Whether each sample is followed by the latents of its mirror image."""


class FrameStatistics(StrictConfig):
    """Statistics over all frames and samples, from one pass: of the stored values, each sample divided by its own scale
    where the schema says so."""

    count: int
    """Values per channel."""
    mean: tuple[float, ...]
    """Per channel, stored units."""
    std: tuple[float, ...]
    """Per channel, stored units."""
    min: tuple[float, ...]
    """Per channel, stored units."""
    max: tuple[float, ...]
    """Per channel, stored units."""
    frame_autocovariance: tuple[float, ...]
    """E[x^s x^{s+m}] in network units for lags m = 0..S-1, averaged over channels, pixels, frames s and samples; from
    it follows the variance of what the network sees under frame mixing (method: statistics of z)."""


class ShardEntry(StrictConfig):
    """One shard as the manifest lists it."""

    name: PlainName
    """File name of the tar."""
    num_samples: Count
    bytes: Count
    """Size of the tar file."""
    sha256: str
    """Of the whole tar file."""
    index_sha256: str
    """Of the index file beside it."""


class Manifest(SealedDocument):
    """Everything a reader must know about a folder of shards."""

    remedy: ClassVar[str] = "give the command that made the shards again, which writes it anew"

    sha256: str = ""
    """Of all else in the document, so that no changed digit goes unnoticed; set when it is written, and empty where an
    earlier version wrote it."""
    format_version: Literal[1] = 1
    source: str
    """Name of the source that made them; ``details`` has its options."""
    split: str
    """train, valid or test."""
    tool_version: str
    """Version of dydiff_dist that wrote the shards."""
    frames: FrameSchema
    shift: tuple[float, ...]
    """Per channel; network units = (stored - shift) / scale, or (stored / sample scale - shift) / scale."""
    scale: tuple[float, ...]
    """Per channel, not 0."""
    statistics: FrameStatistics
    num_samples: Annotated[int, Field(ge=1)]
    shards: tuple[ShardEntry, ...]
    independent: Independent | None = None
    """What counts as one independent observation; None where the source doesn't say or an earlier version wrote it."""
    latents: LatentsSchema | None = None
    """For latents of an autoencoder; None where the frames are the data themselves."""
    details: dict[str, Any] = {}
    """Facts about the source: options, rejected items, physical numbers."""

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> "Manifest":
        listed = sum(entry.num_samples for entry in self.shards)
        if listed != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, the shards list {listed}")
        num_channels = self.frames.shape[0]
        if not len(self.shift) == len(self.scale) == num_channels or 0 in self.scale:
            raise ValueError(f"shift {self.shift} and scale {self.scale} must hold {num_channels} numbers, no scale 0")
        return self

    def check_plausible(self) -> None:
        """Refuses what the shards can't hold by their sizes, before memory is reserved for it.

        Raises:
            ValueError: naming the shard.
        """
        frames = self.frames
        values = frames.num_frames * math.prod(frames.shape)
        # nothing compresses frames that are worth learning from to less than a bit in 10,000
        least = values * np.dtype(frames.dtype).itemsize if frames.encoding == "npy" else values // 10_000
        for entry in self.shards:
            if entry.num_samples * max(least, 1) > entry.bytes:
                raise ValueError(
                    f"shard {entry.name} of {entry.bytes} bytes can't hold {entry.num_samples} samples of "
                    f"{frames.num_frames} frames {frames.shape}"
                )


class ShardIndex(StrictConfig):
    """The samples of one shard, in tar order."""

    name: PlainName
    """File name of the tar."""
    keys: tuple[str, ...]
    offsets: tuple[Count, ...]
    """First byte of each sample's first tar header."""
    sizes: tuple[Count, ...]
    """Bytes of each sample, headers and padding included."""
    crc32: tuple[int, ...]
    """Of those bytes."""

    def check_fits(self, entry: ShardEntry, name: str) -> None:
        """Refuses an index, called ``name``, of another shard than the manifest's entry.

        Raises:
            ValueError: other counts, or samples beyond the shard's end.
        """
        counts = {len(self.keys), len(self.offsets), len(self.sizes), len(self.crc32)}
        if counts != {entry.num_samples}:
            raise ValueError(f"{name} lists {len(self.keys)} samples, the manifest {entry.num_samples}")
        if any(start + size > entry.bytes for start, size in zip(self.offsets, self.sizes, strict=True)):
            raise ValueError(f"{name} lists samples beyond the {entry.bytes} bytes of the shard")


Document = TypeVar("Document", bound=StrictConfig)


def read_document(path: Path, kind: type[Document]) -> Document:
    """Reads and validates a JSON document; one-line ``ValueError`` that names the file and the key if it is not
    valid."""
    try:
        return parse_document(read_document_bytes(path), kind, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


def parse_document(data: bytes, kind: type[Document], name: str) -> Document:
    """Validates JSON bytes as ``kind``; ``name`` stands in the error."""
    try:
        if issubclass(kind, SealedDocument):
            tree = parse_sealed(data, name, kind.remedy)
            # a manifest's checksum is also its identity
            data = data if SEAL in kind.model_fields else json.dumps(tree).encode()
        # JSON has no tuples, so the strictness of types is that of JSON's own types.
        return kind.model_validate_json(data)
    except ValidationError as error:
        remedy = f"; {kind.remedy}" if issubclass(kind, SealedDocument) else ""
        damage = f"{describe_error(error, kind)}; the file is damaged or of another version{remedy}"
        raise ValueError(f"{name}: {damage}") from None


def document_bytes(document: StrictConfig) -> bytes:
    """The JSON text of a document, the same bytes for the same content."""
    tree = document.model_dump(mode="json")
    return _json_bytes(seal(tree) if isinstance(document, SealedDocument) else tree)


def _json_bytes(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def manifest_identity(manifest: Manifest) -> str:
    """What tells one set of shards from another: the manifest's checksum; without one, that of its JSON text."""
    if manifest.sha256:
        return manifest.sha256
    # fields that came after the checksum: the hash is as it was without them
    later = {"frames_per_sec", "bounds", "empty_history_scale", "latitudes"}
    excluded: Any = {"sha256": True, "independent": True, "frames": later, "latents": {"source_frames": later}}
    return hashlib.sha256(_json_bytes(manifest.model_dump(mode="json", exclude=excluded))).hexdigest()
