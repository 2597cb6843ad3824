"""This machine: processors, GPUs, memory, limits, network names."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from dydiff_dist.doctor.findings import Finding
from dydiff_dist.hardware import recognise_gpu
from dydiff_dist.ranks.world import num_cores

_GIB = 2**30
_SHOWN_PREFIXES = ("NCCL_", "GLOO_", "MASTER_", "OMP_", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "TORCH_NCCL_")
"""Environment variables that explain behaviour and hold no secrets."""


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and the thread setting."""
    cores, threads, load = num_cores(), os.environ.get("OMP_NUM_THREADS", "not set"), os.getloadavg()[0]
    text = f"{cores} cores, load {load:.1f}, OMP_NUM_THREADS {threads}"
    advice = "other processes use the cores: speeds measured now are wrong, and OpenMP threads wait for each other"
    yield Finding("processor", "warning" if load > 1.5 * cores else "ok", text, advice)


def memory() -> Iterator[Finding]:
    """Main memory, and shared memory for the data workers."""
    main = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{main.available / _GIB:.1f} of {main.total / _GIB:.1f} GiB free")
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total
        advice = "data workers hand batches over in it; start the container with --shm-size=16g or --ipc=host"
        yield Finding("/dev/shm", "ok" if size >= _GIB else "problem", f"{size / _GIB:.2f} GiB", advice)


def limits() -> Iterator[Finding]:
    """Limits of the operating system that long runs meet."""
    import resource

    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"shards and workers need more: ulimit -n {min(65536, hard) if hard > 0 else 65536}"
    yield Finding("open files", "ok" if files >= 4096 or files < 0 else "warning", f"at most {files}", advice)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if Path("/dev/infiniband").is_dir():
        text = "unlimited" if locked < 0 else f"{locked / _GIB:.2f} GiB"
        advice = (
            "InfiniBand registers memory: set ulimit -l unlimited (in Slurm: PropagateResourceLimitsExcept=MEMLOCK)"
        )
        yield Finding("locked memory", "ok" if locked < 0 else "problem", text, advice)


def gpus() -> Iterator[Finding]:
    """Each GPU with what it can do; that there is none is no problem."""
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia").is_dir():
            built = torch.version.cuda or "none"
            advice = "this torch is built for another CUDA or for none; install the build that fits the driver"
            yield Finding("GPUs", "problem", f"a driver, but torch (CUDA {built}) sees no GPU", advice)
        else:
            yield Finding("GPUs", "ok", "none: runs use the CPU, through gloo")
        return
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        known = recognise_gpu(properties.name)
        peak = f"{known.half_flops / 1e12:,.0f} TFLOP/s bf16" if known else "peak not in the table, MFU is left out"
        text = (
            f"{properties.name}, {total / _GIB:.0f} GiB ({free / _GIB:.0f} free), sm_{properties.major}"
            f"{properties.minor}, {peak}"
        )
        busy = free < 0.9 * total
        yield Finding(f"GPU {index}", "warning" if busy else "ok", text, "another process holds memory: nvidia-smi")
    apart = [(i, j) for i in range(count) for j in range(i + 1, count) if not torch.cuda.can_device_access_peer(i, j)]
    if apart:
        advice = "traffic goes through the host; look at nvidia-smi topo -m, and at ACS in the BIOS"
        yield Finding("GPU to GPU", "warning", f"no direct access between {apart[:4]}", advice)


def network() -> Iterator[Finding]:
    """Names and addresses: ranks on other machines find this one by them."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = ""
    interfaces = [
        f"{interface} {entry.address}"
        for interface, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    text = f"{name} is {address or 'not resolved'}; interfaces: {', '.join(interfaces) or 'none but loopback'}"
    bad = not address or address.startswith("127.")
    advice = (
        "for runs over several machines on CPUs set GLOO_SOCKET_IFNAME to the interface between them, and give "
        "--master_addr"
    )
    yield Finding("network", "warning" if bad and interfaces else "ok", text, advice)


def variables() -> Iterator[Finding]:
    """Variables that change how ranks meet and talk."""
    shown = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(_SHOWN_PREFIXES)]
    yield Finding("variables", "ok", " ".join(shown) or "none set")
