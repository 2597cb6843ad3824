"""An error that several ranks meet alike is one line, not one from each of them."""

import hashlib
import os
import socket
import sys
import time

from dydiff_dist.errors import SILENCE_SEC
from dydiff_dist.ranks.launchers import read_launch


def report_once(line: str) -> None:
    """Prints a line on standard error, unless another rank of this start on this machine has printed the same one.

    Where there are several ranks it also waits, for ``SILENCE_SEC``: the line stays taken for that long, and launchers
    end all ranks as soon as one has exited. Alone, a process prints and returns. No exchange between the ranks is
    needed, so it is for errors before they have met too, and for programs whose ranks never meet.

    Args:
        line: the same on every rank that means the same.
    """
    try:
        launch = read_launch(os.environ)
        several, start = launch.world_size > 1, f"{launch.master_addr}:{launch.master_port}"
    except ValueError:  # the launcher's variables are the mistake
        several, start = True, ""
    name = _take(f"{start} {os.getppid()} {line}") if several else None
    if not several or name is not None:
        print(line, file=sys.stderr, flush=True)
    if several:
        time.sleep(SILENCE_SEC)
    if name is not None:
        name.close()


def _take(text: str) -> socket.socket | None:
    """A name for ``text`` that no other process of this machine has now, None if one has; the system drops it with its
    process."""
    taken = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":  # elsewhere names are files: there every rank speaks
        try:
            taken.bind("\0dydiff_dist/" + hashlib.sha256(text.encode()).hexdigest())
        except OSError:
            taken.close()
            return None
    return taken
