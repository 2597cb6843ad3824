"""A conversion killed at any moment goes on when the same command is given again, to the same bytes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["--train", "24", "--valid", "2", "--test", "2", "--num-frames", "3", "--runs-per-shard", "2"]
FLOW = ["--resolution", "32", "--force-max-wavenumber", "5", "--spin-up-frames", "40"]


def command(out, processes):
    tool = str(REPOSITORY / "tools" / "make_shards.py")
    return [sys.executable, tool, "turbulence", "--out", str(out), "--processes", str(processes), *SMALL, *FLOW]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(folder):
    return len(list(folder.glob("*/.records/*.json")))


def kill_after(process, folder, num_records, whole_group):
    """Kills once ``num_records`` shards stand (or the command ended)."""
    deadline = time.monotonic() + 60
    while records(folder) < num_records and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is None:
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def is_at_work(process):
    """Whether it is a worker that has begun: it leaves Ctrl-C to its parent from then on."""
    try:
        ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1]
        command = process.cmdline()
    except (OSError, psutil.Error):  # it was another child, which has ended
        return False
    return "spawn_main" in " ".join(command) and bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.long
@pytest.mark.distributed
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole", 1), check=True, env=environment, capture_output=True)
    pieces = tmp_path / "pieces"
    for num_records, processes, whole_group in ((2, 1, True), (4, 2, False)):
        process = subprocess.Popen(
            command(pieces, processes), env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        kill_after(process, pieces, num_records, whole_group)
    finished = subprocess.run(command(pieces, 1), check=True, env=environment, capture_output=True, text=True)
    assert "reused" in finished.stdout
    assert files(pieces) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.distributed
def test_ctrl_c_ends_at_once_in_one_line(tmp_path):
    """Even while two processes are busy with shards that would take long."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    arguments = [*command(tmp_path, 2), "--runs-per-shard", "1", "--spin-up-frames", "1000000"]
    process = subprocess.Popen(
        arguments, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while sum(is_at_work(child) for child in psutil.Process(process.pid).children(recursive=True)) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in output and output.rstrip().endswith("interrupted")


def test_a_manifest_that_was_left_half_written_is_removed(make_shards):
    """As a conversion leaves it that is killed between a manifest's first byte and its last."""
    train = make_shards()
    whole = files(train)
    (train / ".manifest.json.0123abcd.partial").write_bytes(whole[Path("manifest.json")][:100])
    (train / "manifest.json").unlink()
    assert files(make_shards()) == whole
