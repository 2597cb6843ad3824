"""Samplings tried on validation cases: scores, what they cost, and the choice."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dydiff_dist.evaluation import evaluate
from dydiff_dist.forecasting import CaseReader, SamplingConfig, forecast_case, load_forecaster
from dydiff_dist.forecasting.sweep import Measured, Trial, best_for_its_cost, frontier

REPOSITORY = Path(__file__).resolve().parents[2]


def _found(seconds: float, crps: float, num_members: int = 4) -> Measured:
    return Measured(SamplingConfig(), num_members, seconds, {"crps": crps})


def test_smaller_ensembles_are_parts_of_the_largest_and_scored_as_if_alone(flow_model, flow_shards) -> None:
    forecaster = load_forecaster(flow_model, device="cpu")
    reader = CaseReader.for_model(flow_model, flow_shards / "test")
    cases, sampling = [reader.read(number) for number in (0, 3)], SamplingConfig(sampler="euler", num_steps=2)
    times = iter([10.0, 22.0])
    found = Trial(forecaster, cases).measure(sampling, [6, 3], clock=lambda: next(times))
    assert [each.num_members for each in found] == [3, 6]
    assert [each.seconds_per_member for each in found] == [1.0, 1.0]  # 12 s for 2 cases of 6 members
    assert [each.seconds_per_case for each in found] == [3.0, 6.0]
    alone = load_forecaster(flow_model, device="cpu", sampling=sampling)
    for each in found:
        forecasts = [forecast_case(alone, case, num_members=each.num_members) for case in cases]
        overall = evaluate(forecasts).overall("forecast")
        # batches of other sizes differ by the network's rounding
        assert each.scores["crps"] == pytest.approx(overall["crps"], rel=1e-4)
        assert each.scores["spread_skill_ratio"] == pytest.approx(overall["spread_skill_ratio"], rel=1e-4)


def test_cases_that_give_no_score_are_named(flow_model, flow_shards) -> None:
    forecaster = load_forecaster(flow_model, device="cpu")
    reader = CaseReader.for_model(flow_model, flow_shards / "test")
    trial = Trial.on(reader, 2, forecaster)
    assert [case.number for case in trial.cases] == [0, 2] and trial.suites[0].name == "spectrum"
    with pytest.raises(ValueError, match="num_cases is 0; try on at least 1"):
        Trial.on(reader, 0, forecaster)
    unknown = replace(trial.cases[1], truth=trial.cases[1].truth * np.nan)
    with pytest.raises(ValueError, match=r"case 2 \(.*\): 2048 of 2048 values of the truth are NaN or infinite"):
        Trial(forecaster, [trial.cases[0], unknown]).measure(SamplingConfig(num_steps=1), [2])


def test_the_cheapest_within_one_percent_of_the_best_is_chosen() -> None:
    found = [_found(1.0, 2.0), _found(2.0, 1.005), _found(4.0, 1.0), _found(3.0, 1.02), _found(1.5, 1.008, 8)]
    assert best_for_its_cost(found) == found[1]  # 8 s a case; with 8 members it is 12 s
    assert frontier(found) == [found[0], found[1], found[2]]


@pytest.mark.slow
def test_the_command_line_chooses_on_some_cases_and_reports_on_others(flow_model, flow_shards, tmp_path) -> None:
    command = [sys.executable, "tools/sweep.py", flow_model, "--shards", flow_shards / "train"]
    command += ["--test", flow_shards / "test", "--out", tmp_path, "--samplers", "euler", "ancestral"]
    command += ["--steps", "1", "3", "5000", "--members", "2", "4", "--cases", "2", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"left out: \w+ in 5000 steps: ", done.stdout)) == 2
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 and (tmp_path / "sweep.png").is_file()
    best = min(float(row["crps"]) for row in rows)
    good = [row for row in rows if float(row["crps"]) <= 1.01 * best]
    cheapest = min(good, key=lambda row: float(row["sec_per_case"]))
    section = json.loads(re.search(r"\{\n.*\n\}\n", done.stdout, re.S)[0])
    chosen = SamplingConfig.model_validate(section["sampling"])
    assert (chosen.sampler, str(chosen.num_steps)) == (cheapest["sampler"], cheapest["steps"])
    assert f"with {cheapest['members']} members:" in done.stdout
    told = done.stdout.split("on test cases, the chosen setting and the run's own:\n")[1].splitlines()
    assert len(told) == 3 and np.isfinite(float(told[1].split()[3]))
    refused = [sys.executable, "tools/sweep.py", flow_model, "--shards", flow_shards / "test", "--out", tmp_path]
    done = subprocess.run(list(map(str, refused)), capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 2 and "holds test cases; choose on validation cases" in done.stderr
