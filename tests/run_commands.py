"""Starting the programs the way a user does."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "dydiff_dist" / "train.py"


def run(command: list, timeout: float = 240) -> subprocess.CompletedProcess:
    """A command from the repository root, its output captured."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    """One thread a process, and this interpreter's scripts (deepspeed) first in PATH."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
"""Torch's launcher with two processes, on a free port: starts in half the time of DeepSpeed's."""


def two_ranks() -> list[str]:
    """DeepSpeed's launcher with two processes, on a port of its own so that runs beside each other don't meet. It says
    nothing of its own but errors, as in the demo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quietly = [] if torch.cuda.is_available() else ["env", "DS_ACCELERATOR=cpu"]
    return [*quietly, "deepspeed", "--quiet", "--num_gpus", "2", "--master_port", str(port)]


def chatter(done: subprocess.CompletedProcess) -> list[str]:
    """Lines that a command printed of loggers and warnings: launchers' and libraries', none of ours."""
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if re.search(r"^\[\d{4}-\d\d-\d\d |^[DIWE]\d{4} |Warning:|WARNING", line)]
