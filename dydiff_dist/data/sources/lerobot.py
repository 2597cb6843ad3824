"""Source ``lerobot``: robot episodes in LeRobot's layout, v3.0 and v2.1: parquet tables beside mp4 videos.

Their action of frame s is taken at frame s and leads to frame s + 1; in a sample it stands at the frame that it leads
to.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.inputs import SPLIT_FOLDERS, SPLITS
from dydiff_dist.data.manifest import RGB, FrameSchema, Independent
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import (
    BadItem,
    LeftOut,
    ShardTask,
    Source,
    register_source,
    schema_of,
    split_of,
    split_tasks,
)
from dydiff_dist.data.sources.lerobot_files import LerobotInfo, read_episodes, read_info, read_numbers
from dydiff_dist.data.video import frames_at, resized
from dydiff_dist.strict_config import StrictConfig


class LerobotSourceConfig(StrictConfig):
    """Which cameras and numbers to take, and how episodes are cut."""

    root: str
    """Folder of the data set, which holds meta/, data/ and videos/."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras, whole (observation.images.top) or their last part (top). Each gives samples of its own,
    those of an episode counting as one. May be left out where there is only one."""
    action_key: str = "action"
    """Feature that holds the actions; "" for samples without."""
    state_key: str = "observation.state"
    """Feature that holds the robot's states; "" for samples without."""
    num_frames: Annotated[int, Field(ge=2)] = 16
    """Frames of a sample; a longer episode gives several, the rest of it is left out."""
    stride: Annotated[int, Field(ge=1)] = 1
    """Every how many frames one is taken; the actions in between stand side by side at the frame that they lead to."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the frames; others are resized (bilinear, with antialiasing when shrinking). As they are if
    left out."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the episodes for validation, chosen by a hash of their numbers, where info.json has no such split."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the episodes for testing, likewise."""
    normalisation: Literal["symmetric", "standard"] = "symmetric"
    """Network units: -1 to 1, or mean 0 and variance 1 per colour over the training split."""
    episodes_per_shard: Annotated[int, Field(ge=1)] = 32
    """Episodes whose samples make one shard."""


