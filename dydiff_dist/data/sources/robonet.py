"""Source ``robonet``: robot trajectories in RoboNet's HDF5 layout, one file per trajectory.

``env/camN_video`` holds the frames (one mp4 stream, or one jpg per frame), ``env/state`` the robot's states,
``policy/actions`` the T - 1 actions between T frames, and ``metadata`` the robot's name and more as attributes.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from PIL import Image
from pydantic import Field

from dydiff_dist.data.hdf5 import dataset, open_hdf5
from dydiff_dist.data.inputs import SPLITS, find_files, unique_stems
from dydiff_dist.data.manifest import RGB, FrameSchema, Independent
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import LeftOut, ShardTask, Source, register_source, schema_of, split_of, split_tasks
from dydiff_dist.data.tables import read_text
from dydiff_dist.data.video import decode_video, resized
from dydiff_dist.files import file_sha256
from dydiff_dist.strict_config import StrictConfig

Mismatch = Literal["reject", "pad", "cut", "pad_or_cut"]
Metadata = dict[str, str | int]
"""What a trajectory can be filtered by, see ``read_metadata``."""


class RobonetSourceConfig(StrictConfig):
    """Which trajectories to take and in what form."""

    root: str
    """Folder of the .hdf5 files, searched with all folders in it, links included."""
    num_frames: Annotated[int, Field(ge=2)] = 31
    """Frames per sample; a longer trajectory gives several samples, the rest of it is left out; a shorter one is
    rejected."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (64, 64)
    """Height and width of the frames; others are resized (bilinear, with antialiasing when shrinking)."""
    cameras: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Numbers of the cameras. Each gives samples of its own, those of a trajectory counting as one; where it lacks a
    camera, the others are taken."""
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
        """Shards of each split; an item is (file relative to the root, stem of its keys)."""
        found = find_files(Path(self.config.root), (".hdf5", ".h5"))
        test_names, stems = self._test_names(found.files), unique_stems(found.files)
        height, width = self.config.size
        file_bytes = (self.config.num_frames * 3 * height * width + 4096) * len(self.config.cameras)
        by_split: dict[str, list[tuple[tuple[str, str], int]]] = {split: [] for split in SPLITS}
        for file in found.files:
            by_split[self._split(file, test_names)].append(((file, stems[file]), file_bytes))
        if not by_split["train"]:
            raise ValueError(f"no trajectory of {len(found.files)} is left for training; lower the fractions")
        return split_tasks(by_split, self.config.trajectories_per_shard, found.aside)

    def item_files(self, item: Any) -> list[Path]:
        """The trajectory's file, and the list that says whether it is whole."""
        lists = [] if self.config.hashes is None else [Path(self.config.hashes)]
        return [Path(self.config.root) / item[0], *lists]

    def independent(self, split: str) -> Independent:
        """Each trajectory, whatever the camera: keys go on with the stretch and the camera."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """The option that decides."""
        if split == "test" and self.config.test_list is not None:
            return f"--test-list {self.config.test_list} names none of the files"
        return f"--{split}-fraction {getattr(self.config, f'{split}_fraction')} chose no trajectory; give more"

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
        names = {line.strip() for line in read_text(path).splitlines() if line.strip()}
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

    def read_item(self, item: Any) -> Iterator[Sample | LeftOut]:
        """The samples of a trajectory, camera after camera."""
        file, stem = item
        path = Path(self.config.root) / file
        if self._hashes is not None:
            self._check_hash(path, self._hashes)
        with open_hdf5(path) as data:
            metadata = read_metadata(data)
            for text in self.config.where:
                if not _is_met(text, metadata):
                    yield LeftOut(f"not {text}")
                    return
            actions = self._actions(data, str(metadata.get("primitives", "")))
            states = _table(data, "env/state")
            if self.config.num_states is not None:
                states = _fit(states, self.config.num_states, self.config.state_mismatch, "state")
            for camera in self.config.cameras:
                if f"env/cam{camera}_video" not in data:
                    yield LeftOut(f"no camera {camera}")
                    continue
                frames = read_camera(data, camera)
                for number, start, sample in self._stretches(frames, actions, states):
                    sample.meta = {**metadata, "file": file, "camera": camera, "start": start}
                    sample.key = f"{stem}-{number:02d}" + (f"_cam{camera}" if len(self.config.cameras) > 1 else "")
                    yield sample

    def _stretches(
        self, frames: list[np.ndarray], actions: np.ndarray, states: np.ndarray
    ) -> Iterator[tuple[int, int, Sample]]:
        """(number, first frame, sample without a name) of each stretch of ``num_frames`` of what one camera saw."""
        if not len(frames) == len(actions) + 1 == len(states):
            raise ValueError(
                f"{len(frames)} frames, {len(actions)} actions and {len(states)} states do not fit together"
            )
        if len(frames) < self.config.num_frames:
            raise ValueError(f"{len(frames)} frames are fewer than --num-frames {self.config.num_frames}")
        frames_SCHW = np.stack([resized(frame, self.config.size).transpose(2, 0, 1) for frame in frames])
        # The action between frames s - 1 and s stands at frame s.
        actions_SA = np.concatenate([np.zeros_like(actions[:1]), actions])
        for number, start in enumerate(range(0, len(frames) - self.config.num_frames + 1, self.config.num_frames)):
            cut = slice(start, start + self.config.num_frames)
            sample_actions = actions_SA[cut].copy()
            sample_actions[0] = 0
            yield number, start, Sample("", frames_SCHW[cut], sample_actions, states=states[cut])

    def _check_hash(self, path: Path, hashes: dict[str, str]) -> None:
        expected = hashes.get(path.name)
        if expected is None:
            raise ValueError(f"--hashes {self.config.hashes} does not list it")
        found = file_sha256(path)
        if found != expected:
            raise ValueError(f"its SHA-256 is {found[:16]}…, --hashes says {expected[:16]}…; fetch the file again")

    def _actions(self, data: h5py.File, primitives: str) -> np.ndarray:
        """(T - 1, A) float32 with the asked number of channels."""
        actions = _table(data, "policy/actions")
        wanted, found = self.config.num_actions, actions.shape[1]
        if self.config.impute_autograsp and "autograsp" in primitives and found == wanted - 1:
            return np.concatenate([actions, _gripper_commands(data)], axis=1)
        return _fit(actions, wanted, self.config.action_mismatch, "action")


def read_metadata(data: h5py.File) -> Metadata:
    """What can be filtered by: the file's metadata attributes, and the sizes that RoboNet's own loader derives.

    Raises:
        ValueError: it lacks metadata, actions or states, or has them in another form.
    """
    if "metadata" not in data:
        raise ValueError(f"it has no 'metadata', only {', '.join(sorted(data)) or 'nothing'}")
    metadata: Metadata = {}
    for name, value in data["metadata"].attrs.items():
        metadata[name] = value if isinstance(value, str | int) else _text(value)
    metadata["adim"] = _shape(data, "policy/actions")[1]
    metadata["state_T"], metadata["sdim"] = _shape(data, "env/state")
    videos = [name for name in data["env"] if name.startswith("cam") and name.endswith("_video")]
    metadata["ncam"] = len(videos)
    if videos:
        video = _video(data, sorted(videos)[0])
        is_mp4 = "frames" in video
        first = dataset(video, "frames" if is_mp4 else "frame0")
        metadata["img_encoding"] = "mp4" if is_mp4 else "jpg"
        metadata["img_T"] = int(first.attrs["T"]) if is_mp4 and "T" in first.attrs else len(video)
        metadata["image_format"] = _text(first.attrs.get("image_format", "RGB"))
    return metadata


def _text(value: Any) -> str:
    """An attribute as text, whichever way HDF5 holds it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _shape(data: h5py.File, name: str) -> tuple[int, int]:
    """(T, channels) of actions or states."""
    shape = dataset(data, name).shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; (times, channels) is expected")
    return shape


