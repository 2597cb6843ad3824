"""A tiny source, so that tests of shards and streams need no simulation."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, ShardTask, Source
from dydiff_dist.strict_config import StrictConfig


class NumberedSourceConfig(StrictConfig):
    """Samples per shard, and what they hold."""

    counts: tuple[int, ...] = (5, 3, 4)
    """Samples of each shard."""
    num_frames: Annotated[int, Field(ge=1)] = 5
    """Frames per sample."""
    num_actions: int = 0
    """Action channels."""
    augmentations: tuple[str, ...] = ()
    """What the manifest allows."""


class NumberedSource(Source[NumberedSourceConfig]):
    """Sample n holds n in pixel (0, 0) of frame 0 and s in pixel (0, 1) of frame s; the rest is noise."""

    name = "numbered"

    def plan(self) -> list[ShardTask]:
        firsts = np.concatenate([[0], np.cumsum(self.config.counts)])
        return [
            ShardTask("train", f"train-{shard:06d}.tar", (int(firsts[shard]), count), count * 4096)
            for shard, count in enumerate(self.config.counts)
        ]

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        first, count = task.items
        for number in range(first, first + count):
            yield numbered_sample(number, self.config.num_frames, self.config.num_actions)

    def schema(self, sample: Sample) -> FrameSchema:
        return FrameSchema(
            num_frames=sample.frames.shape[0],
            shape=sample.frames.shape[1:],
            dtype="float32",
            num_actions=self.config.num_actions,
            allowed_augmentations=self.config.augmentations,
            vector_channels=(0, 1),
        )


def numbered_sample(number: int, num_frames: int, num_actions: int = 0) -> Sample:
    """The sample that ``NumberedSource`` stores under ``number``."""
    rng = np.random.default_rng(number)
    frames = rng.standard_normal((num_frames, 2, 6, 8)).astype(np.float32)
    frames[:, :, 0, 0] = number
    frames[:, :, 0, 1] = np.arange(num_frames)[:, None]
    actions = rng.standard_normal((num_frames, num_actions)).astype(np.float32) if num_actions else None
    return Sample(f"sample-{number:04d}", frames, actions, {"number": number})
