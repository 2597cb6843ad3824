"""Which process this is among all, and on which device."""

import os
from dataclasses import dataclass, replace

import torch

from dydiff_dist.ranks.launchers import Launch, read_launch


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
        """Number of this rank's group among them, from 0."""
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


def read_world(device: str | None = None) -> World:
    """The world as the launcher describes it in the environment (`launchers`); one process without a launcher.

    Starts nothing, so it is safe before a configuration is checked.

    Args:
        device: where this process calculates, e.g. ``cpu``; None gives each rank a GPU of its own if there are any.

    Raises:
        ValueError: the launcher's variables are incomplete or contradict each other, there are more ranks than GPUs, or
            no such device is here.
    """
    launch = read_launch(os.environ)
    return World(
        rank=launch.rank,
        world_size=launch.world_size,
        local_rank=launch.local_rank,
        local_world_size=launch.local_world_size,
        device=_named_device(device) if device else _choose_device(launch),
    )


def _named_device(name: str) -> torch.device:
    """The device that a user named, which must be here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; give cpu, cuda or cuda:N") from None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"device is {name!r}, but {num_gpus} GPUs are visible; give cpu, or another GPU")
    return device


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


def set_cpu_threads(world: World) -> None:
    """Shares this machine's cores between its ranks, so that they don't wait for each other.

    A process alone on its machine keeps to OMP_NUM_THREADS where that is set; for several, launchers set it unasked.
    """
    if world.local_world_size > 1 or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, num_cores() // world.local_world_size))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
