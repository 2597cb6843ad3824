"""Measurement: times of calls in turn, copy bandwidth, peak memory, and what machine this is."""

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

ROTATION_BYTES = 192 << 20
"""Inputs rotate through at least this much memory, several times any cache, so that memory is what is measured."""
MAX_SETS = 16


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median and the 20th and 80th percentiles."""

    median: float
    low: float
    high: float


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock reading means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_sets(bytes_per_set: int) -> int:
    """How many sets of inputs to rotate through."""
    return min(MAX_SETS, max(2, -(-ROTATION_BYTES // max(1, bytes_per_set))))


def time_in_turn(
    calls: dict[str, Callable[[int], object]],
    device: torch.device,
    rounds: int,
    budget_sec: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each call once a round, one after the other, so that drift of the machine meets all alike.

    A call gets the round's number, to choose its inputs by. Two rounds go before as warm-up. It ends after ``rounds``
    rounds, or after at least 5 when ``budget_sec`` is spent. ``clock`` gives seconds: on a machine with other work,
    `time.process_time` with one thread tells what a call costs.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = float("inf")
    for round_number in range(-2, rounds):
        if round_number == 0:
            deadline = time.perf_counter() + budget_sec
        if round_number >= 5 and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            synchronize(device)
            start = clock()
            call(round_number)
            synchronize(device)
            if round_number >= 0:
                samples[name].append((clock() - start) * 1e3)
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Timing:
    quintiles = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(statistics.median(values), quintiles[0], quintiles[3])


def peak_bytes(call: Callable[[int], object], device: torch.device) -> int | None:
    """Memory a call needs beyond what is there before it; None where the system does not tell (not Linux, no CUDA).

    On a CPU this is the high-water mark of resident memory, which Linux lets a process reset.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(0)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        call(0)
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        return None


def _status_bytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def machine(device: torch.device) -> dict[str, str]:
    """Hardware, versions and commit, for the record beside every number."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",  # of all processes, over the last minute; ours are about "threads" of it
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else "none",
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """The processor's name and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def _commit() -> str:
    """Short hash of the checked-out commit, marked if the kernels differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parents[1]
    try:
        revision = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True).strip()
        changed = subprocess.check_output(["git", "status", "--porcelain", "-uno", "."], cwd=here, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if changed else "")
