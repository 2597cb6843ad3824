"""An error that several ranks meet alike is one line, not one from each of them."""

import hashlib
import os
import socket
import sys
import time

from dydiff_dist.errors import SILENCE_SEC
from dydiff_dist.ranks.launchers import read_launch
from dydiff_dist.ranks.parents import PARENT

_taken: list[socket.socket] = []
"""Names that this process holds until it ends."""


def report_once(line: str) -> None:
    """Prints a line on standard error, unless another rank of this start on this machine has printed the same one.

    Where there are several ranks it also waits, for ``SILENCE_SEC``: the line stays taken for that long, and launchers
    end all ranks as soon as one has exited. Alone, a process prints and returns. No exchange between the ranks is
    needed, so it is for errors before they have met too, and for programs whose ranks never meet.

    Args:
        line: the same on every rank that means the same.
    """
    say_once(line, topic=line)
    if _several_ranks():
        time.sleep(SILENCE_SEC)


def say_once(line: str, topic: str) -> bool:
    """Prints a line on standard error, unless another rank of this start on this machine has spoken of the topic and
    is still there; returns whether it printed."""
    if _several_ranks() and not _take(f"{os.environ.get('MASTER_PORT')} {PARENT} {topic}"):
        return False
    print(line, file=sys.stderr, flush=True)
    return True


def _several_ranks() -> bool:
    try:
        return read_launch(os.environ).world_size > 1
    except ValueError:  # the launcher's variables are the mistake
        return True


def _take(text: str) -> bool:
    """Whether no other process of this machine has the name; the system drops it with its process."""
    if sys.platform != "linux":  # names are files there, which would stay: every rank speaks
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind("\0dydiff_dist/" + hashlib.sha256(text.encode()).hexdigest())
    except OSError:
        name.close()
        return False
    _taken.append(name)
    return True
