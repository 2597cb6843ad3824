"""Which process this is, on which device, and how the ranks agree."""

import os
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dydiff_dist.errors import SharedError
from dydiff_dist.ranks.launchers import Launch, read_launch
from dydiff_dist.ranks.rendezvous import meet

_MAX_PLACES = 16
"""Machines named one by one in the layout."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of them."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    ranks_per_sample: int = 1
    """Neighbouring ranks that compute the same samples together (sequence parallelism)."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints for all."""
        return self.rank == 0

    @property
    def num_replicas(self) -> int:
        """Groups of ranks between which the global batch is divided."""
        return self.world_size // self.ranks_per_sample

    @property
    def replica(self) -> int:
        """Number of this rank's group."""
        return self.rank // self.ranks_per_sample

    def with_ranks_per_sample(self, size: int) -> "World":
        """The same ranks in groups of ``size``.

        Raises:
            ValueError: the number of ranks is not a multiple of ``size``.
        """
        if self.world_size % size:
            raise ValueError(
                f"{self.world_size} ranks can't be grouped by execution.sequence_parallel_size {size}; start a "
                f"multiple of {size} ranks, or change it"
            )
        return replace(self, ranks_per_sample=size)


def read_world() -> World:
    """The world as the launcher describes it in the environment (`launchers`); one process without a launcher.

    Starts nothing, so it is safe before the configuration is checked.

    Raises:
        ValueError: the launcher's variables are incomplete or contradict each other, or there are more ranks than GPUs.
    """
    launch = read_launch(os.environ)
    return World(
        rank=launch.rank,
        world_size=launch.world_size,
        local_rank=launch.local_rank,
        local_world_size=launch.local_world_size,
        device=_choose_device(launch),
    )


def _choose_device(launch: Launch) -> torch.device:
    """This rank's GPU: number ``local_rank`` of the machine, or the only visible one where srun bound one to each task.

    Without any GPU, the CPU.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        return torch.device("cpu")
    if launch.launcher == "srun" and num_gpus == 1:
        return torch.device("cuda", 0)
    if launch.local_rank >= num_gpus:
        raise ValueError(
            f"{launch.local_world_size} ranks were started on a machine where {num_gpus} GPUs are visible; start "
            f"{num_gpus} a machine, or change CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", launch.local_rank)


def set_cpu_threads(world: World) -> int:
    """Shares this machine's cores between its ranks, so that they don't wait for each other; returns threads a rank.

    A process alone on its machine keeps to OMP_NUM_THREADS where that is set; for several, launchers set it unasked.
    """
    if world.local_world_size == 1 and os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // world.local_world_size)
    torch.set_num_threads(threads)
    return threads


def start_process_group(world: World, timeout_minutes: float = 10, join_timeout_minutes: float = 5) -> str:
    """Joins the ranks: NCCL between GPUs, gloo between CPU processes.

    Args:
        world: this process among the others.
        timeout_minutes: within which all ranks must take part in an exchange that one has begun.
        join_timeout_minutes: within which all ranks must have come.

    Returns:
        A name of this meeting, the same on every rank and another at every start.

    Raises:
        ValueError: the address where the ranks meet is taken or can't be reached, or ranks have not come.
    """
    launch = read_launch(os.environ)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed insists on it
    os.environ.setdefault("MASTER_ADDR", launch.master_addr or "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(launch.master_port or _free_port()))
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    store, session = meet(world.rank, world.world_size, 60 * join_timeout_minutes)
    timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=timeout, store=store)
    return session


def sample_group(world: World) -> dist.ProcessGroup:
    """The ranks that compute this rank's samples together. Collective; the process group has been started."""
    size = world.ranks_per_sample
    members = [list(range(first, first + size)) for first in range(0, world.world_size, size)]
    return [dist.new_group(ranks) for ranks in members][world.replica]  # every rank takes part in making every group


def agree_max(*values: int) -> tuple[int, ...]:
    """The largest of each value over all ranks, in one exchange through the CPU, so that no device is waited for."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return tuple(shared.tolist())


def gather_rows(row: torch.Tensor) -> torch.Tensor:
    """Every rank's (K,) values on the CPU in rank order, (ranks, K), on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return row[None]
    rows = row.new_zeros(dist.get_world_size(), len(row))
    rows[dist.get_rank()] = row
    dist.all_reduce(rows)  # gloo has no gather into one tensor for every dtype
    return rows


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, on all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value`` in rank order, on all ranks; small Python objects only."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(reason: str | None) -> None:
    """Raises on every rank if any rank has a reason to, so that none waits for one that has left. Collective.

    Raises:
        SharedError: the first such rank's reason, the same line on every rank.
    """
    for rank, found in enumerate(gather_objects(reason)):
        if found:
            raise SharedError(f"rank {rank}: {found}" if rank else found)


def describe_layout(world: World) -> str:
    """Which ranks run where, a few words per machine. Collective."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    places: dict[tuple[str, str], list[int]] = {}
    for rank, place in enumerate(gather_objects((socket.gethostname(), device))):
        places.setdefault(place, []).append(rank)
    shown = [f"{host} ({device}): {_ranges(ranks)}" for (host, device), ranks in places.items()]
    more = f"; and {len(shown) - _MAX_PLACES} more" if len(shown) > _MAX_PLACES else ""
    hosts = len({host for host, _ in places})
    count = f"{world.world_size} rank{'s' if world.world_size > 1 else ''} on {hosts} machine{'s' if hosts > 1 else ''}"
    return f"{count}; {'; '.join(shown[:_MAX_PLACES])}{more}"


def _ranges(ranks: list[int]) -> str:
    """``ranks 0-7, 12`` of sorted numbers."""
    present = set(ranks)
    starts = [rank for rank in ranks if rank - 1 not in present]
    ends = [rank for rank in ranks if rank + 1 not in present]
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
