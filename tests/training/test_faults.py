"""Two ranks, and something goes wrong on one of them."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_commands import ROOT, environment, run

FAULTY = Path(__file__).with_name("faulty_train.py")
PATIENCE = "training.faults.heartbeat_sec=0.5 training.faults.slow_after_sec=2 training.faults.exchange_timeout_sec=15"
COMMON = f"{PATIENCE} training.validate_every_steps=0".split()


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]


def losses(output: str) -> list[tuple[str, str]]:
    """(step, loss) of every line in the log."""
    return re.findall(r"^step (\d+)/\d+: loss ([\d.]+)", output, re.MULTILINE)


def error_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error:")]


@pytest.mark.long
@pytest.mark.distributed
def test_a_killed_rank_is_named_and_torchrun_goes_on_from_the_last_checkpoint(tiny_config):
    done = run([*torchrun("--max-restarts=1"), FAULTY, "kill", 1, 4, tiny_config, *COMMON])
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = error_lines(done.stderr)
    assert line.startswith("error: rank 1 (") and "has not been heard of" in line, line
    assert "resumed after step 3" in done.stdout and "model: " in done.stdout
    by_step = {step: [loss for each, loss in losses(done.stdout) if each == step] for step in "123456"}
    assert by_step["4"][0] == by_step["4"][1], "the second life of step 4 had other data or noise"
    assert all(by_step.values())


@pytest.mark.slow
@pytest.mark.distributed
def test_nan_on_one_rank_is_passed_over_by_all_and_then_rolled_back(tiny_config, tmp_path):
    policy = "training.nonfinite.max_in_a_row=2 training.nonfinite.action=rollback training.num_validation_cases=1"
    policy += " training.faults.exchange_timeout_sec=120"  # the rank without a case waits while the other one draws it
    done = run([*torchrun(), FAULTY, "nan", 1, "1,4,5", tiny_config, *PATIENCE.split(), *policy.split()])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batch 1 after step 1: loss or gradient not finite, skipped" in done.stdout
    assert "2 batches in a row" in done.stdout
    assert "rolled back to step 3; the data go on with batch 6" in done.stdout
    assert "validation CRPS" in done.stdout, "one case on two ranks"
    report = json.loads((tmp_path / "run" / "nonfinite" / "batch_000004.json").read_text())
    good, bad = report["ranks"]
    assert (report["after_step"], report["batch"]) == (3, 4)
    assert good["losses_finite"] and not bad["losses_finite"]
    assert [row["sample_index"] for row in good["samples"] + bad["samples"]] == [16, 17, 18, 19]
    assert bad["samples"][0]["loss/train"] == "nan" and bad["samples"][0]["key"].startswith("train-")
    assert json.loads((tmp_path / "run" / "nonfinite" / "rollback.json").read_text())["next_batch"] == 6


@pytest.mark.long
@pytest.mark.distributed
def test_a_rank_that_stalls_is_named_with_what_it_does_and_ends_the_run(tiny_config):
    start = time.monotonic()
    done = run([*torchrun(), FAULTY, "stall", 1, 2, tiny_config, *COMMON])
    assert done.returncode != 0
    assert re.search(r"slow: rank 1 \(.*\) is in the forward pass after step 2 for \d+ s; 1 of 2 ranks", done.stdout)
    (line,) = error_lines(done.stderr)
    assert line.startswith("error: rank 1 (") and "exchange_timeout_sec" in line, line
    assert time.monotonic() - start < 150


@pytest.mark.slow
@pytest.mark.distributed
def test_a_mistake_on_one_rank_ends_the_others_with_its_message(tiny_config):
    done = run([*torchrun(), FAULTY, "error", 1, 2, tiny_config, *COMMON])
    assert done.returncode != 0
    lines = error_lines(done.stderr)
    assert 1 <= len(lines) <= 2 and all("sample 7 of shard x.tar is damaged" in line for line in lines), done.stderr
    assert "dydiff_dist/" not in done.stderr, "a traceback"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_one_rank_saves_on_all(tiny_config, tmp_path):
    command = [*torchrun(), FAULTY, "none", 0, 0, tiny_config, *COMMON, "training.steps=100000"]
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        ranks = sorted(psutil.Process(process.pid).children(), key=lambda child: child.environ()["RANK"])
        ranks[1].send_signal(signal.SIGUSR1)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    stopped = re.search(r"stopped by SIGUSR1 after step (\d+); the same command resumes", rest)
    assert (tmp_path / "run" / "checkpoints" / f"step_{int(stopped[1]):06d}" / "complete.json").is_file()


@pytest.mark.slow
def test_bad_batches_in_a_row_stop_the_run(tiny_config):
    done = run([sys.executable, FAULTY, "nan", 0, "1,2", tiny_config, *COMMON, "training.nonfinite.max_in_a_row=2"])
    assert done.returncode == 2
    (line,) = error_lines(done.stderr)
    assert "2 batches in a row with a loss or gradient that is not finite, the last after step 1" in line
    assert "training.nonfinite.action=rollback" in line and "Traceback" not in done.stderr


def test_the_grace_time_ends_a_process_that_cannot_save():
    program = """
import os, signal, time
from dydiff_dist.ranks.signals import Interruption
with Interruption(0.3, lambda: "step_000003", reports=True):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    start = time.monotonic()
    done = run([sys.executable, "-c", program])
    assert done.returncode == 1 and time.monotonic() - start < 30
    assert done.stderr == (
        "error: the state was not saved within 0.3 s of SIGTERM (training.faults.grace_sec); the same command goes on "
        "from step_000003\n"
    )
