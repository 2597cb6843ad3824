"""Source ``robonet``: robot trajectories in RoboNet's HDF5 layout, one file per trajectory.

``env/camN_video`` holds the frames (one mp4 stream, or one jpg per frame), ``env/state`` the robot's states,
``policy/actions`` the T - 1 actions between T frames, and ``metadata`` the robot's name and more as attributes.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import av
import h5py
import numpy as np
from PIL import Image
from pydantic import Field

from dydiff_dist.data.manifest import RGB, FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import (
    BadItem,
    LeftOut,
    ShardTask,
    Source,
    register_source,
    schema_of,
    shard_tasks,
    split_of,
)
from dydiff_dist.data.video import decode_video
from dydiff_dist.files import file_sha256
from dydiff_dist.strict_config import StrictConfig

Mismatch = Literal["reject", "pad", "cut", "pad_or_cut"]
Metadata = dict[str, str | int]
"""What a trajectory can be filtered by, see ``read_metadata``."""


class RobonetSourceConfig(StrictConfig):
    """Which trajectories to take and in what form."""

    root: str
    """Folder of the .hdf5 files, searched with all folders in it."""
    num_frames: Annotated[int, Field(ge=2)] = 31
    """Frames per sample; a longer trajectory gives several samples, the rest of it is left out; a shorter one is
    rejected."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (64, 64)
    """Height and width of the frames; others are resized (bilinear, with antialiasing when shrinking)."""
    cameras: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Numbers of the cameras. Each gives samples of its own; where a trajectory lacks one, the others are taken."""
    where: tuple[str, ...] = ()
    """Take only trajectories with these metadata, each NAME=VALUE or NAME=VALUE,VALUE: robot=sawyer,baxter adim=4
    gripper=default. NAME is an attribute of the file's metadata, or one of adim, sdim, ncam, img_T, image_format,
    img_encoding."""
    hashes: str | None = None
    """Text file of SHA-256 sums as sha256sum prints them, "HASH  NAME" a line; a file with another hash, or none in the
    list, is rejected."""
    num_actions: Annotated[int, Field(ge=1)] = 4
    """Action channels of a sample."""
    action_mismatch: Mismatch = "reject"
    """What happens to a trajectory with fewer or more action channels: rejected, zeros appended, channels cut off."""
    num_states: Annotated[int, Field(ge=1)] | None = None
    """State channels of a sample; as many as a trajectory has if left out."""
    state_mismatch: Mismatch = "pad_or_cut"
    """With num_states: what happens to a trajectory with fewer or more state channels."""
    impute_autograsp: bool = False
    """Where the gripper closes by itself (primitive "autograsp") and the actions lack its channel, append the command
    that the next state shows: the gripper's upper or lower bound."""
    test_list: str | None = None
    """Text file with the names of the test trajectories, one .hdf5 name a line; overrides test_fraction."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for testing, chosen by a hash of the file name."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for validation, chosen by a hash of the file name."""
    normalisation: Literal["symmetric", "standard"] = "symmetric"
    """Network units: -1 to 1, or mean 0 and variance 1 per colour over the training split."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 64
    """Trajectories whose samples make one shard."""


@register_source("robonet", RobonetSourceConfig, "Robot trajectories with actions in RoboNet's HDF5 layout.")
class RobonetSource(Source[RobonetSourceConfig]):
    """Stretches of trajectories with actions and states: samples (S, 3, H, W) uint8 RGB."""

    def __init__(self, config: RobonetSourceConfig):
        super().__init__(config)
        for text in config.where:
            _parse_condition(text)
        self._hashes = None if config.hashes is None else read_hashes(Path(config.hashes))

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is a file, relative to the root."""
        root = Path(self.config.root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder; --root must be the folder of the .hdf5 files")
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.hdf5"))
        if not files:
            raise FileNotFoundError(f"{root} holds no .hdf5 file; give another --root")
        test_names = self._test_names(files)
        height, width = self.config.size
        file_bytes = (self.config.num_frames * 3 * height * width + 4096) * len(self.config.cameras)
        by_split: dict[str, list[tuple[str, int]]] = {"train": [], "valid": [], "test": []}
        for file in files:
            by_split[self._split(file, test_names)].append((file, file_bytes))
        if not by_split["train"]:
            raise ValueError(f"no trajectory of {len(files)} is left for training; lower the fractions")
        per_shard = self.config.trajectories_per_shard
        return [task for split, items in by_split.items() for task in shard_tasks(split, items, per_shard)]

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem | LeftOut]:
        """The samples of the shard's trajectories."""
        for file in task.items:
            try:
                yield from self._read_trajectory(file)
            except (OSError, KeyError, ValueError, av.FFmpegError) as error:
                yield BadItem(file, str(error))

    def schema(self, sample: Sample) -> FrameSchema:
        """RGB frames. No augmentation: mirroring would contradict the actions."""
        return schema_of(sample, channels=RGB, units="8-bit colour", bounds=((0, 255),) * 3)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(x - 127.5) / 127.5 per colour, or None for the training split's own mean and standard deviation."""
        return ((127.5,) * 3, (127.5,) * 3) if self.config.normalisation == "symmetric" else None

    def _test_names(self, files: list[str]) -> set[str] | None:
        if self.config.test_list is None:
            return None
        path = Path(self.config.test_list)
        if not path.is_file():
            raise FileNotFoundError(f"--test-list {path} does not exist")
        names = {line.strip() for line in path.read_text().splitlines() if line.strip()}
        if not names & {Path(file).name for file in files}:
            raise ValueError(
                f"--test-list {path} names none of the {len(files)} files; it needs file names, one a line"
            )
        return names

    def _split(self, file: str, test_names: set[str] | None) -> str:
        name = Path(file).name
        if test_names is None:
            return split_of(name, self.config.valid_fraction, self.config.test_fraction)
        return "test" if name in test_names else split_of(name, self.config.valid_fraction)

    def _read_trajectory(self, file: str) -> Iterator[Sample | LeftOut]:
        """The samples of a trajectory, camera after camera."""
        path = Path(self.config.root) / file
        if self._hashes is not None:
            self._check_hash(path, self._hashes)
        with h5py.File(path, "r") as data:
            metadata = read_metadata(data)
            for text in self.config.where:
                if not _is_met(text, metadata):
                    yield LeftOut(f"not {text}")
                    return
            actions = self._actions(data, str(metadata.get("primitives", "")))
            states = data["env/state"][()].astype(np.float32)
            if self.config.num_states is not None:
                states = _fit(states, self.config.num_states, self.config.state_mismatch, "state")
            for camera in self.config.cameras:
                if f"cam{camera}_video" in data["env"]:
                    frames = read_camera(data, camera)
                    yield from self._samples(file, camera, frames, actions, states, metadata)
                else:
                    yield LeftOut(f"no camera {camera}")

    def _samples(
        self,
        file: str,
        camera: int,
        frames: list[np.ndarray],
        actions: np.ndarray,
        states: np.ndarray,
        metadata: Metadata,
    ) -> Iterator[Sample]:
        """Stretches of ``num_frames`` of what one camera saw."""
        if not len(frames) == len(actions) + 1 == len(states):
            raise ValueError(
                f"{len(frames)} frames, {len(actions)} actions and {len(states)} states do not fit together"
            )
        if len(frames) < self.config.num_frames:
            raise ValueError(f"{len(frames)} frames are fewer than --num-frames {self.config.num_frames}")
        frames_SCHW = np.stack([self._resize(frame) for frame in frames])
        # The action between frames s - 1 and s stands at frame s.
        actions_SA = np.concatenate([np.zeros_like(actions[:1]), actions])
        stem = Path(file).with_suffix("").as_posix().replace(".", "_")
        if len(self.config.cameras) > 1:
            stem += f"-cam{camera}"
        for number, start in enumerate(range(0, len(frames) - self.config.num_frames + 1, self.config.num_frames)):
            cut = slice(start, start + self.config.num_frames)
            sample_actions = actions_SA[cut].copy()
            sample_actions[0] = 0
            meta = {**metadata, "file": file, "camera": camera, "start": start}
            yield Sample(f"{stem}-{number:02d}", frames_SCHW[cut], sample_actions, meta, states[cut])

    def _check_hash(self, path: Path, hashes: dict[str, str]) -> None:
        expected = hashes.get(path.name)
        if expected is None:
            raise ValueError(f"--hashes {self.config.hashes} does not list it")
        found = file_sha256(path)
        if found != expected:
            raise ValueError(f"its SHA-256 is {found[:16]}…, --hashes says {expected[:16]}…; fetch the file again")

    def _actions(self, data: h5py.File, primitives: str) -> np.ndarray:
        """(T - 1, A) float32 with the asked number of channels."""
        actions = data["policy/actions"][()].astype(np.float32)
        wanted, found = self.config.num_actions, actions.shape[1]
        if self.config.impute_autograsp and "autograsp" in primitives and found == wanted - 1:
            return np.concatenate([actions, _gripper_commands(data)], axis=1)
        return _fit(actions, wanted, self.config.action_mismatch, "action")

    def _resize(self, frame_HWC: np.ndarray) -> np.ndarray:
        """An (H, W, 3) frame as (3, height, width) uint8."""
        height, width = self.config.size
        if frame_HWC.shape[:2] != (height, width):
            frame_HWC = np.asarray(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BILINEAR))
        return frame_HWC.transpose(2, 0, 1)


