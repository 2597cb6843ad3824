"""Who tells a run to stop, and who goes away: signals to all its processes, its terminal, its launcher, rank 0."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from run_commands import ROOT, TORCHRUN, TRAIN, environment, run, two_ranks

FAULTY = Path(__file__).with_name("faulty_train.py")
LONG = "training.steps=100000 training.validate_every_steps=0 training.checkpoint_every_steps=100000".split()

pytestmark = [pytest.mark.long, pytest.mark.distributed]


class LongRun:
    """A training without an end, which writes to a file."""

    def __init__(self, launcher: list, config: Path, log: Path, *changes: str):
        self.log, self.config = log, config
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in (*launcher, TRAIN, config, *LONG, *changes)],
                cwd=ROOT,
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for("step 2/")
        self.family = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(True))]

    def wait_for(self, text: str, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def child(self, word: str) -> int:
        """The process below the launcher whose command has ``word`` and that is nearest to it."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any(word in argument for argument in child.cmdline()):
                return child.pid
        raise AssertionError(f"no process with {word}")

    def wait_for_the_end(self, timeout: float = 90) -> str:
        """The output once every process of the run is gone."""
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in self.family if psutil.pid_exists(pid)], timeout)
        assert not alive, f"{alive} are still there: {self.log.read_text()}"
        return self.log.read_text()

    def saved(self, output: str, by: str) -> None:
        """It said who stopped it, and its last step is on the disk."""
        stopped = re.search(rf"stopped by {by} after step (\d+); the same command resumes", output)
        assert stopped and "Traceback" not in output, output
        folder = Path(json.loads(self.config.read_text())["output_dir"]) / "checkpoints"
        assert (folder / f"step_{int(stopped[1]):06d}" / "complete.json").is_file()

    def kill(self) -> None:
        for pid in self.family:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tiny_config, tmp_path):
    runs = []

    def begin(launcher: list, *changes: str) -> LongRun:
        runs.append(LongRun(launcher, tiny_config, tmp_path / "log.txt", *changes))
        return runs[-1]

    yield begin
    for each in runs:
        each.kill()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_all_processes_of_a_run_saves_it(start, name):
    """Schedulers and terminals send it to the data's workers too."""
    training = start([sys.executable], "data.num_workers=2")
    os.killpg(training.process.pid, getattr(signal, name))
    output = training.wait_for_the_end()
    training.saved(output, name)
    assert training.process.wait() == 0


def test_a_run_whose_terminal_is_closed_saves(tiny_config, tmp_path):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs some width
    process = subprocess.Popen(
        [sys.executable, TRAIN, str(tiny_config), *LONG],
        cwd=ROOT,
        env=environment(),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    text, deadline = b"", time.monotonic() + 180
    try:
        while not re.search(rb"[1-9]\d*/100000", text):  # of the bar
            assert time.monotonic() < deadline, text
            if select.select([terminal], [], [], 1)[0]:
                text += os.read(terminal, 1000)
        os.close(terminal)
        assert process.wait(90) == 0
    finally:
        process.kill()  # what it did not heed above must not go on beside the other tests
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert (saved / "complete.json").is_file()


def test_nohup_still_means_to_go_on(start):
    training = start(["nohup", sys.executable])
    os.killpg(training.process.pid, signal.SIGHUP)
    steps = training.log.read_text().count("step ")
    deadline = time.monotonic() + 60
    while training.log.read_text().count("step ") < steps + 3:
        assert time.monotonic() < deadline and training.process.poll() is None
        time.sleep(0.05)


def test_ranks_without_their_launcher_save_and_leave_and_no_second_start_disturbs_them(start, tiny_config):
    training = start(TORCHRUN)
    began = time.monotonic()
    second = run([sys.executable, TRAIN, tiny_config, *LONG])
    assert second.returncode == 2 and second.stdout == ""
    assert re.fullmatch(r"error: .*run is being trained by process \d+ on .*\n", second.stderr), second.stderr
    imports = subprocess.run([sys.executable, "-X", "importtime", TRAIN, tiny_config], capture_output=True, text=True)
    assert "being trained" in imports.stderr and " torch\n" not in imports.stderr, "the refusal waited for slow imports"
    assert time.monotonic() - began < 60
    os.kill(training.process.pid, signal.SIGKILL)
    output = training.wait_for_the_end()
    training.saved(output, "SIGTERM")
    assert output.count("is gone; saving and leaving") == 1


@pytest.mark.parametrize("victim", ["the outer process", "the inner process"])
def test_ranks_without_deepspeeds_launcher_save_and_leave(start, victim):
    training = start(two_ranks())
    inner = training.child("deepspeed.launcher.launch")
    os.kill(inner if victim == "the inner process" else training.process.pid, signal.SIGKILL)
    ranks = [pid for pid in training.family if pid not in (inner, training.process.pid)]
    assert len(ranks) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in ranks], 90)
    assert not alive
    training.wait_for("stopped by SIGTERM")
    training.saved(training.log.read_text(), "SIGTERM")


@pytest.mark.parametrize(("launcher", "kind"), [("torchrun", "kill"), ("deepspeed", "kill"), ("deepspeed", "disk")])
def test_rank_0_that_is_killed_is_named_by_the_other(tiny_config, launcher, kind):
    """Also where the other one's disk takes longer than its launcher waits for it, 30 s."""
    start = TORCHRUN if launcher == "torchrun" else two_ranks()
    options = "training.faults.heartbeat_sec=0.5 training.validate_every_steps=0 training.steps=100000".split()
    done = run([*start, FAULTY, kind, 0, 4, tiny_config, *options])
    assert done.returncode != 0 and "step 4/" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 0 (") and line.endswith("after step 4; the same command resumes"), line
    assert "dydiff_dist/" not in done.stderr.split("error: ")[1], "a traceback"
