"""What a machine with a GPU reaches: ceilings, kernels, training steps and sampling, each part by itself.

A part is a function of a device that yields readings. ``tools/bench_gpu.py`` runs each in a process of its own with a
time limit, so that none can spoil another. On a CPU the sizes are tiny: that shows that the parts run, no more.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dydiff_dist.benchmarks.turns import spread
from dydiff_dist.diffusion import build_process, sample, timestep_grid
from dydiff_dist.diffusion.replay import Replay
from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.ema import EMA
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.models import ExecutionConfig, InputSizes
from dydiff_dist.models.transformer import VideoTransformerConfig
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.world import read_world
from dydiff_kernels.benchmark.cases import SIZES, BenchmarkCase, all_cases, make_inputs
from dydiff_kernels.benchmark.measure import synchronize


class Reading(NamedTuple):
    """A row of the result."""

    name: str
    value: float
    unit: str


class NetworkSize(NamedTuple):
    """A network and its micro-batch."""

    model: VideoTransformerConfig
    sizes: InputSizes
    batch: int


def _named(size: str, **fields: bool) -> VideoTransformerConfig:
    return VideoTransformerConfig.model_validate({"size": size, "patch_size": 2, **fields})


LATENTS = InputSizes(num_frames=12, num_history_frames=2, num_channels=4, height=32, width=32)
"""Of robot video at 256 x 256, as configs/robonet_xl.json has them."""
TINY = replace(LATENTS, num_frames=3, height=8, width=8)
NETWORKS = {
    "tiny": NetworkSize(VideoTransformerConfig(width=16, depth=2, num_heads=2, patch_size=4), TINY, 2),
    "S": NetworkSize(_named("S"), LATENTS, 32),
    "B": NetworkSize(_named("B"), LATENTS, 16),
    "XL": NetworkSize(
        _named("XL", patch_skip=True),
        replace(LATENTS, num_action_channels=5),
        8,
    ),
}
TINY_SHAPE = (2, 3, 1, 8, 8)


def ceilings(device: torch.device) -> Iterator[Reading]:
    """Copy bandwidth and matrix products, what everything else is held against."""
    on_gpu = device.type == "cuda"
    size, width = (1 << 28, 8192) if on_gpu else (1 << 16, 64)
    x, y = (torch.ones(size, device=device) for _ in range(2))
    seconds = seconds_of(lambda: y.copy_(x), device)
    yield Reading("copy", 2 * x.nbytes / seconds / 1e9, "GB/s")
    a = torch.ones(width, width, device=device, dtype=torch.bfloat16)
    yield Reading("product, bf16", 2 * width**3 / seconds_of(lambda: a @ a, device) / 1e12, "TFLOP/s")


def kernels(device: torch.device) -> Iterator[Reading]:
    """Each op of this project on a data set's size and a large one: time of a call, on the device, and its launches."""
    for case in all_cases().values():
        for size in ("sevir", "large") if device.type == "cuda" else ("tiny",):
            yield from _kernel(case, size, device)


def _kernel(case: BenchmarkCase, size: str, device: torch.device) -> Iterator[Reading]:
    tokens = case.sizes is not SIZES
    shape = ((1, 3, 4, 8) if tokens else TINY_SHAPE) if size == "tiny" else case.sizes[size]
    inputs, parameters = make_inputs(shape, torch.float32, device, 0), case.parameters(shape, torch.float32, device)
    run = case.reusing or case.fresh
    call = partial(run, inputs, parameters, "auto")
    name = f"{case.name}, {size}"
    yield Reading(f"{name}: call", 1e3 * seconds_of(call, device), "ms")
    if device.type == "cuda":
        on_device, launches = kernels_of(call)
        yield Reading(f"{name}: on the device", 1e3 * on_device, "ms")
        yield Reading(f"{name}: launches", launches, "")


def network_step(size: str, compiled: bool, device: torch.device) -> Iterator[Reading]:
    """Forward and backward pass of the network alone."""
    network, inputs, samples = build(size, device, compiled)

    def step() -> None:
        network(inputs["z"], inputs["timesteps"], **conditions(inputs)).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    yield from _rates("network compiled" if compiled else "network", size, seconds_of(step, device, 10), samples)


