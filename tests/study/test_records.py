"""Tables grow by what is run; what was run before, here or elsewhere, stays as long as the study names it."""

import numpy as np
import pytest

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.fields import blockiness_suite
from dydiff_dist.study import records
from dydiff_dist.study.records import CaseRow, read_case_rows, read_run_rows, update_tables
from dydiff_dist.study.scored import CaseTable


def run_rows(*arms: str, crps: float = 1.0) -> list[dict]:
    return [{"arm": arm, "seed": 0, "forecast": "main", "crps": crps} for arm in arms]


def case_rows(*arms: str, crps: float = 1.0, num_cases: int = 2) -> list[CaseRow]:
    return [
        CaseRow(arm, seed, "main", "crps", "value", case, f"case{case}", np.array([crps, crps]))
        for own in arms
        for arm, seed in ((own, 0), ("persistence", -1))
        for case in range(num_cases)
    ]


PLANNED = {("a", 0, "main"), ("b", 0, "main")}


def test_rows_of_arms_that_were_not_run_stay(tmp_path):
    assert update_tables(tmp_path, "s", run_rows("a", "gone"), case_rows("a", "gone"), PLANNED) == 0
    assert update_tables(tmp_path, "s", run_rows("b"), case_rows("b"), PLANNED) == 1
    assert [row["arm"] for row in read_run_rows(tmp_path / "s_runs.csv")] == ["a", "b"]  # gone is not planned
    cases = [(row.arm, row.case) for row in read_case_rows(tmp_path / "s_cases.csv")]
    assert sorted(cases) == [(arm, case) for arm in ("a", "b", "persistence") for case in (0, 1)]


def test_new_rows_replace_all_old_ones_of_their_forecast(tmp_path):
    update_tables(tmp_path, "s", run_rows("a", "b"), case_rows("a", "b", num_cases=3), PLANNED)
    assert update_tables(tmp_path, "s", run_rows("a", crps=2.0), case_rows("a", crps=2.0), PLANNED) == 1
    assert [row["crps"] for row in read_run_rows(tmp_path / "s_runs.csv")] == ["2.0", "1.0"]
    cases = {(row.arm, row.case): row.leads[0] for row in read_case_rows(tmp_path / "s_cases.csv")}
    assert cases["a", 0] == cases["persistence", 0] == 2.0 and ("a", 2) not in cases
    assert cases["b", 2] == 1.0


def test_blockiness_is_formed_from_the_terms_that_are_kept():
    rng = np.random.default_rng(0)
    frames = [[rng.normal(size=(*n, 1, 8, 8)) for n in ((1,), (3,), (2, 3))] for _ in range(4)]
    cases = [ForecastCase(number, f"k-{number}", *three) for number, three in enumerate(frames)]
    evaluation = evaluate(cases, suites=[blockiness_suite(4)])
    rows = records.case_rows(evaluation, ["crps", "blockiness"], arm="a", seed=0, forecast="main")
    scored = CaseTable(rows, "case").scored("a", "main", "blockiness")
    assert scored.mean() == pytest.approx(float(evaluation.overall("forecast")["blockiness"]), rel=1e-12)
