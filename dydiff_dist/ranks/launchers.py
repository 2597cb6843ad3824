"""How each launcher tells a process who it is, through the environment.

| launcher | rank, ranks | on this machine | rendezvous |
|---|---|---|---|
| torchrun | RANK, WORLD_SIZE | LOCAL_RANK, LOCAL_WORLD_SIZE | MASTER_ADDR, MASTER_PORT |
| deepspeed | the same | LOCAL_RANK, LOCAL_SIZE | the same |
| Kubernetes operators, by hand | the same | nothing: one process per pod or machine | the same |
| mpirun (Open MPI) | OMPI_COMM_WORLD_RANK, _SIZE | OMPI_COMM_WORLD_LOCAL_RANK, _LOCAL_SIZE | the same |
| mpiexec (PMI: MPICH, Intel MPI) | PMI_RANK, PMI_SIZE | MPI_LOCALRANKID, MPI_LOCALNRANKS | the same |
| srun | SLURM_PROCID, SLURM_STEP_NUM_TASKS | SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE | first host, port by job |

The first row that is there counts: a torchrun or mpirun that srun starts on each node is torchrun or mpirun to its
processes. But srun itself may set PMI's variables; where both name one number of ranks, Slurm's count. They do so only
inside a job step (srun), where SLURM_STEP_NUM_TASKS is set; a batch script is one process. Ranks of one machine need no
MASTER_ADDR under MPI.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PORT_RANGE = (20_000, 20_000)
"""First port and number of ports that Slurm jobs share, away from the ephemeral ports (32768 and up)."""
_DEFAULT_PORT = 29_500
"""Torch's own, where several ranks are given none."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher says about this process."""

    launcher: str
    """torchrun, deepspeed, environment (RANK set by something else), mpirun, mpiexec, srun, or none."""
    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its machine."""
    local_world_size: int
    """Processes on this machine."""
    master_addr: str | None = None
    """Host of the rendezvous; None where one process needs none."""
    master_port: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One launcher of the table: its name and the names of its variables."""

    launcher: str
    rank: str = "RANK"
    world_size: str = "WORLD_SIZE"
    local_rank: str = "LOCAL_RANK"
    local_world_size: str = "LOCAL_WORLD_SIZE"
    marker: str | None = None
    """One more variable, which tells launchers of the same names apart."""

    def is_in(self, environment: Mapping[str, str]) -> bool:
        """Whether this launcher started the process."""
        named = self.rank in environment or self.world_size in environment
        return named and (self.marker is None or self.marker in environment)


_ROWS = (
    _Row(launcher="torchrun", marker="TORCHELASTIC_RUN_ID"),
    _Row(launcher="deepspeed", local_world_size="LOCAL_SIZE", marker="LOCAL_SIZE"),
    _Row(launcher="environment"),
    _Row(
        launcher="mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Row(
        launcher="mpiexec",
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_world_size="MPI_LOCALNRANKS",
    ),
)
_SLURM_SIZE = "SLURM_STEP_NUM_TASKS"


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Reads the variables of whichever launcher started this process; one process where none did.

    Raises:
        ValueError: one line that names the variable that is missing, no number, or contradicts another one.
    """
    row = next((row for row in _ROWS if row.is_in(environment)), None)
    if row is not None and row.launcher == "mpiexec" and environment.get(_SLURM_SIZE) == environment.get("PMI_SIZE"):
        row = None  # srun's own PMI
    if row is not None:
        launch = _read_row(row, environment)
    elif _SLURM_SIZE in environment:
        launch = _read_slurm(environment)
    else:
        launch = Launch(launcher="none", rank=0, world_size=1, local_rank=0, local_world_size=1)
    _check(launch)
    return launch


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: ``gpu[003-010,12],login1`` -> ``gpu003``."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]  # at the first comma outside of brackets
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on node number ``node`` in Slurm's notation: ``4(x2),3`` means 4, 4 and 3.

    Raises:
        ValueError: another notation, or no such node.
    """
    for entry in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry.strip())
        if match is None:
            break
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {tasks_per_node!r}, which gives no number of tasks for this node")


def _read_row(row: _Row, environment: Mapping[str, str]) -> Launch:
    """What a launcher other than srun says."""
    world_size = _number(environment, row.world_size)
    local_world_size = _number(environment, row.local_world_size, 1)
    master_addr = environment.get("MASTER_ADDR")
    if row.rank != "RANK" and local_world_size == world_size:
        master_addr = master_addr or "127.0.0.1"
    if world_size > 1 and not master_addr:
        raise ValueError(
            f"{row.world_size} is {world_size}, but MASTER_ADDR is not set; set it to the host of rank 0 in all of them"
        )
    return Launch(
        launcher=row.launcher,
        rank=_number(environment, row.rank),
        world_size=world_size,
        local_rank=_number(environment, row.local_rank, 0),
        local_world_size=local_world_size,
        master_addr=master_addr,
        master_port=_number(environment, "MASTER_PORT", _DEFAULT_PORT if world_size > 1 else 0) or None,
    )


def _read_slurm(environment: Mapping[str, str]) -> Launch:
    """The variables that srun sets in every task. MASTER_ADDR and MASTER_PORT, where given, go before its node list."""
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    world_size = _number(environment, _SLURM_SIZE)
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
    """A variable as a number of at least 0; ``default`` where it is not set."""
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