def trainer_step(size: str, device: torch.device) -> Iterator[Reading]:
    """The same within the engine: gradients in buckets, checks, clipping, optimizer, moving average."""
    world = read_world()
    start_process_group(world, 1.0, 1.0)
    network, inputs, samples = build(size, device, compiled=False)
    training = OptimizationConfig(
        steps=100, global_batch_size=samples, micro_batch_per_gpu=samples, precision="bf16", learning_rate=1e-4
    )
    engine = ENGINES["deepspeed"](network, training, {"zero_optimization": {"stage": 2}}, world)
    average = EMA(engine.partitions, training.ema_decay)

    def step() -> None:
        out = engine(inputs["z"], inputs["timesteps"], **conditions(inputs))
        engine.backward(out.float().square().mean())
        if not engine.gradients_are_finite():
            raise RuntimeError("the gradient is not finite")
        engine.finish()
        average.update(1)

    yield from _rates("trainer", size, seconds_of(step, device, 10), samples)
    torch.distributed.destroy_process_group()


def sampling(size: str, device: torch.device) -> Iterator[Reading]:
    """A window of one sample in 10 steps of DDIM, call by call and as a CUDA graph."""
    network, inputs, _ = build(size, device, compiled=False)
    network.requires_grad_(False)
    process = build_process(prediction="v")
    grid, start = timestep_grid(process.table, 10), inputs["z"][:1].float()
    given = {name: tensor[:1] for name, tensor in conditions(inputs).items()}

    def run(start: Tensor, **conditions: Tensor) -> Tensor:
        def denoise(z: Tensor, timesteps: Tensor) -> Tensor:
            return network(z.to(inputs["z"].dtype), timesteps, **conditions).float()

        return sample(process, denoise, start=start, timesteps=grid)

    yield Reading(f"sampling {size}", 1e3 * seconds_of(lambda: run(start, **given), device, 5), "ms")
    if device.type == "cuda":
        replay = Replay(run)
        replay(start=start, **given)
        expected, found = run(start, **given), replay(start=start, **given)
        yield Reading(f"sampling {size}: largest difference of the graph", float((expected - found).abs().max()), "")
        seconds = seconds_of(lambda: replay(start=start, **given), device, 5)
        yield Reading(f"sampling {size}: graph", 1e3 * seconds, "ms")


def build(size: str, device: torch.device, compiled: bool) -> tuple[nn.Module, dict[str, Tensor], int]:
    """A network in bf16 with random weights throughout, its inputs, and their number of samples."""
    torch.manual_seed(0)
    model, sizes, batch = NETWORKS[size]
    with device:
        network = model.build(sizes, ExecutionConfig(compile_blocks=compiled)).to(torch.bfloat16)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.02)
        frames = torch.randn(batch, sizes.num_frames, sizes.num_channels, sizes.height, sizes.width).bfloat16()
        inputs = {"z": frames, "timesteps": torch.arange(batch), "history": frames[:, : sizes.num_history_frames]}
        if sizes.num_action_channels:
            inputs["actions"] = torch.randn(batch, sizes.num_frames, sizes.num_action_channels)
    return network, inputs, batch


def conditions(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a network is called with beside z and timesteps."""
    return {name: tensor for name, tensor in inputs.items() if name not in ("z", "timesteps")}


def _rates(name: str, size: str, seconds: float, samples: int) -> Iterator[Reading]:
    yield Reading(f"{name} {size}", 1e3 * seconds, "ms")
    yield Reading(f"{name} {size}: samples", samples / seconds, "1/s")


def seconds_of(call: Callable[[], object], device: torch.device, calls: int = 20) -> float:
    """Median of three rounds of calls with a full queue, after two calls to warm up."""
    calls = calls if device.type == "cuda" else 1
    rounds = []
    for number in range(4):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls if number else 2):
            call()
        synchronize(device)
        rounds.append((time.perf_counter() - start) / calls)
    return spread(rounds[1:]).median


def kernels_of(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds on the GPU of one call, and how many kernels it launches."""
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    return sum(event.self_device_time_total for event in events) / 1e6, sum(event.count for event in events)


Part = Callable[[torch.device], Iterator[Reading]]


def parts(device_type: str) -> dict[str, tuple[Part, float]]:
    """What there is to measure by name, with its time limit in seconds."""
    named: dict[str, tuple[Part, float]] = {"ceilings": (ceilings, 30), "kernels": (kernels, 60)}
    for size in ("XL", "S", "B") if device_type == "cuda" else ("tiny",):
        named[f"network-{size}"] = partial(network_step, size, False), 45
        named[f"trainer-{size}"] = partial(trainer_step, size), 60
        named[f"compiled-{size}"] = partial(network_step, size, True), 100
    size = "B" if device_type == "cuda" else "tiny"
    return named | {"sampling": (partial(sampling, size), 45)}
