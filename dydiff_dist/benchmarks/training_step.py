"""What a training step costs: with the dynamics and without, on stored latents and encoding its frames."""

import multiprocessing
import resource
from collections.abc import Iterator
from itertools import count, repeat
from pathlib import Path

import torch

from dydiff_dist.autoencoders import AutoencoderConfig
from dydiff_dist.benchmarks.turns import Seconds, in_turn, timed
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.engine.optimizer import torch_adamw
from dydiff_dist.ranks.world import World, read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.run_plan import make_plan

STANDARD, DYDIFF = "standard", "dydiff"
PRE_ENCODED, ONLINE = "pre-encoded", "online"
_WARM_UP_STEPS = 3


def measure_overhead(config: RunConfig, world: World, rounds: int = 30) -> dict[str, list[float]]:
    """Trains ``rounds`` steps with the dynamics (``DYDIFF``) and without (``STANDARD``) in turn, on the first batch.

    Args:
        config: a run of Dynamical Diffusion; its twin has γ̄ = 1 and is alike otherwise.
        world: of this one process.
        rounds: steps of each.

    Returns:
        name -> seconds of one forward and backward pass and optimizer step, by round; on a CPU, of CPU time, which
        other load hardly changes.

    Raises:
        ValueError: the run is standard diffusion itself.
    """
    if not config.diffusion.build_without_data().table.mixes:
        raise ValueError("the run has gamma_bar = 1, which is standard diffusion; give one with gamma_ratio above 0")
    steps = {name: training_steps(twin, world, same_batch=True) for name, twin in twins(config).items()}
    taken = in_turn({name: each.__next__ for name, each in steps.items()}, rounds, _WARM_UP_STEPS)
    on_gpu = world.device.type == "cuda"
    return {name: [each.wall if on_gpu else each.cpu for each in rounds] for name, rounds in taken.items()}


def twins(config: RunConfig) -> dict[str, RunConfig]:
    """The run and its twin without dynamics."""
    without = config.diffusion.model_copy(update={"gamma_schedule": "none"})
    return {STANDARD: config.model_copy(update={"diffusion": without}), DYDIFF: config}


def measure_speed_up(
    config: RunConfig, latents: str | Path, frames: str | Path, autoencoder: str | Path, num_steps: int = 5
) -> dict[str, list[float]]:
    """Times steps on latent shards (``PRE_ENCODED``) and steps that encode their frames (``ONLINE``), in turn.

    Network and micro-batch are those of ``config``. This process alone reads, so that reading is counted.

    Args:
        config: the run; where its data and its autoencoder lie is replaced by the following.
        latents: latent shards.
        frames: the shards they were made from.
        autoencoder: the folder of the autoencoder.
        num_steps: steps of each kind.

    Returns:
        name -> seconds by step, each of one micro-batch: reading, encoding where needed, forward, backward, optimizer.

    Raises:
        ValueError: the configuration doesn't fit the data.
    """
    kinds = {}
    for name, folder in ((PRE_ENCODED, latents), (ONLINE, frames)):
        changed = {"train": str(folder), "valid": None, "num_workers": 0}
        data = config.data.model_copy(update={**changed, "augmentation": type(config.data.augmentation)()})
        update = {"data": data, "autoencoder": AutoencoderConfig(path=str(autoencoder))}
        kinds[name] = training_steps(config.model_copy(update=update), read_world()).__next__
    taken = in_turn(kinds, num_steps, warm_up_rounds=1)
    return {name: [each.wall for each in steps] for name, steps in taken.items()}


def training_steps(config: RunConfig, world: World, *, same_batch: bool = False) -> Iterator[Seconds]:
    """Does one training step of a micro-batch after another and yields what it took, with reading it.

    Args:
        config: the run.
        world: of this one process.
        same_batch: read the first batch once, before the first step.
    """
    plan = make_plan(config, world)
    task = DiffusionTask(plan)
    torch.manual_seed(config.seed)
    network = task.build_networks()["model"].to(world.device, plan.network_dtype)
    optimizer = torch_adamw(network, config.training)
    size = config.training.micro_batch_per_gpu
    batches = iter(TrainStream(plan.train_shards, config.data, config.seed, size, size))
    if same_batch:
        batches = repeat(next(batches))

    numbers = count()

    def train() -> None:
        for part in task.losses({"model": network}, next(batches), next(numbers)):
            part.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    while True:
        yield timed(train, world.device)


def peak_memory_mib(config: RunConfig, world: World) -> float:
    """Of a few steps in a fresh process that does nothing else: allocated on a GPU, resident on a CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_few_steps_memory_mib, (config.model_dump_json(), world))


def _few_steps_memory_mib(config_json: str, world: World) -> float:
    torch.set_num_threads(1)
    steps = training_steps(RunConfig.model_validate_json(config_json), world, same_batch=True)
    for _ in range(_WARM_UP_STEPS):
        next(steps)
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
