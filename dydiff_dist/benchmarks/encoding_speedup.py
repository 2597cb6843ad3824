"""What pre-encoding saves: a training step on latent shards beside the same step that encodes its frames."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dydiff_dist.autoencoders import AutoencoderConfig
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.run_plan import make_plan

_WARM_UP_STEPS = 1


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a step of one micro-batch: reading, encoding where needed, forward, backward, optimizer."""

    pre_encoded_sec: float
    online_sec: float
    num_samples: int
    """Samples of the micro-batch."""
    num_steps: int
    """Steps of each kind, taken in turn."""

    @property
    def speed_up(self) -> float:
        """Online over pre-encoded."""
        return self.online_sec / self.pre_encoded_sec


def measure_speed_up(
    config: RunConfig, latents: str | Path, frames: str | Path, autoencoder: str | Path, num_steps: int = 5
) -> StepTimes:
    """Times steps of both kinds in turn, in this process alone, with the network and micro-batch of ``config``.

    Args:
        config: the run; where its data and its autoencoder lie is replaced by the following.
        latents: latent shards.
        frames: the shards they were made from.
        autoencoder: the folder of the autoencoder.
        num_steps: steps of each kind.

    Raises:
        ValueError: the configuration doesn't fit the data.
    """
    kinds = [_steps(config, folder, autoencoder) for folder in (latents, frames)]
    times: list[list[float]] = [[], []]
    for step in range(_WARM_UP_STEPS + num_steps):
        for steps, seconds in zip(kinds, times, strict=True):
            elapsed = next(steps)
            if step >= _WARM_UP_STEPS:
                seconds.append(elapsed)
    medians = [statistics.median(seconds) for seconds in times]
    return StepTimes(*medians, config.training.micro_batch_per_gpu, num_steps)


def _steps(config: RunConfig, folder: str | Path, autoencoder: str | Path) -> Iterator[float]:
    """Seconds of one step after the other; everything is read by this process, so that reading is counted."""
    data = config.data.model_copy(
        update={"train": str(folder), "valid": None, "num_workers": 0, "augmentation": type(config.data.augmentation)()}
    )
    section = AutoencoderConfig(path=str(autoencoder))
    task = DiffusionTask(make_plan(config.model_copy(update={"data": data, "autoencoder": section}), read_world()))
    device, micro_batch = task.plan.world.device, config.training.micro_batch_per_gpu
    network = task.build_networks()["model"].to(device, task.plan.network_dtype)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    stream = iter(TrainStream(task.plan.train_shards, data, config.seed, micro_batch, micro_batch))
    for step in range(2**31):
        started = time.perf_counter()
        for part in task.losses({"model": network}, next(stream), step):
            part.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - started
