"""Turns, readings, and the command that takes them."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dydiff_dist.benchmarks.turns import in_turn, ratios, spread, timed
from dydiff_dist.data.convert import convert
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def test_contestants_take_turns_from_both_ends_and_warm_up_does_not_count():
    heard = []
    rounds = {name: lambda name=name: heard.append(name) or len(heard) for name in "ab"}
    assert in_turn(rounds, 2, warm_up_rounds=1) == {"a": [3, 6], "b": [4, 5]}
    assert "".join(heard) == "baabba"


def test_ratios_are_of_one_round_and_a_single_reading_has_a_spread():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert spread([2.5]) == (2.5, 2.5, 2.5)


def test_work_is_timed_by_the_clock_and_by_the_processor():
    seconds = timed(lambda: sum(range(200_000)), torch.device("cpu"))
    assert seconds.wall > 0 and seconds.cpu > 0


@pytest.mark.slow
def test_the_command_measures_the_reading_of_shards_and_writes_the_rows(tmp_path):
    flow = TurbulenceConfig(resolution=16, spin_up_frames=1, steps_per_frame=2, force_max_wavenumber=5.0)
    config = TurbulenceSourceConfig(train=32, valid=0, test=0, num_frames=4, flow=flow)
    convert(TurbulenceSource(config), tmp_path / "shards")
    options = ["--workers", "0", "--num-samples", "32", "--repetitions", "2", "--csv", tmp_path / "rows.csv"]
    command = [sys.executable, "tools/bench.py", "data", tmp_path / "shards" / "train", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=REPOSITORY, timeout=240)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["reader"] for row in rows] == ["webdataset", "dydiff_dist", "cat of the tars"]
    assert rows[0]["of_webdataset"] == "1.0" and all(float(row["samples_per_sec_median"]) > 0 for row in rows)
