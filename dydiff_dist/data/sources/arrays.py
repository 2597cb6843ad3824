"""Source ``arrays``: your own data, from npy, npz, HDF5, zarr or video files.

One rule for all: a file holds ``frames``, and may hold ``actions``.

    frames   (S, C, H, W), one trajectory, or (N, S, C, H, W), N of them; channels last with --layout channels_last
    actions  (S, A) or (N, S, A); the action at frame s leads to frame s, the one at frame 0 is not used

An npy file is the frames alone; npz, HDF5 and zarr hold both by name; a video file gives RGB frames (S, 3, H, W).
Trajectories are cut into windows of ``num_frames``. Folders train/, valid/ and test/ under the root are taken as the
splits; without them, a hash of file name and trajectory number decides, so all windows of a trajectory stay together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import av
import h5py
import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import Augmentation, FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, ShardTask, Source, register_source, schema_of, shard_tasks, split_of
from dydiff_dist.strict_config import StrictConfig

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
ARRAY_SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".zarr")
STORED_DTYPES = ("uint8", "uint16", "int16", "float16", "float32")
SPLITS = ("train", "valid", "test")


class ArraysSourceConfig(StrictConfig):
    """Where the files are and what they mean."""

    root: str
    """Folder of the files, searched with all folders in it; train/, valid/ and test/ in it are the splits."""
    num_frames: Annotated[int, Field(ge=2)]
    """Frames of a sample."""
    window_step: Annotated[int, Field(ge=1)] | None = None
    """Frames between the starts of two samples of one trajectory. num_frames if left out: no overlap."""
    layout: Literal["channels_first", "channels_last"] = "channels_first"
    """Where the channels stand in the arrays: (S, C, H, W) or (S, H, W, C). Videos need no layout."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for validation, where there are no folders for the splits."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for testing, where there are no folders for the splits."""
    channels: tuple[str, ...] = ()
    """Names of the channels."""
    units: str = ""
    """Units of the values."""
    allow: tuple[Augmentation, ...] = ()
    """Augmentations that leave the law of the data unchanged; runs may ask for no others."""
    vector_channels: tuple[int, int] | None = None
    """Numbers of the channels that hold a vector along width and along height; flips turn them as a vector."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 64
    """Trajectories whose samples make one shard."""


