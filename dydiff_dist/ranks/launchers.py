"""How each launcher tells a process who it is, through the environment.

| launcher | rank, ranks | on this machine | meeting point |
|---|---|---|---|
| torchrun | RANK, WORLD_SIZE | LOCAL_RANK, LOCAL_WORLD_SIZE | MASTER_ADDR, MASTER_PORT |
| deepspeed | the same | LOCAL_RANK, LOCAL_SIZE | the same |
| Kubernetes operators, by hand | the same | nothing: one process per pod or machine | the same |
| srun | SLURM_PROCID, SLURM_STEP_NUM_TASKS | SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE | first host, port by job |

RANK goes before Slurm's own variables: a torchrun that srun starts on each node is torchrun to its processes. Slurm's
variables count only inside a job step (srun), where SLURM_STEP_NUM_TASKS is set; a batch script is one process.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PORT_RANGE = (20_000, 20_000)
"""First port and number of ports that Slurm jobs share, away from the ephemeral ports (32768 and up)."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher says about this process."""

    launcher: str
    """srun, torchrun, deepspeed, environment (RANK set by something else), or none."""
    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its machine."""
    local_world_size: int
    """Processes on this machine."""
    master_addr: str | None = None
    """Host where the ranks meet; None where one process needs none."""
    master_port: int | None = None


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Reads the variables of whichever launcher started this process; one process where none did.

    Raises:
        ValueError: one line that names the variable that is missing, no number, or contradicts another one.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        launch = _read_ranks(environment)
    elif "SLURM_STEP_NUM_TASKS" in environment:
        launch = _read_slurm(environment)
    else:
        launch = Launch(launcher="none", rank=0, world_size=1, local_rank=0, local_world_size=1)
    _check(launch)
    return launch


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: ``gpu[003-010,12],login1`` -> ``gpu003``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist).group()
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on node number ``node`` in Slurm's notation: ``4(x2),3`` means 4, 4 and 3."""
    for entry in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry.strip())
        if match is None:
            break
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {tasks_per_node!r}, which gives no number of tasks for this node")


def _read_ranks(environment: Mapping[str, str]) -> Launch:
    """RANK and WORLD_SIZE, as torchrun, deepspeed and Kubernetes operators set them."""
    world_size = _number(environment, "WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher, local_size_key = "torchrun", "LOCAL_WORLD_SIZE"
    elif "LOCAL_SIZE" in environment:
        launcher, local_size_key = "deepspeed", "LOCAL_SIZE"
    else:
        launcher, local_size_key = "environment", "LOCAL_WORLD_SIZE"
    if world_size > 1 and not environment.get("MASTER_ADDR"):
        raise ValueError(
            f"WORLD_SIZE is {world_size}, but MASTER_ADDR is not set; set it to the host of rank 0 on every process"
        )
    return Launch(
        launcher=launcher,
        rank=_number(environment, "RANK"),
        world_size=world_size,
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_world_size=_number(environment, local_size_key, 1),
        master_addr=environment.get("MASTER_ADDR"),
        master_port=_number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else None,
    )


def _read_slurm(environment: Mapping[str, str]) -> Launch:
    """The variables that srun sets in every task. MASTER_ADDR and MASTER_PORT, where given, go before its node list."""
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    world_size = _number(environment, "SLURM_STEP_NUM_TASKS")
    local_sizes = environment.get("SLURM_STEP_TASKS_PER_NODE") or str(world_size)
    first_port, num_ports = _PORT_RANGE
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    return Launch(
        launcher="srun",
        rank=_number(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world_size=tasks_on_node(local_sizes, _number(environment, "SLURM_NODEID", 0)),
        master_addr=environment.get("MASTER_ADDR") or first_host(nodelist) or None,
        # jobs that share a node get ports of their own, the same one in all their tasks
        master_port=_number(environment, "MASTER_PORT", first_port + (job * 7 + step) % num_ports),
    )


def _number(environment: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = environment.get(key)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        state = "not set" if text is None else repr(text)
        raise ValueError(f"the environment variable {key} is {state}; the launcher must set it to a number")
    return int(text)


def _check(launch: Launch) -> None:
    """Numbers that contradict each other would hang the start; they are named instead."""
    if launch.rank >= launch.world_size:
        problem = f"rank {launch.rank} of {launch.world_size} ranks; ranks count from 0"
    elif launch.local_rank >= launch.local_world_size:
        problem = f"rank {launch.local_rank} of {launch.local_world_size} on this machine; set LOCAL_WORLD_SIZE too"
    elif launch.local_world_size > launch.world_size:
        problem = f"{launch.local_world_size} ranks on this machine, {launch.world_size} in all"
    else:
        return
    raise ValueError(f"the launcher's variables ({launch.launcher}) contradict each other: {problem}")
