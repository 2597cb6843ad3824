"""The processes that started this one, and whether they are there. Imported early, before a launcher can be gone."""

import os
from contextlib import suppress
from pathlib import Path

PARENT = os.getppid()
"""The process that started this one; it stays the same number when that is gone."""


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
    """Processes whose parent is part of this rank's launcher, and that parent: this process, and under DeepSpeed's
    launcher its parent too, as that launcher is two processes.

    Args:
        launcher: as `read_launch` names it. Without one nobody is counted on: a run in the background outlives its
            shell.
    """
    if launcher in ("none", "environment") or PARENT <= 1:  # as process 1 a launcher can't go before its ranks
        return {}
    chain = {os.getpid(): PARENT}
    starter = parent_of(PARENT)
    if launcher == "deepspeed" and starter is not None and starter > 1:
        with suppress(OSError):
            if b"deepspeed" in Path(f"/proc/{starter}/cmdline").read_bytes():
                chain[PARENT] = starter
    return chain