def read_metadata(data: h5py.File) -> Metadata:
    """What can be filtered by: the file's metadata attributes, and the sizes that RoboNet's own loader derives."""
    metadata: Metadata = {}
    for name, value in data["metadata"].attrs.items():
        value = value.decode() if isinstance(value, bytes) else value
        metadata[name] = value if isinstance(value, str | int) else str(value)
    metadata["adim"] = data["policy/actions"].shape[1]
    metadata["state_T"], metadata["sdim"] = data["env/state"].shape
    videos = [name for name in data["env"] if name.startswith("cam") and name.endswith("_video")]
    metadata["ncam"] = len(videos)
    if videos:
        video = data["env"][sorted(videos)[0]]
        is_mp4 = "frames" in video
        first = video["frames" if is_mp4 else "frame0"]
        metadata["img_encoding"] = "mp4" if is_mp4 else "jpg"
        metadata["img_T"] = int(first.attrs["T"]) if is_mp4 and "T" in first.attrs else len(video)
        metadata["image_format"] = str(first.attrs.get("image_format", "RGB"))
    return metadata


def _fit(values_TN: np.ndarray, wanted: int, mismatch: Mismatch, kind: str) -> np.ndarray:
    """``values`` with the wanted number of channels, by padding with zeros or cutting as ``mismatch`` allows."""
    found = values_TN.shape[1]
    if found < wanted and mismatch in ("pad", "pad_or_cut"):
        return np.pad(values_TN, ((0, 0), (0, wanted - found)))
    if found > wanted and mismatch in ("cut", "pad_or_cut"):
        return values_TN[:, :wanted]
    if found != wanted:
        raise ValueError(f"{found} {kind} channels where --num-{kind}s is {wanted}; see --{kind}-mismatch")
    return values_TN


