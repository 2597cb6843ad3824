"""One training at a time in a run's folder. Imports nothing slow: a second start is refused before it has begun."""

import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


def lock_run(folder: Path) -> IO[str]:
    """Takes a folder of checkpoints for this process until it ends, by whatever death, or closes the file.

    Args:
        folder: ``checkpoints/`` of the run, which exists.

    Raises:
        ValueError: another process has it.
        OSError: no permission, no room.
    """
    # held open for as long as it counts
    file = open(folder / ".lock", "a+")  # noqa: SIM115
    try:
        # a record lock: worker processes that are forked later don't inherit it, so it never outlives this one
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s can't be locked (%s): take care that no two trainings write to it", folder, error)
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"{folder.parent} is being trained by {holder}; wait for its end, or set output_dir to another folder"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def check_free(run: Path) -> None:
    """Refuses a run that is being trained; one that can't be looked into passes, as its start will say why.

    Args:
        run: its folder, which need not exist.

    Raises:
        ValueError: another process has it.
    """
    folder = run / "checkpoints"
    if (folder / ".lock").is_file():
        try:
            lock_run(folder).close()
        except OSError:
            return
