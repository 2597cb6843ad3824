"""All examinations in order: this machine, then the ranks together or the machines of a hostfile."""

from pathlib import Path

import torch.distributed as dist

from dydiff_dist.doctor import machine, software
from dydiff_dist.doctor.findings import Finding, guarded
from dydiff_dist.doctor.hosts import all_reduce_over_ssh, check_hosts, read_hostfile
from dydiff_dist.doctor.together import all_reduce_bandwidth, same_software, shared_folder
from dydiff_dist.ranks.collectives import gather_objects
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.world import World

_PATIENCE_MINUTES = 2


def examine_machine() -> list[Finding]:
    """Everything that can be found out about this machine by itself."""
    looks = (
        *(software.packages, software.kernels, software.attention, software.programs),
        *(machine.processor, machine.memory, machine.limits, machine.gpus, machine.network, machine.variables),
    )
    return [finding for look in looks for finding in guarded(look.__name__, look)]


def examine_ranks(world: World, folder: Path) -> list[Finding]:
    """All ranks of a launcher together: collective; every rank returns the same, bad findings of other ranks included.

    Args:
        world: more than one rank.
        folder: that all ranks should share.
    """
    mine = examine_machine()
    start_process_group(world, timeout_minutes=_PATIENCE_MINUTES)
    everywhere = gather_objects(mine)
    others = [
        Finding(f"rank {rank}: {finding.subject}", finding.level, finding.text, finding.advice)
        for rank, found in enumerate(everywhere)
        for finding in found
        if rank and finding.level != "ok"
    ]
    looks = (same_software, lambda: shared_folder(folder, world), lambda: all_reduce_bandwidth(world))
    together = [finding for look in looks for finding in look()]
    dist.destroy_process_group()
    return [*everywhere[0], *others, *together]


def examine_hosts(hostfile: Path, folder: Path, master_addr: str | None) -> list[Finding]:
    """This machine, and those of a hostfile through ssh.

    Args:
        hostfile: one line a machine, NAME slots=GPUS.
        folder: that all machines should share.
        master_addr: address of the first one that the others reach; None is what ssh would connect to.

    Raises:
        ValueError, FileNotFoundError: as `read_hostfile`.
    """
    hosts = read_hostfile(hostfile)
    findings = check_hosts(hosts, folder)
    if len(hosts) > 1 and not any(finding.level == "problem" for finding in findings):
        findings += all_reduce_over_ssh(hosts, folder, master_addr)
    return [*examine_machine(), *findings]
