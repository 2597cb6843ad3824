"""Source ``turbulence``: trajectories of simulated two-dimensional turbulence."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema, Independent
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, ShardTask, Source, register_source, schema_of, shard_tasks
from dydiff_dist.data.turbulence_solver import TurbulenceConfig, simulate
from dydiff_dist.strict_config import StrictConfig


class TurbulenceSourceConfig(StrictConfig):
    """How much turbulence to simulate and how to cut it into samples."""

    train: Annotated[int, Field(ge=1)] = 512
    """Training trajectories."""
    valid: Annotated[int, Field(ge=0)] = 64
    """Validation trajectories, from runs of their own."""
    test: Annotated[int, Field(ge=0)] = 64
    """Test trajectories, from runs of their own."""
    num_frames: Annotated[int, Field(ge=2)] = 15
    """Frames per trajectory."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial states."""
    segments_per_run: Annotated[int, Field(ge=1)] = 4
    """Trajectories cut from each training run; validation and test take one per run, so their cases are independent."""
    gap_frames: Annotated[int, Field(ge=0)] = 15
    """Frames dropped between two trajectories of one run."""
    runs_per_shard: Annotated[int, Field(ge=1)] = 16
    """Runs simulated side by side; their trajectories make one shard."""
    flow: TurbulenceConfig = TurbulenceConfig()
    """The flow itself."""


@register_source("turbulence", TurbulenceSourceConfig, "Two-dimensional turbulence, simulated here: nothing is read.")
class TurbulenceSource(Source[TurbulenceSourceConfig]):
    """Velocity of simulated flows: samples (S, 2, H, W) float32. The runs of a shard are simulated side by side."""

    def plan(self) -> list[ShardTask]:
        """Shards of train, valid and test; an item is (first run, runs, trajectories to keep, first trajectory)."""
        counts = {"train": self.config.train, "valid": self.config.valid, "test": self.config.test}
        return [task for split, count in counts.items() for task in self._plan_split(split, count)]

    def _plan_split(self, split: str, count: int) -> list[ShardTask]:
        segments = self.config.segments_per_run if split == "train" else 1
        per_shard = self.config.runs_per_shard * segments
        sample_bytes = self.config.num_frames * 2 * self.config.flow.resolution**2 * 4 + 2048
        items = []
        for first in range(0, count, per_shard):
            keep = min(per_shard, count - first)
            num_runs = -(-keep // segments)
            items.append(((first // segments, num_runs, segments, keep, first), keep * sample_bytes))
        return shard_tasks(split, items, per_shard=1)

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        """Simulates the runs of the shard; yields segment after segment, run after run."""
        first_run, num_runs, segments, keep, first = task.items[0]
        runs = range(first_run, first_run + num_runs)
        config, number, threads = self.config, 0, torch.get_num_threads()
        torch.set_num_threads(1)  # as other processes have it: the last bit of a transform depends on their number
        try:
            for segment, velocity in enumerate(
                simulate(config.flow, config.seed, task.split, runs, segments, config.num_frames, config.gap_frames)
            ):
                for run, frames in enumerate(velocity.numpy()):
                    if number == keep:
                        return
                    meta = {"run": first_run + run, "segment": segment}
                    yield Sample(f"{task.split}-{first + number:06d}", np.ascontiguousarray(frames), meta=meta)
                    number += 1
        finally:
            torch.set_num_threads(threads)

    def independent(self, split: str) -> Independent | None:
        """Each sample where it is the only one of its run."""
        return "case" if split != "train" or self.config.segments_per_run == 1 else None

    def split_hint(self, split: str) -> str:
        """The option that says how many there are."""
        return f"--{split} is {getattr(self.config, split)}"

    def schema(self, sample: Sample) -> FrameSchema:
        """Velocity in box units; homogeneous, periodic and isotropic up to the grid, hence all augmentations."""
        return schema_of(
            sample,
            channels=("velocity_along_width", "velocity_along_height"),
            units="box side 2*pi, time from the injected power",
            allowed_augmentations=("periodic_shift", "flip", "rotate"),
            vector_channels=(0, 1),
        )
