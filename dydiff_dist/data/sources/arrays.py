"""Source ``arrays``: your own data, from npy, npz, HDF5, netCDF-4, zarr or video files.

One rule for all: a file holds ``frames``, and may hold ``actions``.

    frames   (S, C, H, W), one trajectory, or (N, S, C, H, W), N of them; other orders of the axes: ``LAYOUTS``
    actions  (S, A) or (N, S, A); the action at frame s leads to frame s, the one at frame 0 is not used

An npy file, or a zarr store of one array, is the frames alone; the others hold both by name; a video file gives RGB
frames (S, 3, H, W). Trajectories are cut into windows of ``num_frames``. Folders train/, valid/ (or val/) and test/
under the root are taken as the splits; without them, a hash of file name and trajectory number decides, so all windows
of a trajectory stay together.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from dydiff_dist.data.array_files import ARRAY_SUFFIXES, ArrayFile, StoredArray, open_arrays
from dydiff_dist.data.manifest import RGB, Augmentation, FrameSchema, StoredType
from dydiff_dist.data.packing import describe_missing, fill_masks
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, register_source, schema_of
from dydiff_dist.data.sources.trajectory_files import TrajectoryFilesConfig, TrajectoryFilesSource
from dydiff_dist.data.video import decoded_bytes, read_video

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".ts")
STORED_DTYPES = get_args(StoredType)

Layout = Literal["channels_first", "channels_last", "no_channels"]
LAYOUTS: dict[Layout, str] = {"channels_first": "SCHW", "channels_last": "SHWC", "no_channels": "SHW"}
"""Axes of one trajectory; a file of several has one more axis before them."""
LONGEST_SIDE = 8
"""Times the shorter side of a frame that the longer one may have, where the layout is told by the shape."""


class ArraysSourceConfig(TrajectoryFilesConfig):
    """Where the files are and what they mean."""

    num_frames: Annotated[int, Field(ge=2)]
    """Frames of a sample."""
    window_step: Annotated[int, Field(ge=1)] | None = None
    """Frames between the starts of two samples of one trajectory. num_frames if left out: no overlap."""
    layout: Layout | None = None
    """Order of the axes: (S, C, H, W), (S, H, W, C) or (S, H, W), each also with trajectories before it. Left out, the
    shape tells it, or the file is refused. Videos need no layout."""
    frames_name: str = "frames"
    """Name of the frames in HDF5, netCDF, zarr and npz files; with / for groups."""
    actions_name: str = "actions"
    """Name of the actions in them."""
    packing: Literal["cf", "stored"] = "cf"
    """cf: the arrays' attributes scale_factor, add_offset, _FillValue, missing_value, valid_min, valid_max, valid_range
    and _Unsigned are applied, and windows with missing values rejected; stored: values as they lie in the file."""
    absent_chunks: Literal["reject", "fill"] = "reject"
    """Windows of which chunks are not in the file (never written, lost by a copy, or left out by a zarr writer as they
    hold nothing but the fill value) are rejected, or take the fill value."""
    fill: tuple[float, ...] = ()
    """Value that stands where a channel has none in all frames of a window, as a field of the sea over land; one for
    all channels, or one for each. Windows that lack others are rejected still."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Frames a second to which videos are brought, by the frame nearest in time. All as they are if left out; then they
    must have the same rate."""
    channels: tuple[str, ...] = ()
    """Names of the channels."""
    units: str = ""
    """Units of the values; what the arrays' attribute "units" says if left out."""
    allow: tuple[Augmentation, ...] = ()
    """Augmentations that leave the law of the data unchanged; runs may ask for no others."""
    vector_channels: tuple[int, int] | None = None
    """Numbers of the channels that hold a vector along width and along height; flips turn them as a vector."""


