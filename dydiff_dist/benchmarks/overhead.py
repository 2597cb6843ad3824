"""What the Dynamics operator costs in training: steps of both processes in turn, in one process on the same batch."""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import nn

from dydiff_dist.data.stream import TrainStream
from dydiff_dist.engine.deepspeed.optimizer import build_optimizer
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.run_plan import make_plan

STANDARD, DYDIFF = "standard", "dydiff"
_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Overhead:
    """Step times and memory of both."""

    step_ms: dict[str, float]
    """Median milliseconds of one forward and backward pass and optimizer step; on a CPU, of CPU time."""
    ratio: float
    """Median over rounds of dydiff's time over standard's, taken side by side."""
    ratio_20_80: tuple[float, float]
    """Of the same ratios, the 20th and 80th percentile."""
    memory_mib: dict[str, float]
    """Peak: allocated on a GPU, resident of a fresh process that does nothing else on a CPU."""


def measure_overhead(config: RunConfig, world: World, rounds: int = 30) -> Overhead:
    """Trains ``rounds`` steps of both, in alternating order.

    Args:
        config: a run of Dynamical Diffusion; its twin has γ̄ = 1 and is alike otherwise.
        world: of this one process.
        rounds: steps of each.

    Raises:
        ValueError: the run is standard diffusion itself.
    """
    if config.diffusion.build(backend="reference").is_standard:
        raise ValueError("the run has gamma_bar = 1, which is standard diffusion; give one with gamma_ratio above 0")
    steps = {name: _steps(twin, world) for name, twin in twins(config).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + _WARM_UP_ROUNDS):
        order = list(steps) if number % 2 else list(reversed(steps))
        for name in order:
            taken = next(steps[name])
            if number >= _WARM_UP_ROUNDS:
                seconds[name].append(taken)
    ratios = [one / other for one, other in zip(seconds[DYDIFF], seconds[STANDARD], strict=True)]
    fifths = quantiles(ratios, n=5)
    return Overhead(
        step_ms={name: 1e3 * median(values) for name, values in seconds.items()},
        ratio=median(ratios),
        ratio_20_80=(fifths[0], fifths[-1]),
        memory_mib={name: _peak_memory_mib(twin, world) for name, twin in twins(config).items()},
    )


def twins(config: RunConfig) -> dict[str, RunConfig]:
    """The run and its twin without dynamics."""
    without = config.diffusion.model_copy(update={"gamma_schedule": "none"})
    return {STANDARD: config.model_copy(update={"diffusion": without}), DYDIFF: config}


def _steps(config: RunConfig, world: World) -> Iterator[float]:
    """Does one training step after another on the run's first batch; yields its seconds."""
    plan = make_plan(config, world)
    task = DiffusionTask(plan)
    torch.manual_seed(config.seed)
    network = task.build_networks()["model"].to(world.device)
    optimizer = build_optimizer(network, config.training)
    size = config.training.micro_batch_per_gpu
    stream = TrainStream(
        plan.train_shards, config.data, seed=config.seed, global_batch_size=size, micro_batch_size=size
    )
    batch = next(iter(stream))
    number = 0
    while True:
        start = _now(world)
        _train_step(task, network, optimizer, batch, number)
        yield _now(world) - start
        number += 1


def _train_step(task: DiffusionTask, network: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, step: int):
    optimizer.zero_grad(set_to_none=True)
    for micro in task.losses({"model": network}, batch, step):
        micro.loss.backward()
    optimizer.step()


def _now(world: World) -> float:
    """Seconds: of the clock on a GPU, of this process's own CPU time without one, which other load hardly changes."""
    if world.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory_mib(config: RunConfig, world: World) -> float:
    """Of a few steps in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_few_steps_memory_mib, (config.model_dump_json(), world))


def _few_steps_memory_mib(config_json: str, world: World) -> float:
    torch.set_num_threads(1)
    steps = _steps(RunConfig.model_validate_json(config_json), world)
    for _ in range(_WARM_UP_ROUNDS):
        next(steps)
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