def _table(data: h5py.File, name: str) -> np.ndarray:
    """Actions or states, (T, channels) float32."""
    _shape(data, name)
    return dataset(data, name)[()].astype(np.float32)


def _video(data: h5py.File, name: str) -> h5py.Group:
    """A camera's group."""
    video = data["env"][name]
    if not isinstance(video, h5py.Group):
        raise ValueError(f"env/{name} is an array of shape {video.shape}, not a group of encoded frames")
    return video


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
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        digest, _, name = line.strip().partition(" ")
        if not re.fullmatch("[0-9a-fA-F]{64}", digest) or not name.strip():
            raise ValueError(f"--hashes {path}, line {number}: expected a SHA-256 and a file name")
        hashes[Path(name.strip().lstrip("*")).name] = digest.lower()
    return hashes


def read_camera(data: h5py.File, camera: int) -> list[np.ndarray]:
    """The frames of one camera, each (H, W, 3) uint8 RGB."""
    video = _video(data, f"cam{camera}_video")
    if "frames" in video:
        stored = dataset(video, "frames")
        frames = decode_video(stored[()].tobytes())
        formats = [_text(stored.attrs.get("image_format", "RGB"))]
    else:
        stored_frames = [dataset(video, f"frame{number}") for number in range(len(video))]
        frames = [_decode_picture(item, number) for number, item in enumerate(stored_frames)]
        formats = sorted({_text(item.attrs.get("image_format", "RGB")) for item in stored_frames})
    if formats not in (["RGB"], ["BGR"]):
        raise ValueError(f"image_format is {formats}, neither RGB nor BGR")
    return frames if formats == ["RGB"] else [np.ascontiguousarray(frame[:, :, ::-1]) for frame in frames]


def _decode_picture(stored: h5py.Dataset, number: int) -> np.ndarray:
    """One encoded frame, (H, W, 3)."""
    try:
        return np.asarray(Image.open(io.BytesIO(stored[()].tobytes())).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"frame {number} cannot be decoded: {error}") from None


def _gripper_commands(data: h5py.File) -> np.ndarray:
    """(T - 1, 1): the gripper's upper bound where the next state lies above the middle of its bounds, else the lower
    one."""
    gripper = _table(data, "env/state")[1:, -1:]
    low, high = (float(_table(data, f"env/{name}_bound")[0, -1]) for name in ("low", "high"))
    return np.where(gripper > (low + high) / 2, high, low).astype(np.float32)