@register_source("arrays", ArraysSourceConfig, "Your own data: npy, npz, HDF5, zarr or video files.")
class ArraysSource(Source[ArraysSourceConfig]):
    """Windows of trajectories in array and video files: samples (S, C, H, W) of the files' type."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (file relative to the root, number of the trajectory or -1 if alone)."""
        root = Path(self.config.root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder; --root must be the folder of the arrays")
        files = sorted(path for path in root.rglob("*") if path.suffix in (*VIDEO_SUFFIXES, *ARRAY_SUFFIXES))
        # The chunks of a zarr folder are no files of their own.
        files = [path for path in files if not any(parent.suffix == ".zarr" for parent in path.parents)]
        if not files:
            raise FileNotFoundError(f"{root} holds no {', '.join(ARRAY_SUFFIXES)} or video file; give another --root")
        fractions = (self.config.valid_fraction, self.config.test_fraction)
        by_folder = any((root / split).is_dir() for split in SPLITS)
        by_split: dict[str, list[tuple[tuple[str, int], int]]] = {split: [] for split in SPLITS}
        for path in files:
            name = path.relative_to(root).as_posix()
            for number, size in self._trajectories(path):
                split = name.split("/")[0] if by_folder else split_of(f"{name}/{number}", *fractions)
                if split in by_split:
                    by_split[split].append(((name, number), size))
        if not by_split["train"]:
            raise ValueError(f"no trajectory under {root} is left for training; lower the fractions or fill train/")
        per_shard = self.config.trajectories_per_shard
        return [task for split, items in by_split.items() for task in shard_tasks(split, items, per_shard)]

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        """The windows of the shard's trajectories."""
        for name, number in task.items:
            where = name if number < 0 else f"{name}, trajectory {number}"
            try:
                frames, actions = self._read_trajectory(Path(self.config.root) / name, number)
                if frames.dtype.kind == "f" and not np.isfinite(frames).all():
                    raise ValueError("it holds NaN or infinite values")
                if len(frames) < self.config.num_frames:
                    raise ValueError(f"{len(frames)} frames are fewer than --num-frames {self.config.num_frames}")
            except (OSError, KeyError, ValueError, av.FFmpegError) as error:
                yield BadItem(where, str(error))
            else:
                yield from self._windows(name, number, frames, actions)

    def schema(self, sample: Sample) -> FrameSchema:
        """As the arrays are and as the options say."""
        return schema_of(
            sample,
            channels=self.config.channels,
            units=self.config.units,
            allowed_augmentations=self.config.allow,
            vector_channels=self.config.vector_channels,
        )

    def _trajectories(self, path: Path) -> Iterator[tuple[int, int]]:
        """(number or -1, bytes) of each trajectory in a file; a broken file counts as one and is reported when read."""
        try:
            if path.suffix in VIDEO_SUFFIXES:
                with av.open(str(path)) as container:
                    video = container.streams.video[0]
                    yield -1, max(video.frames, 1) * video.height * video.width * 3
                return
            with open_arrays(path) as arrays:
                frames = arrays["frames"]
                if len(frames.shape) == 5:
                    yield from ((number, int(np.prod(frames.shape[1:])) * 4) for number in range(frames.shape[0]))
                else:
                    yield -1, int(np.prod(frames.shape)) * 4
        except (OSError, KeyError, ValueError, IndexError, av.FFmpegError):
            yield -1, 0

    def _read_trajectory(self, path: Path, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(S, C, H, W) frames and (S, A) actions or None."""
        if path.suffix in VIDEO_SUFFIXES:
            with av.open(str(path)) as container:
                video = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            return np.stack(video).transpose(0, 3, 1, 2), None
        with open_arrays(path) as arrays:
            frames = arrays["frames"]
            frames = np.asarray(frames[number] if number >= 0 else frames[()])
            actions = arrays.get("actions")
            if actions is not None:
                actions = np.asarray(actions[number] if number >= 0 else actions[()], np.float32)
        if frames.ndim != 4:
            raise ValueError(f"frames have {frames.ndim} axes; (S, C, H, W) or (N, S, C, H, W) are expected")
        if actions is not None and (actions.ndim != 2 or len(actions) != len(frames)):
            raise ValueError(f"actions {actions.shape} do not fit {len(frames)} frames; (S, A) is expected")
        if self.config.layout == "channels_last":
            frames = frames.transpose(0, 3, 1, 2)
        return _storable(frames), actions

    def _windows(self, name: str, number: int, frames: np.ndarray, actions: np.ndarray | None) -> Iterator[Sample]:
        stem = Path(name).with_suffix("").as_posix().replace(".", "_").replace("/", "-")
        trajectory = stem if number < 0 else f"{stem}-{number:05d}"
        step = self.config.window_step or self.config.num_frames
        for start in range(0, len(frames) - self.config.num_frames + 1, step):
            cut = slice(start, start + self.config.num_frames)
            window_actions = None
            if actions is not None:
                window_actions = actions[cut].copy()
                window_actions[0] = 0
            meta = {"file": name, "trajectory": number, "start": start}
            yield Sample(f"{trajectory}-{start:05d}", np.ascontiguousarray(frames[cut]), window_actions, meta)


@contextmanager
def open_arrays(path: Path) -> Iterator[dict[str, Any]]:
    """The arrays of a file by name; npy, HDF5 and zarr are read piece by piece, npz holds whole arrays."""
    if path.suffix == ".npy":
        yield {"frames": np.load(path, mmap_mode="r", allow_pickle=False)}
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            yield {name: archive[name] for name in archive.files}
    elif path.suffix == ".zarr":
        yield dict(_open_zarr(path).arrays())
    else:
        with h5py.File(path, "r") as file:
            yield {name: file[name] for name in ("frames", "actions") if name in file}


def _open_zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise ValueError(f"{path} needs the package zarr; install it with pip install dydiff_dist[zarr]") from None
    return zarr.open_group(str(path), mode="r")


def _storable(frames: np.ndarray) -> np.ndarray:
    """The frames in a type that shards hold: float64 becomes float32, bool uint8, others stay or are refused."""
    if frames.dtype == np.float64:
        return frames.astype(np.float32)
    if frames.dtype == np.bool_:
        return frames.astype(np.uint8)
    if frames.dtype.name not in STORED_DTYPES:
        raise ValueError(f"frames of type {frames.dtype} cannot be stored; convert them to one of {STORED_DTYPES}")
    return frames
