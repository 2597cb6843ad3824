"""The planner's memory against processes that train: what a step adds to a process, within a tenth."""

import json
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from run_commands import environment

from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.engine.deepspeed.footprint import state_bytes
from dydiff_dist.forecasting.frame_space import input_sizes
from dydiff_dist.planning.launches import trace_network
from dydiff_dist.planning.memory import estimate_memory, footprint_of
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config

WORKER = Path(__file__).with_name("memory_worker.py")
MIB = 2**20
STAGE = 4
"""Where the ZeRO stage stands in a case."""
CASES = {
    # width, depth, micro-batch, accumulation, ZeRO stage, recomputed share of the blocks; from 60 to 500 MiB
    "activations": (64, 8, 24, 1, 2, 0.0),
    "recomputed": (64, 8, 48, 1, 2, 1.0),
    "half-recomputed": (128, 6, 12, 1, 1, 0.5),
    "weights": (384, 4, 1, 1, 2, 0.0),
    "accumulated": (256, 4, 4, 2, 2, 0.0),
    "stage-0": (256, 4, 4, 1, 0, 0.0),
    "stage-3": (256, 4, 4, 1, 3, 0.0),
}
SHARDED = {"two-ranks-stage-2": (384, 4, 1, 1, 2, 0.0), "two-ranks-stage-3": (384, 4, 1, 1, 3, 0.0)}


def overrides(case: tuple, world_size: int, folder: Path) -> list[str]:
    width, depth, micro_batch, accumulation, stage, recomputed = case
    return [
        f"model.width={width}",
        f"model.depth={depth}",
        "model.num_heads=4",
        f"training.micro_batch_per_gpu={micro_batch}",
        f"training.global_batch_size={micro_batch * accumulation * world_size}",
        f"deepspeed.zero_optimization.stage={stage}",
        f"execution.checkpoint_fraction={recomputed}",
        "kernels.backend=reference",  # inside the network as on GPUs, which the estimate is for
        "training.steps=1000",
        "training.checkpoint_every_steps=1000",
        "training.validate_every_steps=0",
        f"output_dir={folder}",
    ]


def sizes_of(config):
    """Of a sample, from the run's shards."""
    return input_sizes(config.data, ShardSet.open(config.data.train).schema.shape, 0)


def estimate(config, world_size: int):
    """The estimate for processes on a CPU."""
    sizes, micro_batch = sizes_of(config), config.training.micro_batch_per_gpu
    return estimate_memory(
        footprint_of(config, world_size, on_gpu=False),
        config.model.parameter_sizes(sizes),
        activation_bytes=micro_batch * trace_network(config, sizes).peak_bytes,
        batch_elements=micro_batch * sizes.num_elements,
    )


def measure(cases: dict[str, tuple], config_path: Path, folder: Path, world_size: int) -> dict[str, int]:
    """Peak bytes of each case's training process, without those of a run that needs next to nothing: what such a
    process takes is code, loaded when a ZeRO stage is first used."""
    nothing = {f"nothing-{stage}": (16, 1, 1, 1, stage, 0.0) for stage in {case[STAGE] for case in cases.values()}}
    tasks = [
        {"name": name, "config": str(config_path), "overrides": overrides(case, world_size, folder / name)}
        for name, case in {**nothing, **cases}.items()
    ]
    port = str(20_000 + secrets.randbelow(10_000))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(world_size), "--master_port", port]
    command = [sys.executable, *(launcher if world_size > 1 else []), str(WORKER), json.dumps(tasks)]
    # freed memory goes back to the system at once, as a measure of what is in use
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env={**environment(), **settings}, capture_output=True, text=True, timeout=1200)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(tasks), done.stdout + done.stderr
    measured = {line["name"]: line["bytes"] for line in lines}
    return {name: measured[name] - measured[f"nothing-{case[STAGE]}"] for name, case in cases.items()}


@pytest.mark.long
@pytest.mark.parametrize(("cases", "world_size"), [(CASES, 1), pytest.param(SHARDED, 2, marks=pytest.mark.distributed)])
def test_estimates_are_within_a_tenth_of_what_processes_need(cases, world_size, tiny_config, tmp_path):
    measured = measure(cases, tiny_config, tmp_path, world_size)
    report, wrong = [], []
    for name, case in cases.items():
        config = load_config(tiny_config, RunConfig, overrides(case, world_size, tmp_path / name))
        expected = estimate(config, world_size)
        ratio = expected.peak / measured[name]
        parts = ", ".join(f"{part} {size / MIB:.0f}" for part, size in expected.parts.items())
        report.append(
            f"{name}: {expected.peak / MIB:.0f} MiB estimated ({parts}; {expected.phase}), "
            f"{measured[name] / MIB:.0f} MiB measured, ratio {ratio:.3f}"
        )
        wrong += [name] if not 0.9 <= ratio <= 1.1 else []
    print("\n".join(report))
    assert not wrong, "\n".join(report)


def test_state_follows_the_zero_stages():
    sizes = [sum(state_bytes(1000, 4, stage, 2).values()) for stage in (1, 2, 3)]
    # per parameter: weights 2, gradients 2, master + moments 12, EMA 4 bytes; each stage shards one more part by 4
    assert sizes == [2000 + 2000 + 4000, 2000 + 500 + 4000, 500 + 500 + 4000]


def test_recomputation_and_depth_change_the_activations_as_they_must(tiny_config):
    def peak(*changes: str) -> float:
        config = load_config(tiny_config, RunConfig, ["model.width=64", *changes])
        return trace_network(config, sizes_of(config)).peak_bytes

    shallow, deep, deeper = (peak(f"model.depth={depth}") for depth in (4, 8, 24))
    # blocks are alike: three points of one straight line
    assert deeper - deep == pytest.approx(4 * (deep - shallow))
    recomputed = peak("model.depth=24", "execution.checkpoint_fraction=1.0")
    half = peak("model.depth=24", "execution.checkpoint_fraction=0.5")
    assert recomputed < 0.35 * deeper and recomputed < half < deeper


def test_offloaded_state_leaves_the_gpu(tiny_config):
    config = load_config(tiny_config, RunConfig, ["training.precision=bf16"])
    kept = footprint_of(config, 2)
    arguments = {"parameter_sizes": [10**6] * 1000, "activation_bytes": 1e9, "batch_elements": 10**6}
    offloaded = estimate_memory(replace(kept, optimizer_on_host=True), **arguments)
    assert offloaded.parts["optimizer"] == offloaded.parts["EMA"] == 0
    assert offloaded.host_parts == {"optimizer": 12 * 10**9 // 2, "EMA": 4 * 10**9 // 2}
    assert offloaded.peak < estimate_memory(kept, **arguments).peak
