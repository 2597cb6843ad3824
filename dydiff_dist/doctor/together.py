"""What several ranks see together: the same software, the same folder, and how fast they exchange gradients."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from dydiff_dist.doctor.findings import Finding
from dydiff_dist.doctor.software import versions
from dydiff_dist.ranks.collectives import gather_objects
from dydiff_dist.ranks.world import World

_MIB = 2**20
_SLOW_BYTES_PER_SEC = 1e8
"""Below this a gradient of a gigabyte takes more than ten seconds."""


def same_software() -> Iterator[Finding]:
    """Whether all ranks have the same versions."""
    everywhere = gather_objects(versions())
    differing = {
        name: sorted({found[name] for found in everywhere})
        for name in everywhere[0]
        if len({found[name] for found in everywhere}) > 1
    }
    if differing:
        text = "; ".join(f"{name}: {' and '.join(values)}" for name, values in differing.items())
        yield Finding("versions", "problem", f"ranks differ: {text}", "use one .venv in a shared folder, or reinstall")
    else:
        yield Finding("versions", "ok", f"the same on all {len(everywhere)} ranks")


def shared_folder(folder: Path, world: World) -> Iterator[Finding]:
    """Whether a file that rank 0 writes is there for all the others, and theirs for it."""
    token = gather_objects(secrets.token_hex(8))[0]
    mine = folder / f".doctor_{token}_{world.rank}"
    errors = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(token)
    except OSError as error:
        errors.append(f"rank {world.rank} cannot write: {error.strerror}")
    dist.barrier()
    missing = [rank for rank in range(world.world_size) if not _has(folder / f".doctor_{token}_{rank}", token)]
    dist.barrier()
    mine.unlink(missing_ok=True)
    if missing and not errors:
        errors.append(f"rank {world.rank} does not see the files of ranks {missing[:8]}")
    problems = [error for found in gather_objects(errors) for error in found]
    if problems:
        advice = "output_dir must lie in a folder that all machines mount and may write, e.g. NFS or Lustre"
        yield Finding("shared folder", "problem", f"{folder}: {'; '.join(problems[:4])}", advice)
    else:
        yield Finding("shared folder", "ok", f"{folder} is the same for all ranks")


def all_reduce_bandwidth(world: World, megabytes: int = 64, rounds: int = 5) -> Iterator[Finding]:
    """Time of summing a float32 tensor over all ranks, and the bandwidth of each rank's link that follows from it."""
    values = torch.ones(megabytes * _MIB // 4, device=world.device)
    times = []
    for _ in range(rounds + 1):
        dist.barrier()
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
