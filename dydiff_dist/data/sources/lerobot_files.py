"""LeRobot's data sets v3.0 and v2.1 (https://github.com/huggingface/lerobot): episodes, their numbers and their videos.

v3.0: files of many episodes, found through ``meta/episodes``; v2.1: a file of each kind for every episode. Where files
lie follows from the version alone; the templates in ``meta/info.json`` are not followed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dydiff_dist.data.source import BadItem, reading
from dydiff_dist.files import parse_json, plain_name, read_document_bytes

_REMEDY = "fetch it again"
_IN_FILE = "chunk-{chunk:03d}/file-{file:03d}"


@dataclass(frozen=True)
class LerobotInfo:
    """What ``meta/info.json`` says."""

    version: str
    fps: float
    features: tuple[str, ...]
    """Names of all."""
    cameras: dict[str, tuple[int, ...]]
    """Of those that are colour videos: the shape of a frame."""
    splits: dict[str, range]
    """Numbers of the episodes of each."""
    chunks_size: int
    """Episodes of a folder, in v2.1."""


@dataclass(frozen=True)
class Episode:
    """An episode, and where its parts lie, relative to the root."""

    number: int
    length: int
    data_file: str
    videos: tuple[tuple[str, float], ...]
    """File and the second at which the episode begins in it, for each of the cameras asked for."""


def read_info(root: Path) -> LerobotInfo:
    """What is known of the data set.

    Raises:
        FileNotFoundError, ValueError: no ``meta/info.json``, a damaged one, or one of another version.
    """
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --root must be the folder of a LeRobot data set")
    tree = parse_json(read_document_bytes(path), str(path), _REMEDY)
    try:
        version = str(tree["codebase_version"])
        spans = {str(name): str(text).split(":") for name, text in (tree.get("splits") or {}).items()}
        info = LerobotInfo(
            version,
            float(tree["fps"]),
            tuple(tree["features"]),
            dict(_colour_videos(tree["features"])),
            {name: range(int(first), int(last)) for name, (first, last) in spans.items()},
            int(tree.get("chunks_size", 1000)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {what}; {_REMEDY}") from None
    if not version.startswith(("v2", "v3")) or info.fps <= 0 or info.chunks_size < 1:
        raise ValueError(f"{path} is of version {version} at {info.fps} frames a second; v3.0 and v2.1 are read")
    return info


def _colour_videos(features: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, feature in features.items():
        about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        is_depth = about.get("is_depth_map") or about.get("video.is_depth_map")  # the latter in older ones
        if feature["dtype"] == "video" and not is_depth:
            yield plain_name(name), tuple(int(size) for size in feature["shape"])


def read_episodes(root: Path, info: LerobotInfo, cameras: Sequence[str]) -> Iterator[Episode | BadItem]:
    """All episodes in order of their numbers; a file of them that can't be read is a bad item."""
    if info.version.startswith("v2"):
        yield from reading("meta/episodes.jsonl", _episodes_of_lines(root, info, cameras))
        return
    files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root / 'meta' / 'episodes'} holds no chunk-000/file-000.parquet; {_REMEDY}")
    for path in files:
        yield from reading(path.relative_to(root).as_posix(), _episodes_of_table(path, cameras))


def _episodes_of_lines(root: Path, info: LerobotInfo, cameras: Sequence[str]) -> Iterator[Episode]:
    with open(root / "meta" / "episodes.jsonl", "rb") as file:
        for line_number, line in enumerate(file, start=1):
            row = parse_json(line, f"line {line_number}", _REMEDY)
            number, length = int(row["episode_index"]), int(row["length"])
            chunk = f"chunk-{number // info.chunks_size:03d}"
            videos = tuple((f"videos/{chunk}/{camera}/episode_{number:06d}.mp4", 0.0) for camera in cameras)
            yield Episode(number, length, f"data/{chunk}/episode_{number:06d}.parquet", videos)


def _episodes_of_table(path: Path, cameras: Sequence[str]) -> Iterator[Episode]:
    parts = ("chunk_index", "file_index", "from_timestamp")
    of_videos = [f"videos/{camera}/{part}" for camera in cameras for part in parts]
    places = ("data/chunk_index", "data/file_index")
    for row in _read_table(path, ("episode_index", "length", *places, *of_videos)).to_pylist():
        data = _IN_FILE.format(chunk=int(row[places[0]]), file=int(row[places[1]]))
        videos = []
        for camera in cameras:
            chunk, file, start = (row[f"videos/{camera}/{part}"] for part in parts)
            videos.append((f"videos/{camera}/{_IN_FILE.format(chunk=int(chunk), file=int(file))}.mp4", float(start)))
        yield Episode(int(row["episode_index"]), int(row["length"]), f"data/{data}.parquet", tuple(videos))


def read_numbers(path: Path, episode: int, length: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """An episode's rows in order of time: ``timestamp`` (T,) float64 in seconds, and each of ``names`` (T, n) float32.

    Raises:
        FileNotFoundError, ValueError: no such file or columns, or other rows than its ``length``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {_REMEDY}")
    table = _table_of(path, ("episode_index", "frame_index", "timestamp", *names), path.stat().st_mtime_ns)
    table = table.filter(np.asarray(table["episode_index"]) == episode)
    frames = np.asarray(table["frame_index"])
    if len(frames) != length or not np.array_equal(frames, np.arange(length)):
        raise ValueError(f"{path.name} holds {len(frames)} of the episode's {length} rows, or not in order; {_REMEDY}")
    found = {"timestamp": np.asarray(table["timestamp"], np.float64)}
    for name in names:
        column = table[name].to_numpy()
        found[name] = (np.stack(column) if column.dtype == object else column[:, None]).astype(np.float32)
    return found


@lru_cache(maxsize=1)
def _table_of(path: Path, columns: tuple[str, ...], _: int) -> Any:
    """The columns of a file; the last one is kept, as its episodes are asked for in turn."""
    return _read_table(path, columns)


def _read_table(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow.parquet  # an extra

    file = pyarrow.parquet.ParquetFile(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    return file.read(columns=list(columns))
