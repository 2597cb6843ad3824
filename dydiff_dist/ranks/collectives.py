"""How the ranks agree. Every function is collective, and does without an exchange where there is one rank."""

import socket
from typing import Any

import torch
import torch.distributed as dist

from dydiff_dist.errors import SharedError
from dydiff_dist.ranks.world import World

_MAX_PLACES = 16
"""Machines named one by one in the layout."""


def own_rank() -> tuple[int, int]:
    """(rank, number of ranks) of the process group; (0, 1) where none was started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _num_ranks() -> int:
    return own_rank()[1]


def agree_max(*values: int) -> tuple[int, ...]:
    """The largest of each value over all ranks, in one exchange through the CPU, so that no device is waited for."""
    if _num_ranks() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return tuple(shared.tolist())


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, on all ranks; ``values`` itself stays."""
    if _num_ranks() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value`` in rank order, on all ranks; small Python objects only."""
    if _num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * _num_ranks()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Returns once every rank has called it."""
    if _num_ranks() > 1:
        dist.barrier()


def raise_together(reason: str | None) -> None:
    """Raises on every rank if any rank has a reason to, so that none waits for one that has left.

    Raises:
        SharedError: the first such rank's reason, the same line on every rank.
    """
    for rank, found in enumerate(gather_objects(reason)):
        if found:
            raise SharedError(f"rank {rank}: {found}" if rank else found)


def sample_group(world: World) -> dist.ProcessGroup:
    """The ranks that compute this rank's samples together. The process group has been started."""
    size = world.ranks_per_sample
    members = [list(range(first, first + size)) for first in range(0, world.world_size, size)]
    return [dist.new_group(ranks) for ranks in members][world.replica]  # every rank takes part in making every group


def describe_layout(world: World) -> str:
    """Which ranks run where, a few words per machine."""
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
