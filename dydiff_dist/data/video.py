"""Video files as a player shows them: turned as the track says, whole, and evenly spaced in time.

Letters: S frames, H W height and width.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image

UNEVEN = 1.5
"""Two frames that lie further apart than so many times the usual interval, or closer than its inverse, are not evenly
spaced. Clocks of cameras jitter by less."""


@dataclass(frozen=True)
class Clip:
    """A video in memory."""

    frames: list[np.ndarray]
    """Each (H, W, 3) uint8 RGB, or (H, W) grey."""
    frames_per_sec: float | None
    """None where the file has no times."""


def decode_video(source: Path | bytes, grey: bool = False) -> list[np.ndarray]:
    """All frames of a video file, or of its bytes, whatever their times: each (H, W, 3) uint8 RGB, or (H, W) grey.

    Frames are turned and mirrored as the track's display matrix says, as phones store upright videos.

    Raises:
        ValueError: no video track, no frame, frames of several sizes, or a file that is damaged or cut off, which
            decoders otherwise pass over in silence.
    """
    return _decode(source, grey)[0]


def read_video(path: Path, fps: float | None = None, grey: bool = False) -> Clip:
    """All frames of a video file at one rate.

    Args:
        path: of the file.
        fps: frames a second to bring it to, by the frame nearest in time; None keeps the frames that there are.
        grey: whether to read (H, W) grey frames.

    Raises:
        ValueError: as ``decode_video``; also unevenly spaced frames without ``fps``, or a video that has fewer frames a
            second than ``fps``.
    """
    frames, times, stated_rate = _decode(path, grey)
    if times is None or len(frames) < 2:
        if fps is not None and len(frames) > 1:
            raise ValueError(f"it has no times, so that it cannot be brought to --fps {fps:g}; store it as mp4")
        return Clip(frames, stated_rate)
    intervals = np.diff(times)
    usual = float(np.median(intervals))
    if intervals.min() <= 0:
        raise ValueError("its frames are not in order of time; store it as mp4 once more")
    if fps is not None:
        if fps > 1.02 / usual:  # times may be rounded to milliseconds
            raise ValueError(f"its {1 / usual:.4g} frames a second are fewer than --fps {fps:g}; give a lower one")
        wanted = np.arange(int((times[-1] - times[0]) * fps + 1e-3) + 1) / fps + times[0]
        nearest = np.searchsorted((times[:-1] + times[1:]) / 2, wanted - 1e-6)
        return Clip([frames[number] for number in nearest], fps)
    if intervals.max() > UNEVEN * usual or intervals.min() < usual / UNEVEN:
        raise ValueError(
            f"its frames lie {intervals.min():.3g} to {intervals.max():.3g} s apart; give --fps to bring it to one rate"
        )
    measured = (len(frames) - 1) / float(times[-1] - times[0])
    if stated_rate is not None and abs(stated_rate - measured) < 0.02 * measured:
        measured = stated_rate
    return Clip(frames, round(measured, 3))


def decoded_bytes(path: Path) -> int:
    """About how many bytes all frames of a file take as RGB, from its header alone.

    Raises:
        ValueError: no video track. What else is wrong with a file raises PyAV's own errors.
    """
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        length = float(stream.average_rate or 0) * (container.duration or 0) / av.time_base
        return max(stream.frames, int(length), 1) * stream.codec_context.height * stream.codec_context.width * 3


def frames_at(path: Path, times_sec: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 RGB of a video at ascending times, each decoded once.

    Decoding begins at the key frame before the first time and ends with the last, so that a piece of a long file costs
    about its own length.

    Args:
        path: of the file.
        times_sec: (S,).
        fps: frames a second; a frame must lie within half a frame of each time.

    Raises:
        ValueError: no frame lies there, as in a file that is cut off or of another rate; a damaged file.
    """
    reach, number = 0.5 / fps, 0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            stream.thread_count = 1  # workers share the cores
            container.seek(int((times_sec[0] - reach) / stream.time_base), stream=stream)
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if frame.time is None or frame.time < times_sec[number] - reach:
                        continue
                    if packet.is_corrupt or frame.is_corrupt:
                        raise ValueError(f"the frame at {frame.time:.3f} s is damaged or cut off; restore the file")
                    if frame.time > times_sec[number] + reach:
                        raise ValueError(f"no frame lies at {times_sec[number]:.3f} s; it is of another rate")
                    yield _turned(frame.to_ndarray(format="rgb24"), frame)
                    number += 1
                    if number == len(times_sec):
                        return
    except (av.FFmpegError, EOFError) as error:
        reason = f"{getattr(error, 'strerror', None) or error}; the file is cut off, damaged or no video"
        raise ValueError(f"the frame at {times_sec[number]:.3f} s cannot be decoded: {reason}") from None
    raise ValueError(f"it ends before {times_sec[number]:.3f} s; the file is cut off, restore it")


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame, (H, W, 3) uint8 or (H, W) float32, of the size (height, width): bilinear, with antialiasing when
    shrinking; as it is where it has that size."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR))


