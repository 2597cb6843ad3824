"""A whole tiny study by its command line: done once, resumed, and not lost with one broken arm."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_commands import ROOT, environment, run

pytestmark = pytest.mark.slow


def study_command(path: Path, folder: Path, *options: str) -> list[str]:
    """tools/study.py with everything it writes below ``folder``."""
    where = ["--runs", folder / "runs", "--out", folder / "study", "--page-file", folder / "study.md"]
    words = [sys.executable, ROOT / "tools" / "study.py", path, *where, "--images", folder / "images", *options]
    return [str(word) for word in words]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_from_configuration_to_page(study_tree, tmp_path):
    study_tree["arms"]["broken"] = {"set": {"training.learning_rate": 1e30, "training.steps": 20}}
    study_tree["set"] = {"training.log_every_steps": 1}
    study_tree["scores"] = ["crps", "blockiness"]
    study_tree["columns"] = ["coverage_range", "coverage_80", "log_spectral_distance_db", "forecast_cpu_sec_per_member"]
    fewstep = {"sampling.num_steps": 1, "sampling.spacing": "trailing", "training.conditioning_dropout": 0}
    study_tree["arms"]["few"] = {"label": "one step", "task": "fewstep", "init_from": "a", "set": fewstep}
    study_tree["comparisons"][0]["against"].append("few")
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(study_tree))
    first = run(study_command(path, tmp_path))
    assert first.returncode == 1, first.stderr
    assert "failed: tiny, broken seed 0: exit status" in first.stdout and "Traceback" not in first.stderr
    runs = rows(tmp_path / "study" / "tiny_runs.csv")
    assert [(row["arm"], row["seed"]) for row in runs] == [("a", "0"), ("b", "0"), ("few", "0")]
    assert [row["sampler_steps"] for row in runs] == ["2", "2", "1"]
    assert all(0 <= float(row["coverage_range"]) <= 1 for row in runs)
    assert all(float(row[name]) > 0 for name in study_tree["columns"][2:] for row in runs)
    assert all("coverage_80" not in row for row in runs)  # which two members can't have
    assert all(len(row["run_hash"]) == 12 and row["torch"] and float(row["train_cpu_sec"]) > 0 for row in runs)
    cases = rows(tmp_path / "study" / "tiny_cases.csv")
    by_arm = {arm: [float(r["lead_2"]) for r in cases if (r["arm"], r["score"]) == (arm, "crps")] for arm in "ab"}
    assert len(by_arm["a"]) == 3 and by_arm["a"] != by_arm["b"]
    persistence = [(r["score"], r["part"]) for r in cases if r["arm"] == "persistence"]
    # of three cases each, once, not once a run
    assert sorted(persistence) == sorted(3 * [("crps", "value"), ("blockiness", "value"), ("blockiness", "scale")])

    del study_tree["arms"]["broken"]
    path.write_text(json.dumps(study_tree))
    before = (tmp_path / "study" / "tiny_cases.csv").read_bytes()
    again = run(study_command(path, tmp_path))
    assert again.returncode == 0 and "train" not in again.stdout.split("\n", 1)[1]
    assert (tmp_path / "study" / "tiny_cases.csv").read_bytes() == before

    page = run(study_command(path, tmp_path, "--page"))
    assert page.returncode == 0, page.stderr
    text = (tmp_path / "study.md").read_text()
    assert "| DyDiff | 1 |" in text and "| one step | 1 |" in text and "| blockiness (1: no edges) |" in text
    assert all(float(row["blockiness"]) > 0 for row in runs)


@pytest.mark.distributed
def test_a_study_that_is_killed_leaves_no_training(study_tree, tmp_path):
    study_tree["set"] = {"training.steps": 100_000, "training.log_every_steps": 1, "training.global_batch_size": 4}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(study_tree))
    command = study_command(path, tmp_path, "--arms", "b", "--processes", "2")
    study = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 240
        while not any("step 2/" in log.read_text() for log in (tmp_path / "runs").rglob("train.log")):
            assert time.monotonic() < deadline and study.poll() is None
            time.sleep(0.1)
        family = psutil.Process(study.pid).children(recursive=True)
        study.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(family, 90)
        (log,) = (each.read_text() for each in (tmp_path / "runs").rglob("train.log"))
        assert not alive, log
        assert log.count(f"process {study.pid}, which started this run, is gone; saving and leaving") == 1, log
        assert "stopped by SIGTERM after step" in log and list((tmp_path / "runs").rglob("complete.json"))
    finally:
        for process in [study, *family]:
            if psutil.pid_exists(process.pid):
                process.kill()
        study.wait()