def _parse_condition(text: str) -> tuple[str, list[str]]:
    """(name, allowed values) of NAME=VALUE,VALUE."""
    name, _, values = text.partition("=")
    if not (name and values):
        raise ValueError(f"--where {text!r} must have the form NAME=VALUE or NAME=VALUE,VALUE, for example adim=4")
    return name, values.split(",")


def _is_met(text: str, metadata: Metadata) -> bool:
    name, allowed = _parse_condition(text)
    if name not in metadata:
        raise ValueError(f"--where {text}: its metadata have no {name!r}, only {', '.join(sorted(metadata))}")
    return str(metadata[name]) in allowed


def read_hashes(path: Path) -> dict[str, str]:
    """SHA-256 by file name, from lines "HASH  NAME"."""
    if not path.is_file():
        raise FileNotFoundError(f"--hashes {path} does not exist; make it with sha256sum *.hdf5 > FILE")
    hashes = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        digest, _, name = line.strip().partition(" ")
        if not re.fullmatch("[0-9a-fA-F]{64}", digest) or not name.strip():
            raise ValueError(f"--hashes {path}, line {number}: expected a SHA-256 and a file name")
        hashes[Path(name.strip().lstrip("*")).name] = digest.lower()
    return hashes


def read_camera(data: h5py.File, camera: int) -> list[np.ndarray]:
    """The frames of one camera, each (H, W, 3) uint8 RGB."""
    video = data[f"env/cam{camera}_video"]
    if "frames" in video:
        stored = video["frames"]
        frames = decode_video(stored[()].tobytes())
        formats = [stored.attrs.get("image_format", "RGB")]
    else:
        stored_frames = [video[f"frame{number}"] for number in range(len(video))]
        frames = [np.asarray(Image.open(io.BytesIO(item[()].tobytes())).convert("RGB")) for item in stored_frames]
        formats = sorted({item.attrs.get("image_format", "RGB") for item in stored_frames})
    if formats not in (["RGB"], ["BGR"]):
        raise ValueError(f"image_format is {formats}, neither RGB nor BGR")
    return frames if formats == ["RGB"] else [np.ascontiguousarray(frame[:, :, ::-1]) for frame in frames]


def _gripper_commands(data: h5py.File) -> np.ndarray:
    """(T - 1, 1): the gripper's upper bound where the next state lies above the middle of its bounds, else the lower
    one."""
    gripper = data["env/state"][1:, -1:].astype(np.float32)
    low, high = float(data["env/low_bound"][0, -1]), float(data["env/high_bound"][0, -1])
    return np.where(gripper > (low + high) / 2, high, low).astype(np.float32)