def _decode(source: Path | bytes, grey: bool) -> tuple[list[np.ndarray], np.ndarray | None, float | None]:
    """Frames, their times in seconds or None, and the rate that the header states."""
    frames: list[np.ndarray] = []
    times: list[float | None] = []
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            stream = _video_stream(container)
            stream.thread_count = 1  # workers share the cores
            last = None
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if packet.is_corrupt or frame.is_corrupt:
                        raise ValueError(f"frame {len(frames)} is damaged or cut off; restore the file")
                    frames.append(_turned(frame.to_ndarray(format="gray" if grey else "rgb24"), frame))
                    times.append(frame.time)
                    last = frame
            _check_whole(source, container, stream, len(frames), last)
            rate = float(stream.average_rate) if stream.average_rate else None
    except (av.FFmpegError, EOFError) as error:
        reason = f"{getattr(error, 'strerror', None) or error}; the file is cut off, damaged or no video"
        raise ValueError(f"frame {len(frames)} cannot be decoded: {reason}") from None
    shapes = sorted({frame.shape[:2] for frame in frames})
    if len(shapes) > 1:
        raise ValueError(f"its frames change their size, {shapes[0]} to {shapes[-1]}; cut it where they do")
    known = [time for time in times if time is not None]
    return frames, np.array(known) if len(known) == len(times) else None, rate


def _video_stream(container: Any) -> Any:
    """The first video track that is no cover picture of a sound file."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        others = sorted({stream.type for stream in container.streams})
        raise ValueError(f"it has no video track, only {', '.join(others) or 'nothing'}")
    return streams[0]


def _turned(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Pixels (H, W, ...) as shown, by the display matrix (a, b; c, d): x' = a x + c y, y' = b x + d y."""
    side_data: Any = frame.side_data  # a sequence of their kinds to type checkers, of the data themselves when run
    matrix = next((data for data in side_data if data.type == SideData.DISPLAYMATRIX), None)
    if matrix is None:
        return pixels
    a, b, _, c, d = (np.frombuffer(memoryview(matrix), np.int32)[:5] / 2**16).tolist()
    if a == d == 0 and abs(b) == abs(c) == 1:
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    elif b == c == 0 and abs(a) == abs(d) == 1:
        right, down = a, d
    else:
        raise ValueError(f"its track is turned by {frame.rotation} degrees or stretched; only quarter turns are read")
    return np.ascontiguousarray(pixels[:: int(down), :: int(right)])


def _check_whole(source: Path | bytes, container: Any, stream: Any, num_frames: int, last: Any) -> None:
    """Whether all that the header speaks of was there; what ends early is read as if it ended there."""
    if not num_frames:
        raise ValueError("it holds no frame; restore the file")
    promised = num_frames
    if "mp4" in container.format.name:  # an edit list may leave out frames, so that bytes are counted
        entries = stream.index_entries
        promised += any(entries[number].pos + entries[number].size > container.size for number in range(len(entries)))
    elif container.format.name == "gif":
        promised += not _last_bytes(source).rstrip(b"\0").endswith(b";")
    elif stream.frames:
        promised = stream.frames
    elif last.time is not None and (length := _stated_length(container, stream)):
        interval = 1 / float(stream.average_rate or 1)
        end = last.time + max(interval, float((last.duration or 0) * last.time_base))
        promised += length > end + interval / 2
    if num_frames < promised:
        raise ValueError(f"it is cut off after {num_frames} frames, its header promises more; restore the file")


def _stated_length(container: Any, stream: Any) -> float | None:
    """Seconds at which the track ends, as Matroska files state it; of the whole file where it has no other track."""
    stated = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if stated:
        return int(stated[1]) * 3600 + int(stated[2]) * 60 + float(stated[3])
    if len(container.streams) == 1 and container.duration:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None


def _last_bytes(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[-64:]
    with open(source, "rb") as file:
        file.seek(-min(64, source.stat().st_size), io.SEEK_END)
        return file.read()
