"""Starting the programs the way a user does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "dydiff_dist" / "train.py"


def run(command: list, timeout: float = 240) -> subprocess.CompletedProcess:
    """A command from the repository root, its output captured."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    """One thread a process, and this interpreter's scripts (deepspeed) first in PATH."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def two_ranks() -> list[str]:
    """DeepSpeed's launcher with two processes, on a port of its own so that runs beside each other don't meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["deepspeed", "--num_gpus", "2", "--master_port", str(port)]
