"""The command lines as two tasks of one Slurm job step, which only Slurm's variables tell apart."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from dydiff_dist.forecasting import ForecastStore

REPOSITORY = Path(__file__).resolve().parents[2]


def srun(*arguments) -> list[str]:
    """Output of both tasks."""
    job = str(secrets.randbelow(10**6))
    tasks = []
    for rank in range(2):
        slurm = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2"}
        slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
        slurm |= {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0"}
        command = [sys.executable, *map(str, arguments)]
        tasks.append(
            subprocess.Popen(
                command, env={**os.environ, **slurm}, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    outputs = [task.communicate(timeout=120)[0].decode() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    return outputs


@pytest.mark.long
@pytest.mark.distributed
def test_two_tasks_share_the_cases(flow_model, flow_shards, tmp_path):
    out, scores = tmp_path / "forecasts", tmp_path / "scores"
    shards = ("--shards", flow_shards / "test", "--members", 2, "--device", "cpu")
    first, second = srun("tools/forecast.py", flow_model, *shards, "--out", out)
    assert "5 cases x 2 members" in first and "cases x" not in second, "both believe to be the first"
    assert ForecastStore.open(out).cases() == [0, 1, 2, 3, 4]
    assert not list(out.rglob("*.partial"))
    again, _ = srun("tools/forecast.py", flow_model, *shards, "--out", out)
    assert "5 are there already" in again
    first, second = srun("tools/evaluate.py", out, "--out", scores)
    assert "5 cases" in first and "scores.json" in first and "scores.json" not in second
    assert (scores / "scores.json").is_file()
