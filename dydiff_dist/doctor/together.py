"""What several ranks see together: the same software, the same folder, and how fast they exchange gradients."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from dydiff_dist.doctor.findings import Finding
from dydiff_dist.doctor.software import versions
from dydiff_dist.errors import reason_and_advice
from dydiff_dist.ranks.collectives import barrier, gather_objects
from dydiff_dist.ranks.world import World

_MIB = 2**20
_SLOW_BYTES_PER_SEC = 1e8
"""Below this a gradient of a gigabyte takes more than ten seconds."""


def same_software() -> Iterator[Finding]:
    """Whether all ranks have the same versions."""
    everywhere = gather_objects(versions())
    found = {name: sorted({each[name] for each in everywhere}) for name in everywhere[0]}
    differing = [f"{name}: {' and '.join(values)}" for name, values in found.items() if len(values) > 1]
    text = f"ranks differ: {'; '.join(differing)}" if differing else f"the same on all {len(everywhere)} ranks"
    yield Finding("versions", "problem" if differing else "ok", text, "use one .venv in a shared folder, or reinstall")


def shared_folder(folder: Path, world: World) -> Iterator[Finding]:
    """Whether a file that rank 0 writes is there for all the others, and theirs for it."""
    token = gather_objects(secrets.token_hex(8))[0]
    files = [folder / f".doctor_{token}_{rank}" for rank in range(world.world_size)]
    mine, error = files[world.rank], ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(token)
    except OSError as problem:
        error = f"rank {world.rank} cannot write: {reason_and_advice(problem)}"
    barrier()
    missing = [rank for rank, path in enumerate(files) if not _has(path, token)]
    barrier()
    mine.unlink(missing_ok=True)
    if missing and not error:
        error = f"rank {world.rank} does not see the files of ranks {missing[:8]}"
    errors = [error for error in gather_objects(error) if error]
    text = f"{folder}: {'; '.join(errors[:4])}" if errors else f"{folder} is the same for all ranks"
    advice = "output_dir must lie in a folder that all machines mount and may write, e.g. NFS or Lustre"
    yield Finding("shared folder", "problem" if errors else "ok", text, advice)


def all_reduce_bandwidth(world: World, megabytes: int = 64, rounds: int = 5) -> Iterator[Finding]:
    """Time of summing a float32 tensor over all ranks, and the bandwidth of each rank's link that follows from it.

    Args:
        world: the ranks.
        megabytes: of the tensor, in MiB.
        rounds: of which the median counts.
    """
    values = torch.ones(megabytes * _MIB // 4, device=world.device)
    times = []
    for _ in range(rounds + 1):
        barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    slowest = max(gather_objects(sorted(times[1:])[rounds // 2]))
    # a ring sends 2 n (N - 1) / N bytes from each rank
    bus = 2 * megabytes * _MIB * (world.world_size - 1) / world.world_size / slowest
    text = (
        f"{megabytes} MiB over {world.world_size} ranks on {world.device.type}: {slowest * 1e3:.1f} ms, "
        f"{bus / 1e9:.2f} GB/s per rank"
    )
    advice = "wrong interface? Set NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME on CPUs), and NCCL_DEBUG=INFO to see the path"
    yield Finding("all-reduce", "warning" if bus < _SLOW_BYTES_PER_SEC else "ok", text, advice)


def _has(path: Path, token: str) -> bool:
    try:
        return path.read_text() == token
    except OSError:
        return False
