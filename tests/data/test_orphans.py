"""When a program is killed outright, the processes that worked for it end too, and their shared memory with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

END_SEC = 30
"""They end within a second; the rest is for a machine with other work."""

READ = """
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stream import TrainStream
if __name__ == "__main__":
    config = DataConfig(train="-", num_history_frames=2, num_future_frames=3, num_workers=2)
    batches = iter(TrainStream(ShardSet.open({folder!r}), config, 0, 4, 4))
    for _ in range(3):
        next(batches)
    print("ready", flush=True)
    input()
"""

STOPPED = (
    """
import multiprocessing.resource_tracker
if __name__ == "__main__":
    multiprocessing.resource_tracker.ensure_running()  # as anything may have done before
"""
    + READ
    + """
    assert all(len(next(batches)["key"]) == 4 for _ in range(20))
    print("read", flush=True)
"""
)

CONVERT = """
import time
from dydiff_dist.data.workers import run_in_processes
if __name__ == "__main__":
    jobs = run_in_processes(time.sleep, [0, 0, 600, 600], 2)
    print(next(jobs), next(jobs), "ready", flush=True)
    next(jobs)
"""


def shared_memory(process: psutil.Process) -> set[str]:
    """The pieces of /dev/shm that a process maps, by name."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/torch" in line}


def is_there(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("program", "num_helpers"), [(READ, 4), (CONVERT, 2)], ids=["training data", "conversion"])
def test_nothing_stays_behind_a_killed_program(make_shards, tmp_path, program, num_helpers):
    script = tmp_path / "program.py"
    script.write_text(program.format(folder=str(make_shards())))
    command = [sys.executable, script]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as parent:
        assert "ready" in parent.stdout.readline()
        helpers = psutil.Process(parent.pid).children(recursive=True)
        assert len(helpers) >= num_helpers, helpers  # beside two workers, the forkserver and multiprocessing's tracker
        if program is READ:
            mapped = set.union(*map(shared_memory, helpers))
            # Without a name, the system frees it when the last process that maps it ends.
            assert mapped and all(name.endswith("(deleted)") for name in mapped), mapped
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_SEC
    while any(map(is_there, helpers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [(helper.pid, helper.cmdline()) for helper in helpers if is_there(helper)]
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.slow
def test_processes_that_hear_no_stop_signal_end_with_a_program_that_still_holds_its_batches(make_shards, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(STOPPED.format(folder=str(make_shards())))
    with subprocess.Popen(
        [sys.executable, script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as program:
        assert "ready" in program.stdout.readline()
        helpers = psutil.Process(program.pid).children(recursive=True)
        for helper in helpers:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                helper.send_signal(number)
        try:
            output, _ = program.communicate("\n", timeout=END_SEC)
        finally:
            for process in (*filter(is_there, helpers), program):
                process.kill()
    assert (output, program.returncode) == ("read\n", 0)


def environment() -> dict[str, str]:
    """With this checkout's modules, wherever the script lies."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