@register_source("lerobot", LerobotSourceConfig, "Robot episodes in LeRobot's layout (v3.0, v2.1): parquet and mp4.")
class LerobotSource(Source[LerobotSourceConfig]):
    """Stretches of episodes with actions and states: samples (S, 3, H, W) uint8 RGB."""

    _info: LerobotInfo | None = None
    _cameras: tuple[str, ...] = ()
    """Whole names; known when the inputs were planned."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (number of the episode, frames, data file, (video file, second) by camera),
        in the order in which the files hold them."""
        if find_spec("pyarrow") is None:
            raise ValueError("LeRobot's parquet files are read by pyarrow; pip install 'dydiff_dist[lerobot]'")
        root = Path(self.config.root)
        self._info = info = read_info(root)
        self._cameras = self._whole_names(info)
        for option, name in (("--action-key", self.config.action_key), ("--state-key", self.config.state_key)):
            if name and name not in info.features:
                raise ValueError(
                    f"{option} {name} is not among the features {', '.join(info.features)}; name one, or '' for none"
                )
        by_split: dict[str, list[tuple[tuple[Any, ...], int]]] = {split: [] for split in SPLITS}
        aside: list[BadItem | LeftOut] = []
        for episode in read_episodes(root, info, self._cameras):
            if isinstance(episode, BadItem):
                aside.append(episode)
                continue
            size = len(self._starts(episode.length)) * self._sample_bytes(info) * len(self._cameras)
            item = (episode.number, episode.length, episode.data_file, episode.videos)
            by_split[self._split(info, episode.number)].append((item, size))
        if not by_split["train"]:
            faults = f"; {aside[0].name}: {aside[0].reason}" if aside else "; lower the fractions"
            raise ValueError(f"{root} has no episode for training{faults}")
        return split_tasks(by_split, self.config.episodes_per_shard, aside)

    def read_item(self, item: Any) -> Iterator[Sample | LeftOut]:
        """The samples of an episode, camera after camera."""
        number, length, data_file, videos = item
        config, root = self.config, Path(self.config.root)
        starts = self._starts(length)
        if not starts:
            yield LeftOut("episodes of fewer frames than --num-frames and --stride span")
            return
        names = [name for name in (config.action_key, config.state_key) if name]
        numbers = read_numbers(root / data_file, number, length, names)
        taken = [start + config.stride * frame for start in starts for frame in range(config.num_frames)]
        for camera, (video, begins) in enumerate(videos):
            times = begins + numbers["timestamp"][taken]
            frames = (self._sized(frame) for frame in frames_at(root / video, times, self._known().fps))
            stretches = zip(*[frames] * config.num_frames, strict=True)
            for window, (start, stretch) in enumerate(zip(starts, stretches, strict=True)):
                cut = slice(start, start + (config.num_frames - 1) * config.stride + 1)
                yield Sample(
                    f"episode_{number:06d}-{window:03d}" + (f"_cam{camera}" if len(videos) > 1 else ""),
                    np.stack(stretch).transpose(0, 3, 1, 2),
                    self._actions(numbers[config.action_key][cut]) if config.action_key else None,
                    {"episode": number, "start": start, "camera": self._cameras[camera]},
                    numbers[config.state_key][cut][:: config.stride] if config.state_key else None,
                )

    def item_name(self, item: Any) -> str:
        """The episode and its files."""
        return f"episode {item[0]} in {', '.join([item[2], *(video for video, _ in item[3])])}"

    def item_files(self, item: Any) -> list[Path]:
        """The episode's table and videos, and the data set's description."""
        return [Path(self.config.root) / name for name in ("meta/info.json", item[2], *(video for video, _ in item[3]))]

    def independent(self, split: str) -> Independent:
        """Each episode, whatever the camera: keys go on with the stretch and the camera."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """What decides."""
        return f"--{split}-fraction {getattr(self.config, f'{split}_fraction', 0)} chose no episode; give more"

    def schema(self, sample: Sample) -> FrameSchema:
        """RGB frames. No augmentation: mirroring would contradict the actions."""
        return schema_of(
            sample,
            channels=RGB,
            units="8-bit colour",
            bounds=((0, 255),) * 3,
            frames_per_sec=self._known().fps / self.config.stride,
        )

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(x - 127.5) / 127.5 per colour, or None for the training split's own mean and standard deviation."""
        return ((127.5,) * 3, (127.5,) * 3) if self.config.normalisation == "symmetric" else None

    def details(self) -> dict[str, Any]:
        """Version and cameras."""
        return {"codebase_version": self._known().version, "cameras": list(self._cameras)}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """Version, cameras, and the number of episodes of each split."""
        counts = {split: sum(len(task.items) for task in tasks if task.split == split) for split in SPLITS}
        episodes = ", ".join(f"{split}: {count} episodes" for split, count in counts.items())
        return [
            f"{self._known().version}, {', '.join(self._cameras)} at {self._known().fps:g} frames a second; {episodes}"
        ]

    def _known(self) -> LerobotInfo:
        assert self._info is not None, "plan comes first"
        return self._info

    def _whole_names(self, info: LerobotInfo) -> tuple[str, ...]:
        wanted, there = self.config.cameras, tuple(info.cameras)
        if not wanted and len(there) == 1:
            return there
        names = []
        for name in wanted or ("",):
            fitting = [whole for whole in there if name and name in (whole, whole.rpartition(".")[2])]
            if len(fitting) != 1:
                has = f"has {', '.join(there)}" if there else "stores none as colour videos (pictures are not read)"
                raise ValueError(f"--cameras {name or 'is left out, which'} names no one camera: the data set {has}")
            names += fitting
        return tuple(names)

    def _split(self, info: LerobotInfo, number: int) -> str:
        """As info.json has it, where it has more than training; else by a hash."""
        named = {SPLIT_FOLDERS.get(name.lower(), ""): span for name, span in info.splits.items()}
        if len(named) > 1 and "" not in named:
            return next((split for split, span in named.items() if number in span), "train")
        return split_of(f"episode {number}", self.config.valid_fraction, self.config.test_fraction)

    def _starts(self, length: int) -> range:
        span = (self.config.num_frames - 1) * self.config.stride + 1
        return range(0, length - span + 1, self.config.num_frames * self.config.stride)

    def _sized(self, frame_HWC: np.ndarray) -> np.ndarray:
        return frame_HWC if self.config.size is None else resized(frame_HWC, self.config.size)

    def _actions(self, actions_TA: np.ndarray) -> np.ndarray:
        """(S, stride · A): at each frame those taken since the frame before it; zeros at frame 0."""
        led = actions_TA[:-1].reshape(self.config.num_frames - 1, -1)
        return np.concatenate([np.zeros_like(led[:1]), led])

    def _sample_bytes(self, info: LerobotInfo) -> int:
        values = np.prod((3, *self.config.size) if self.config.size else info.cameras[self._cameras[0]])
        return self.config.num_frames * int(values) + 6144
