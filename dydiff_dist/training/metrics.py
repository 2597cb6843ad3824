"""What a logging step measures: speed against the hardware's; waiting, damaged samples and memory of every rank.

FLOP: floating-point operation, a multiplication and an addition being two. MFU: model FLOP/s over the hardware's peak.
"""

import time
from dataclasses import dataclass, field

import psutil
import torch

from dydiff_dist.hardware import recognise_gpu
from dydiff_dist.ranks.collectives import gather_objects
from dydiff_dist.ranks.world import World

_GIB = 2**30
_MATMUL_SIZE, _MATMUL_SEC = 1024, 0.3


@dataclass(frozen=True, kw_only=True)
class SampleCost:
    """What one sample of training costs the network, by formula."""

    flops: float
    """Forward and backward."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one rank's device can do at best."""

    flops_per_sec: float
    source: str
    """Where the number is from."""


def find_peak(world: World, precision: str) -> Peak | None:
    """The device's peak: a GPU's from the table, None for one that isn't there. A CPU's is measured, in under a second:
    it is what this rank's threads reach in a large matrix product while the other ranks measure too."""
    if world.device.type == "cuda":
        name = torch.cuda.get_device_name(world.device)
        gpu = recognise_gpu(name)
        return None if gpu is None else Peak(flops_per_sec=gpu.peak_flops(precision), source=f"{name}, data sheet")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Peak(
        flops_per_sec=_measure_matmul(dtype),
        source=f"measured: {_MATMUL_SIZE}x{_MATMUL_SIZE} matrix products, {str(dtype).removeprefix('torch.')}, "
        f"threads: {torch.get_num_threads()}",
    )


class Meter:
    """Speed since the last `read`, and this rank's waiting, damaged samples and memory among all ranks'.

    Args:
        samples_per_step: over all ranks.
        cost: of one sample; None where no formula is known.
        peak: of one rank; None where it isn't known.
    """

    def __init__(self, world: World, samples_per_step: int, cost: SampleCost | None, peak: Peak | None):
        self.world, self.samples_per_step, self.cost, self.peak = world, samples_per_step, cost, peak
        self.restart()

    def restart(self) -> None:
        """Forgets the time so far, e.g. that of a validation."""
        self._start, self._steps, self._wait_sec = time.perf_counter(), 0, 0.0

    def add(self, wait_sec: float) -> None:
        """Counts a step, of which ``wait_sec`` were spent waiting for data."""
        self._steps += 1
        self._wait_sec += wait_sec

    def read(self, damaged_fraction: float = 0.0) -> "Reading":
        """The measurements, the same on every rank; starts anew. Collective.

        Args:
            damaged_fraction: of the samples that this rank has read since the run started.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        samples_per_sec = self._steps * self.samples_per_step / elapsed
        mine = (self._wait_sec / elapsed, damaged_fraction, resident_bytes(), device_peak_bytes(self.world))
        wait, damaged, resident, device = torch.tensor(gather_objects(mine), dtype=torch.float64).unbind(1)
        self.restart()
        scalars = {
            "speed/samples_per_sec": samples_per_sec,
            "speed/data_wait_fraction": float(wait.max()),
            "data/damaged_fraction": float(damaged.max()),
            "memory/resident_gib": float(resident.max()) / _GIB,
        }
        line = f"{samples_per_sec:.1f} samples/s"
        if self.cost is not None:
            scalars["speed/tokens_per_sec"] = samples_per_sec * self.cost.tokens
            line += f", {_short(samples_per_sec * self.cost.tokens)} tokens/s"
        if self.cost is not None and self.peak is not None:
            peak = self.peak.flops_per_sec * self.world.world_size
            scalars["speed/mfu"] = samples_per_sec * self.cost.flops / peak
            line += f", MFU {scalars['speed/mfu']:.1%}"
        line += f", waiting for data {scalars['speed/data_wait_fraction']:.0%}"
        if self.world.world_size > 1:
            scalars["speed/data_wait_rank"] = float(wait.argmax())
            line += f" (rank {int(wait.argmax())})"
        if damaged.max() > 0:
            line += f", damaged samples {float(damaged.max()):.2%}"
            if self.world.world_size > 1:
                scalars["data/damaged_rank"] = float(damaged.argmax())
                line += f" (rank {int(damaged.argmax())})"
        line += f", memory {scalars['memory/resident_gib']:.2f} GiB"
        if self.world.device.type == "cuda":
            scalars["memory/device_peak_gib"] = float(device.max()) / _GIB
            line += f", device {scalars['memory/device_peak_gib']:.2f} GiB"
        return Reading(line=line, scalars=scalars)


@dataclass(frozen=True)
class Reading:
    """What a meter read: as text for the log line, and as scalars for TensorBoard."""

    line: str
    scalars: dict[str, float] = field(default_factory=dict)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return psutil.Process().memory_info().rss


def device_peak_bytes(world: World) -> int:
    """Most device memory in tensors since the last call; 0 on a CPU."""
    if world.device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(world.device)
    torch.cuda.reset_peak_memory_stats(world.device)
    return peak


def _measure_matmul(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some large matrix products."""
    a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, dtype=dtype)  # draws nothing from the run's random numbers
    best, deadline = float("inf"), time.perf_counter() + _MATMUL_SEC
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / best


def _short(number: float) -> str:
    """Three digits or so: 812, 4.1k, 2.3M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
