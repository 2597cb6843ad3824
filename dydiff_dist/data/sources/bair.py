"""Source ``bair``: BAIR robot pushing (softmotion30_44k), TFRecord files read without TensorFlow.

A record is one trajectory: for t = 0..29 the frames ``t/image_main/encoded`` and ``t/image_aux1/encoded`` (64x64x3 raw
bytes), ``t/action`` (4) and ``t/endeffector_pos`` (3). The action of time t leads to frame t + 1.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.inputs import SPLITS, find_files, unique_stems
from dydiff_dist.data.manifest import RGB, FrameSchema, Independent
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import (
    BadItem,
    ShardTask,
    Source,
    reading,
    register_source,
    schema_of,
    split_of,
    split_tasks,
)
from dydiff_dist.data.tfrecord import FeatureValue, Record, iterate_records, read_example
from dydiff_dist.strict_config import StrictConfig

SIDE = 64
NUM_ACTIONS = 4


class BairSourceConfig(StrictConfig):
    """Which camera to take and how to split."""

    root: str
    """Folder that holds train/ and test/ with the .tfrecords files (softmotion30_44k)."""
    camera: Literal["main", "aux1"] = "main"
    """Which of the two cameras to convert."""
    num_frames: Annotated[int, Field(ge=2, le=30)] = 30
    """Frames of a sample, from the start of the trajectory."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the training trajectories for validation, chosen by a hash of file name and record number."""
    normalisation: Literal["symmetric", "standard"] = "symmetric"
    """Network units: -1 to 1, or mean 0 and variance 1 per colour over the training split."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 256
    """Trajectories of one shard."""


@register_source("bair", BairSourceConfig, "BAIR robot pushing: TFRecord files, read without TensorFlow.")
class BairSource(Source[BairSourceConfig]):
    """Trajectories of one camera with actions and states: samples (S, 3, 64, 64) uint8 RGB."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (file relative to the root, record number, first byte, bytes)."""
        root = Path(self.config.root)
        found = find_files(root, (".tfrecords", ".tfrecord"))
        folders = found.by_split()
        if folders is None:
            raise FileNotFoundError(f"{root} has no folder train/ with .tfrecords files; give another --root")
        stems = unique_stems(found.files)
        by_split: dict[str, list[tuple[tuple, int]]] = {split: [] for split in SPLITS}
        sample_bytes = self.config.num_frames * 3 * SIDE**2 + 6144
        for folder, names in folders.items():
            for name in names:
                records = list(reading(name, iterate_records(root / name)))
                if not records:
                    found.aside.append(BadItem(name, "it holds no record", is_whole_input=True))
                for number, record in enumerate(records):
                    if isinstance(record, BadItem):
                        found.aside.append(record)
                        continue
                    split = split_of(f"{name}/{number}", self.config.valid_fraction) if folder == "train" else folder
                    item = (name, number, record.offset, record.size, stems[name])
                    by_split[split].append((item, sample_bytes))
        if not by_split["train"]:
            raise ValueError(f"{root} has no trajectory for training{found.first_fault()}")
        return split_tasks(by_split, self.config.trajectories_per_shard, found.aside)

    def read_item(self, item: Any) -> Iterator[Sample]:
        """A trajectory."""
        name, number, offset, size, stem = item
        example = read_example(Path(self.config.root) / name, Record(offset, size))
        yield self._sample(example, name, number, stem)

    def item_name(self, item: Any) -> str:
        """File and record."""
        return f"{item[0]}, record {item[1]}"

    def item_files(self, item: Any) -> list[Path]:
        """The record's file."""
        return [Path(self.config.root) / item[0]]

    def independent(self, split: str) -> Independent:
        """Each trajectory: the robot's arm begins each anew."""
        return "case"

    def split_hint(self, split: str) -> str:
        """What decides the validation split; training and test are folders."""
        if split == "valid":
            return f"--valid-fraction {self.config.valid_fraction} chose no trajectory; give more"
        return f"{Path(self.config.root) / split} holds no record that can be found"

    def schema(self, sample: Sample) -> FrameSchema:
        """RGB frames with actions, so no augmentation."""
        return schema_of(sample, channels=RGB, units="8-bit colour", bounds=((0, 255),) * 3)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(x - 127.5) / 127.5 per colour, or None for the training split's own mean and standard deviation."""
        return ((127.5,) * 3, (127.5,) * 3) if self.config.normalisation == "symmetric" else None

    def _sample(self, example: dict[str, FeatureValue], name: str, number: int, stem: str) -> Sample:
        times = range(self.config.num_frames)
        frames = [np.frombuffer(example[f"{t}/image_{self.config.camera}/encoded"][0], np.uint8) for t in times]
        sizes = {len(frame) for frame in frames} - {SIDE * SIDE * 3}
        if sizes:
            raise ValueError(f"a frame has {min(sizes)} bytes where {SIDE}x{SIDE}x3 are expected")
        frames_SHWC = np.stack(frames).reshape(-1, SIDE, SIDE, 3)
        actions = np.zeros((self.config.num_frames, NUM_ACTIONS), np.float32)
        for t in times[1:]:
            actions[t] = example[f"{t - 1}/action"]
        states = np.stack([np.asarray(example[f"{t}/endeffector_pos"], np.float32) for t in times])
        return Sample(
            f"{stem}-{number:04d}", frames_SHWC.transpose(0, 3, 1, 2), actions, {"file": name, "record": number}, states
        )
