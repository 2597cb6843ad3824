"""The measurement of a machine with a GPU, as far as a CPU shows it: the parts run, and fail one by one."""

import csv
import sys
import time

import pytest
import torch
from run_commands import ROOT, run

from dydiff_dist.benchmarks.gpu import parts, seconds_of

TOOL = [sys.executable, ROOT / "tools" / "bench_gpu.py", "--device", "cpu"]


def test_parts_leave_rows_with_their_machine(tmp_path):
    table = tmp_path / "rows.csv"
    done = run([*TOOL, "--only", "ceilings", "network-tiny", "--csv", table], timeout=300)
    assert done.returncode == 0, done.stderr
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    names = {(row["part"], row["name"]): row for row in rows}
    assert {("ceilings", "copy"), ("network-tiny", "network tiny"), ("network-tiny", "taken")} <= set(names)
    assert not [row for row in rows if row["name"] == "failed"], done.stdout
    assert all(float(row["value"]) > 0 and row["torch"] and row["commit"] for row in rows)
    again = run([*TOOL, "--only", "ceilings", "--csv", table], timeout=300)
    assert again.returncode == 0 and table.read_text().count("device") == 1  # one head, more rows


@pytest.mark.long
def test_every_part_runs(tmp_path):
    done = run([*TOOL, "--csv", tmp_path / "rows.csv", "--budget", "2000"], timeout=2400)
    assert done.returncode == 0, done.stderr
    failed = [line for line in done.stdout.splitlines() if " failed " in line]
    # compiling for the CPU takes a C++ compiler and may take longer than the part is given
    assert all("compiled" in line for line in failed), done.stdout


def test_one_part_that_is_too_slow_spoils_no_other(tmp_path):
    only = ["--only", "network-tiny", "ceilings", "--budget", "1.05"]  # less than it takes to import torch and to start
    done = run([*TOOL, *only, "--csv", tmp_path / "rows.csv"], timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not done after 1 s" in done.stdout and "the budget is spent" in done.stdout


def test_unknown_parts_are_named():
    done = run([*TOOL, "--only", "kernel"])
    assert done.returncode == 2 and "no part is called 'kernel'; there are checks, ceilings" in done.stderr


def test_gpus_are_given_less_time_than_six_minutes_for_what_must_be_known():
    limits = {name: limit for name, (_, limit) in parts("cuda").items()}
    assert sum(limits[name] for name in ("ceilings", "kernels", "network-XL", "trainer-XL", "sampling")) <= 240


def test_time_is_that_of_one_call():
    assert 0.01 <= seconds_of(lambda: time.sleep(0.01), torch.device("cpu")) < 0.1
