"""Shards of random frames to be encoded."""

from typing import Literal

import numpy as np

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import ShardTask, Source
from dydiff_dist.strict_config import StrictConfig


class FrameSourceConfig(StrictConfig):
    """How many shards of what."""

    train: tuple[int, ...] = (3, 5, 2)
    """Samples of each training shard."""
    test: tuple[int, ...] = (2,)
    """Samples of each test shard."""
    shape: tuple[int, int, int, int] = (6, 2, 16, 16)
    """(S, C, H, W)."""
    dtype: Literal["float32", "uint8"] = "float32"
    num_actions: int = 0
    num_states: int = 0
    augmentations: tuple[str, ...] = ("periodic_shift", "flip")


class FrameSource(Source[FrameSourceConfig]):
    """Sample n of a split holds noise seeded by n."""

    name = "frames"

    def plan(self):
        tasks = []
        for split, counts in (("train", self.config.train), ("test", self.config.test)):
            firsts = np.concatenate([[0], np.cumsum(counts)])
            tasks += [
                ShardTask(split, f"{split}-{shard:06d}.tar", (int(firsts[shard]), count), 1)
                for shard, count in enumerate(counts)
            ]
        return tasks

    def read(self, task):
        first, count = task.items
        for number in range(first, first + count):
            rng = np.random.default_rng([number, task.split == "test"])
            frames = rng.standard_normal(self.config.shape).astype(np.float32)
            if self.config.dtype == "uint8":
                frames = rng.integers(0, 256, self.config.shape, dtype=np.uint8)
            actions, states = (
                rng.standard_normal((len(frames), width)).astype(np.float32) if width else None
                for width in (self.config.num_actions, self.config.num_states)
            )
            yield Sample(f"{task.split}-{number:03d}", frames, actions, {"number": number}, states)

    def schema(self, sample):
        return FrameSchema(
            num_frames=sample.frames.shape[0],
            shape=sample.frames.shape[1:],
            dtype=self.config.dtype,
            num_actions=self.config.num_actions,
            allowed_augmentations=self.config.augmentations,
            vector_channels=(0, 1) if sample.frames.shape[1] == 2 else None,
        )