@register_source("arrays", ArraysSourceConfig, "Your own data: npy, npz, HDF5, netCDF-4, zarr or video files.")
class ArraysSource(TrajectoryFilesSource[ArraysSourceConfig]):
    """Windows of trajectories in array and video files: samples (S, C, H, W) of the files' type. An item names its
    trajectory by number, -1 where it is alone in its file."""

    unlike_hint = "convert them to one kind first (--fps brings videos to one rate)"
    suffixes = (*ARRAY_SUFFIXES, *VIDEO_SUFFIXES)
    folder_suffix = ".zarr"
    unopened = -1

    def check_files(self, names: list[str]) -> None:
        """Zarr stores need their package."""
        if any(Path(name).suffix.lower() == ".zarr" for name in names) and find_spec("zarr") is None:
            raise ValueError(f"{self.config.root} holds zarr stores; pip install dydiff_dist[zarr] to read them")

    def read_item(self, item: Any) -> Iterator[Sample | BadItem]:
        """The windows of a trajectory."""
        name, number, _ = item
        path = Path(self.config.root) / name
        if path.suffix.lower() in VIDEO_SUFFIXES:
            clip = read_video(path, self.config.fps)
            frames = np.stack(clip.frames).transpose(0, 3, 1, 2)
            self._check_channels(frames.shape, len(RGB), "a video")
            meta = {"frames_per_sec": clip.frames_per_sec, "is_video": True}
            yield from self._windows(item, frames, None, meta)
            return
        with open_arrays(path, self.config.packing) as arrays:
            stored = self._frames_of(arrays)
            layout = self._layout(stored.shape)
            unpacked = stored.read(number)
            absent = stored.absent(number) if self.config.absent_chunks == "reject" else None
            actions = arrays.get(self.config.actions_name)
            if actions is not None and number >= 0 and actions.shape[0] != stored.shape[0]:
                raise ValueError(f"actions {actions.shape} are not of the trajectories of frames {stored.shape}")
            actions_SA = None if actions is None else _real_numbers(actions, number)
        frames = _storable(_channels_first(unpacked.values, layout))
        if actions_SA is not None and (actions_SA.ndim != 2 or len(actions_SA) != len(frames)):
            raise ValueError(
                f"actions {actions_SA.shape} do not fit {len(frames)} frames; (S, A) is expected, the action at "
                "frame s being the one that leads to it"
            )
        missing = None if unpacked.is_missing is None else _channels_first(unpacked.is_missing, layout)
        yield from self._windows(item, frames, actions_SA, {"units": stored.units}, absent, missing)

    def item_name(self, item: Any) -> str:
        """File and trajectory."""
        return item[0] if item[1] < 0 else super().item_name(item)

    def schema(self, sample: Sample) -> FrameSchema:
        """As the arrays are and as the options say."""
        is_video = sample.meta.get("is_video", False)
        return schema_of(
            sample,
            channels=self.config.channels or (RGB if is_video else ()),
            units=self.config.units or ("8-bit colour" if is_video else sample.meta.get("units", "")),
            allowed_augmentations=self.config.allow,
            vector_channels=self.config.vector_channels,
            frames_per_sec=sample.meta.get("frames_per_sec"),
            bounds=((0, 255),) * 3 if is_video else (),
        )

    def trajectories(self, path: Path) -> Iterator[tuple[int, int]]:
        """(number or -1, bytes) of each trajectory in a file."""
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield -1, decoded_bytes(path)
            return
        with open_arrays(path, self.config.packing) as arrays:
            shape = self._frames_of(arrays).shape
        if len(shape) == len(LAYOUTS[self._layout(shape)]):
            yield -1, int(np.prod(shape)) * 4
        else:
            yield from ((number, int(np.prod(shape[1:])) * 4) for number in range(shape[0]))

    def _frames_of(self, arrays: ArrayFile) -> StoredArray:
        name = self.config.frames_name
        frames = arrays.get(name, or_alone=True)
        if frames is None:
            names = ", ".join(arrays.names()[:6]) or "nothing"
            raise ValueError(f"it has no array {name!r}, only {names}; say which holds the frames with --frames-name")
        return frames

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        layout = find_layout(shape, self.config.layout, self.config.num_frames, len(self.config.channels))
        self._check_channels(shape, _sizes(shape, LAYOUTS[layout]).get("C", 1), layout)
        return layout

    def _check_channels(self, shape: tuple[int, ...], num_channels: int, kind: str) -> None:
        """Holds what the options say of channels against an array of a layout, or a video."""
        if self.config.channels and len(self.config.channels) != num_channels:
            raise ValueError(
                f"--channels names {len(self.config.channels)}, frames {shape} have {num_channels} as {kind}; "
                "correct --channels or --layout"
            )
        if self.config.vector_channels and max(self.config.vector_channels) >= num_channels:
            raise ValueError(
                f"--vector-channels are {self.config.vector_channels}, frames {shape} have {num_channels} channels as "
                f"{kind}, counted from 0; correct it or --layout"
            )

    def _windows(
        self,
        item: tuple[str, int, str],
        frames: np.ndarray,
        actions: np.ndarray | None,
        meta: dict[str, Any],
        absent: np.ndarray | None = None,
        missing: np.ndarray | None = None,
    ) -> Iterator[Sample | BadItem]:
        """The windows of a trajectory, without those that lack chunks (``absent``, (S,)) or values (``missing``)."""
        name, number, stem = item
        length = self.config.num_frames
        if len(frames) < length:
            raise ValueError(f"{len(frames)} frames are fewer than --num-frames {length}")
        trajectory = stem if number < 0 else f"{stem}-{number:05d}"
        for start in range(0, len(frames) - length + 1, self.config.window_step or length):
            cut = slice(start, start + length)
            where = f"frames {start} to {start + length - 1}"
            if absent is not None and absent[cut].any():
                reason = (
                    f"{where}: chunks of frame {start + int(absent[cut].argmax())} are not in the file: lost or cut "
                    "off by a copy, never written, or left out as they hold the fill value (then --absent-chunks fill)"
                )
                yield BadItem(self.item_name(item), reason)
                continue
            window = frames[cut]
            if missing is not None:
                window, lacking = window.copy(), missing[cut].copy()  # windows may overlap
                fill_masks(window, lacking, self.config.fill)
                if lacking.any():
                    yield BadItem(self.item_name(item), f"{where}: {describe_missing(lacking)}")
                    continue
            window_actions = None
            if actions is not None:
                window_actions = actions[cut].copy()
                window_actions[0] = 0
            facts = {"file": name, "trajectory": number, "start": start, **{k: v for k, v in meta.items() if v}}
            yield Sample(f"{trajectory}-{start:05d}", np.ascontiguousarray(window), window_actions, facts)


