"""The processes that started this one, and whether they are there. Imported early, before a launcher can be gone."""

import os
from contextlib import suppress
from pathlib import Path

PARENT = os.getppid()
"""The process that started this one; it stays the same number when that is gone."""
STARTER = "DYDIFF_STARTER"
"""Variable of the environment with the number of a process of this machine that started a run, directly or through a
launcher, and waits for it: when that is gone, the run saves and leaves."""


def _note_parent() -> None:
    global PARENT
    PARENT = os.getppid()


os.register_at_fork(after_in_child=_note_parent)


def parent_of(process: int) -> int | None:
    """Number of a process's parent; None where it can't be known, as the process is gone or the system has no /proc."""
    if process == os.getpid():
        return os.getppid()
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def launcher_processes(launcher: str) -> dict[int, int]:
    """Processes whose parent is part of what started this rank and waits for it, and that parent: this process; under
    DeepSpeed's launcher its parent too, as that launcher is two processes; and all up to the one that `STARTER` names.

    Args:
        launcher: as `read_launch` names it. Without one and without `STARTER` nobody is counted on: a run in the
            background outlives its shell.
    """
    chain: dict[int, int] = {}
    if launcher not in ("none", "environment") and PARENT > 1:  # as process 1 a launcher can't go before its ranks
        chain[os.getpid()] = PARENT
        starter = parent_of(PARENT)
        if launcher == "deepspeed" and starter is not None and starter > 1:
            with suppress(OSError):
                if b"deepspeed" in Path(f"/proc/{starter}/cmdline").read_bytes():
                    chain[PARENT] = starter
    return chain | _links_to(int(os.environ[STARTER])) if STARTER in os.environ else chain


def _links_to(starter: int) -> dict[int, int]:
    """Each process from this one upwards and its parent, which is ``starter`` at last; where it is gone already, this
    process with a parent that it does not have."""
    links: dict[int, int] = {}
    process = os.getpid()
    parent: int | None = PARENT
    while parent is not None and parent > 1:
        links[process] = parent
        if parent == starter:
            return links
        process, parent = parent, parent_of(parent)
    return links if parent is None else {os.getpid(): starter}
