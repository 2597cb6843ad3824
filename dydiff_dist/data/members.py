"""The members of a sample in a shard: names, and arrays to bytes and back.

Frames are stored losslessly (npy, png) or, by choice, as jpg or mp4. Letters: S frames, C channels, H W height and
width.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import av
import numpy as np
from PIL import Image
from pydantic import Field
from webdataset.tariterators import base_plus_ext

from dydiff_dist.arrays import parse_npy
from dydiff_dist.data.video import decode_video
from dydiff_dist.quoting import first_line, quoted
from dydiff_dist.strict_config import StrictConfig

FRAMES_MEMBER = "frames.npy"
VIDEO_MEMBER = "frames.mp4"
ACTIONS_MEMBER = "actions.npy"
LOGVAR_MEMBER = "logvar.npy"
STATES_MEMBER = "states.npy"
META_MEMBER = "meta.json"

Encoding = Literal["npy", "png", "jpg", "mp4"]
LOSSLESS = ("npy", "png")

Members = Mapping[str, bytes | memoryview]
Decoded = TypeVar("Decoded")


class EncodingConfig(StrictConfig):
    """How frames are stored."""

    encoding: Encoding = "npy"
    """npy and png are lossless, jpg and mp4 are not; all but npy need 8-bit frames of 1 or 3 channels."""
    jpg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of jpg, 1 to 100."""
    mp4_crf: Annotated[int, Field(ge=0, le=51)] = 14
    """Constant rate factor of mp4 (H.264): 0 is best, 51 worst."""


PLAIN = EncodingConfig()
"""npy."""


class MemberError(ValueError):
    """A member that is missing or not what it must be; the message goes on after the sample's name."""


def npy_bytes(array: np.ndarray) -> bytes:
    """The array in npy format, without pickle."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def decode_npy(members: Members, name: str) -> np.ndarray:
    """A member in npy format as a view of its bytes, read-only."""
    return _decoded(members, name, parse_npy)


def decode_json(members: Members, name: str) -> dict[str, Any]:
    """A member that holds a JSON object."""
    value = _decoded(members, name, lambda data: json.loads(bytes(data)))
    if not isinstance(value, dict):
        raise MemberError(f"has a {name} that is no JSON object")
    return value


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


def tar_members(data: bytes, key: str) -> dict[str, memoryview]:
    """The members of a stretch of a tar file that holds the sample ``key``, by name without the key, uncopied.

    Raises:
        tarfile.TarError, ValueError: as ``walk_tar``, or a member of another sample.
    """
    view = memoryview(data)
    members = {}
    for member in walk_tar(data):
        if member.key != key:
            raise ValueError(f"it is stored under another key, {quoted(member.key)}")
        members[member.suffix] = view[member.data_start : member.data_start + member.size]
    return members


def all_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. A finite sum proves it in one pass; one that overflows leaves it open."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32))) or bool(np.isfinite(array).all())


def encode_frames(frames_SCHW: np.ndarray, config: EncodingConfig) -> dict[str, bytes]:
    """The members that hold the frames.

    Raises:
        ValueError: these frames cannot be stored so.
    """
    if config.encoding == "npy":
        return {FRAMES_MEMBER: npy_bytes(frames_SCHW)}
    if frames_SCHW.dtype != np.uint8 or frames_SCHW.shape[1] not in (1, 3):
        raise ValueError(
            f"option --encoding {config.encoding} needs 8-bit frames of 1 or 3 channels, these are {frames_SCHW.dtype} "
            f"of {frames_SCHW.shape[1]}; use npy"
        )
    if config.encoding == "mp4":
        return {VIDEO_MEMBER: _encode_mp4(frames_SCHW, config.mp4_crf)}
    settings = {"png": {"compress_level": 6}, "jpg": {"quality": config.jpg_quality, "subsampling": 0}}
    kind = {"png": "png", "jpg": "jpeg"}[config.encoding]
    return {
        _picture_member(number, config.encoding): _encode_picture(frame, kind, settings[config.encoding])
        for number, frame in enumerate(frames_SCHW)
    }


def decode_frames(members: Members, encoding: Encoding, num_frames: int, num_channels: int) -> np.ndarray:
    """The frames, (S, C, H, W) as stored. The counts say how many pictures to look for, and how to read a video; what
    is found may still have another shape.

    Raises:
        MemberError: a member is missing or unreadable.
    """
    if encoding == "npy":
        return decode_npy(members, FRAMES_MEMBER)
    if encoding == "mp4":
        grey = num_channels == 1
        video = _decoded(members, VIDEO_MEMBER, lambda data: np.stack(decode_video(bytes(data), grey)))
        return video[:, None] if grey else video.transpose(0, 3, 1, 2)
    names = [_picture_member(number, encoding) for number in range(num_frames)]
    pictures = [_decoded(members, name, _decode_picture) for name in names]
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise MemberError(f"has pictures of several sizes, {sorted({picture.shape for picture in pictures})}")
    return np.stack(pictures).transpose(0, 3, 1, 2)


def _encode_mp4(frames_SCHW: np.ndarray, crf: int) -> bytes:
    """H.264 at full colour resolution. The same frames give the same bytes everywhere: one thread, and x264's
    ``cpu-independent``, as its AVX-512 code for the macroblock tree reads memory that nobody wrote."""
    _, C, H, W = frames_SCHW.shape
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": str(crf), "threads": "1", "x264-params": "cpu-independent=1"}
        video = container.add_stream("libx264", rate=10, options=options)
        video.width, video.height, video.pix_fmt = W, H, "yuv444p"
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame_CHW in frames_SCHW:
            frame_HWC = np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
            picture = av.VideoFrame.from_ndarray(frame_HWC[:, :, 0], "gray") if C == 1 else None
            container.mux(video.encode(picture or av.VideoFrame.from_ndarray(frame_HWC, "rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def _encode_picture(frame_CHW: np.ndarray, kind: str, settings: dict[str, int]) -> bytes:
    stream = io.BytesIO()
    frame_HWC = np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
    Image.fromarray(frame_HWC[:, :, 0] if len(frame_CHW) == 1 else frame_HWC).save(stream, kind, **settings)
    return stream.getvalue()


def _decode_picture(data: bytes | memoryview) -> np.ndarray:
    """The pixels of a png or jpg file, (H, W, C) uint8."""
    picture = np.asarray(Image.open(io.BytesIO(data)))
    return picture[:, :, None] if picture.ndim == 2 else picture


def _decoded(members: Members, name: str, decode: Callable[[bytes | memoryview], Decoded]) -> Decoded:
    """A member through ``decode``; whatever a damaged file makes the codec raise is a ``MemberError``."""
    data = _member(members, name)
    try:
        return decode(data)
    except Exception as error:
        raise MemberError(f"has an unreadable {name}: {first_line(error)}") from None


def _member(members: Members, name: str) -> bytes | memoryview:
    if name not in members:
        raise MemberError(f"lacks its member {name}")
    return members[name]


def _picture_member(number: int, encoding: Encoding) -> str:
    return f"{number:04d}.{encoding}"