def find_layout(shape: tuple[int, ...], layout: Layout | None, num_frames: int, num_channels: int = 0) -> Layout:
    """The layout of an array, as given, or the only one that its shape may have.

    An array may be of a layout if it has its axes, or one more for trajectories, at least ``num_frames`` frames, as
    many channels as were named or else fewer than pixels along either side, and frames that are no stripes.

    Args:
        shape: of the whole array.
        layout: what the user says; None lets the shape tell.
        num_frames: of a sample.
        num_channels: named by the user; 0 if none are.

    Raises:
        ValueError: it has other axes than ``layout``, or may be of several layouts, or of none.

    Examples:
        >>> find_layout((100, 3, 64, 64), None, num_frames=15), find_layout((4, 20, 64, 64, 2), None, 15)
        ('channels_first', 'channels_last')
    """
    fitting = [name for name, axes in LAYOUTS.items() if len(shape) - len(axes) in (0, 1)]
    orders = ", ".join(f"--layout {name} ({_order(shape, axes)})" for name, axes in LAYOUTS.items() if name in fitting)
    if not fitting:
        raise ValueError(f"frames have {len(shape)} axes; (S, C, H, W) or (N, S, C, H, W) are expected, see --layout")
    if layout is not None:
        if layout not in fitting:
            raise ValueError(f"frames {shape} do not have the axes of --layout {layout}; they may be {orders}")
        return layout
    possible = [name for name in fitting if _is_possible(shape, LAYOUTS[name], num_channels)]
    long_enough = [name for name in fitting if _sizes(shape, LAYOUTS[name])["S"] >= num_frames]
    if long_enough:  # else it is too short, whatever its layout
        possible = [name for name in possible if name in long_enough]
    if len(possible) != 1 and len(fitting) != 1:
        raise ValueError(f"frames {shape} do not show the order of their axes; say it: {orders}")
    return (possible or fitting)[0]


def _order(shape: tuple[int, ...], axes: str) -> str:
    return ", ".join(axes if len(axes) == len(shape) else f"N{axes}")


def _sizes(shape: tuple[int, ...], axes: str) -> dict[str, int]:
    return dict(zip(axes, shape[-len(axes) :], strict=True))


def _is_possible(shape: tuple[int, ...], axes: str, num_channels: int) -> bool:
    sizes = _sizes(shape, axes)
    sides, channels = sorted((sizes["H"], sizes["W"])), sizes.get("C", 1)
    if num_channels:
        return channels == num_channels
    return ("C" not in sizes or channels < sides[0]) and sides[1] <= LONGEST_SIDE * sides[0]


def _channels_first(frames: np.ndarray, layout: Layout) -> np.ndarray:
    """(S, C, H, W) of the frames of one trajectory."""
    if layout == "no_channels":
        return frames[:, None]
    return frames.transpose(0, 3, 1, 2) if layout == "channels_last" else frames


def _real_numbers(array: StoredArray, number: int) -> np.ndarray:
    """An array of one trajectory as float32, NaN where a value is missing."""
    unpacked = array.read(number)
    values = unpacked.values.astype(np.float32)
    if unpacked.is_missing is not None:
        values[unpacked.is_missing] = np.nan
    return values


def _storable(frames: np.ndarray) -> np.ndarray:
    """The frames in a type that shards hold, of either byte order: float64 becomes float32, bool uint8, others stay or
    are refused."""
    if frames.dtype.name == "float64":
        return frames.astype(np.float32)
    if frames.dtype == np.bool_:
        return frames.astype(np.uint8)
    if frames.dtype.name not in STORED_DTYPES:
        raise ValueError(f"frames of type {frames.dtype} cannot be stored; convert them to one of {STORED_DTYPES}")
    return frames
