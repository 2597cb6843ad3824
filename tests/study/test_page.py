"""The page says what the tables say, and nothing else."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from dydiff_dist.study import page
from dydiff_dist.study.config import StudyConfig
from dydiff_dist.study.page import StudySection, write_page
from dydiff_dist.study.records import CaseRow, read_case_rows, read_run_rows, write_case_rows, write_run_rows


def tables(folder, ratio: float, forecasts=("main",), num_cases: int = 30, seeds=(0, 1)) -> None:
    """Tables of a study with arms a and b, where b's CRPS is ``ratio`` of a's in every case."""
    random = np.random.default_rng(0)
    rows, runs = [], []
    for forecast in forecasts:
        for arm, factor, of_arm in (("a", 1.0, seeds), ("b", ratio, seeds), ("persistence", 2.0, (-1,))):
            random = np.random.default_rng(0)
            values = random.uniform(1, 2, (num_cases, 3))
            for seed in of_arm:
                for case, leads in enumerate(values * factor):
                    key = f"event{case // 2}-{case % 2}"
                    rows += [
                        CaseRow(arm, seed, forecast, score, "value", case, key, leads) for score in ("crps", "mse")
                    ]
        for arm in ("a", "b"):
            run = {
                "arm": arm,
                "seed": 0,
                "forecast": forecast,
                "run_hash": arm,
                "steps": 5,
                "samples": 10,
                "passes": 10,
            }
            what = {"device": "cpu x86_64", "cases": num_cases, "members": 2, "sampler": "ddim"}
            runs.append({**run, **what, "sampler_steps": 4 if forecast == "main" else 8, "train_cpu_sec": 30})
    write_case_rows(folder / "tiny_cases.csv", rows)
    write_run_rows(folder / "tiny_runs.csv", runs)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.9, "**better**"), (1.0, "no clear difference"), (1.2, "**worse**")])
def test_the_verdict_is_that_of_the_rows(study_tree, tmp_path, ratio, verdict):
    tables(tmp_path / "study", ratio)
    study = StudyConfig.model_validate_json(json.dumps({**study_tree, "independent": "key_prefix"}))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| DyDiff"))
    assert row.endswith(f"| {verdict} |")
    assert f"{100 * (ratio - 1):+.1f} %" in row and f"| {ratio / 2:.3f} |" in row
    assert "over 15 groups of cases" in page and "0.5 CPU minutes" in page
    assert "(images/study_tiny_1.png)" in page and "(study/tiny_runs.csv)" in page
    assert imread(tmp_path / "images" / "study_tiny_1.png").std() > 0.05


def test_one_seed_decides_nothing(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9, seeds=(0,))
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| DyDiff"))
    assert "-10.0 %" in row and row.endswith("| one seed |")
    assert "over 30 cases only; with one seed nothing is known" in page


def test_below_ten_groups_of_cases_nothing_is_said(study_tree, tmp_path, monkeypatch):
    tables(tmp_path / "study", 0.9)
    study = StudyConfig.model_validate_json(json.dumps({**study_tree, "independent": "key_prefix"}))
    monkeypatch.setattr(page, "FEW_GROUPS", 16)
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    row = next(line for line in (tmp_path / "study.md").read_text().splitlines() if line.startswith("| DyDiff"))
    assert row.endswith("| 15 groups: nothing can be said |")


def test_the_summary_repeats_the_rows_that_belong_there(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    study_tree["comparisons"] += [{**study_tree["comparisons"][0], "title": "Again", "summary": True}]
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    lines = (tmp_path / "study.md").read_text().splitlines()
    (summary,) = (line for line in lines if line.startswith("| Tiny |"))
    below = [line for line in lines if line.startswith("| DyDiff |")]
    assert len(below) == 2 and lines.index(summary) < lines.index("## Tiny")
    assert summary.split("|")[-3:] == below[0].split("|")[-3:]  # difference and verdict
    assert summary.startswith("| Tiny | DyDiff | standard | 2 | -10.0 % [")
    assert (
        len([line for line in lines if line.startswith("| *persistence* |")]) == 1
    )  # once for the cases of a forecast


def test_columns_are_means_of_the_rows_by_run(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    path = tmp_path / "study" / "tiny_runs.csv"
    runs = read_run_rows(path)
    found = [
        {"coverage_80": value, "log_spectral_distance_db": 2 * seed + 1.5, "seed": seed} | ({"late": 7} if late else {})
        for value, seed, late in ((0.75, 0, True), (0.85, 1, True), (0.5, 0, False), (0.25, 1, True))
    ]
    both = [row for row in runs for _ in range(2)]
    write_run_rows(path, [row | more for row, more in zip(both, found, strict=True)])
    columns = ["coverage_80", "log_spectral_distance_db", "late", "train_cpu_sec", "nowhere"]
    study = StudyConfig.model_validate_json(json.dumps(study_tree | {"columns": columns}))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    lines = (tmp_path / "study.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| setting"))
    titles = "80 % intervals hold | log spectral distance [dB] | late | training [CPU seconds]"
    assert f"| {titles} | CRPS against" in header and "nowhere" not in header
    assert any(line.startswith("| standard |") and "| 80 % | 2.5 | 7 | 30 |" in line for line in lines)
    # of which a run lacks a value has no mean
    assert any(line.startswith("| DyDiff |") and "| 38 % | 2.5 | – | 30 |" in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_what_was_not_run_is_said(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    study_tree["arms"]["c"] = {"label": "third"}
    study_tree["comparisons"][0]["against"].append("c")
    study_tree["comparisons"].append({"title": "Third alone", "reference": "a", "against": ["c"]})
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text()
    assert "Not run: third." in page
    assert "### Third alone\n\nNot run yet." in page


def test_cost_curves_go_by_sampler_steps(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9, forecasts=("main", "long"))
    study_tree["forecasts"]["long"] = {"members": 2, "sampling": {"num_steps": 8}}
    study_tree["comparisons"] = [
        {"title": "Cost", "reference": "a/long", "against": ["a/main", "b/main", "b/long"], "curves": "cost"}
    ]
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    assert (tmp_path / "images" / "study_tiny_1.png").is_file()
    assert "| standard, main | 2 |" in (tmp_path / "study.md").read_text()


def test_rows_come_back_as_written(tmp_path):
    rows = [
        CaseRow("a", 3, "main", "crps", part, case, 'key, "quoted"', np.array([0.125, 1e-9, 12345.6]))
        for case in range(2)
        for part in ("value", "scale")
    ]
    write_case_rows(tmp_path / "cases.csv", rows)
    back = read_case_rows(tmp_path / "cases.csv")
    assert back == rows
    np.testing.assert_allclose(back[0].leads, rows[0].leads, rtol=1e-5)
    (tmp_path / "cases.csv").write_text("something,else\n1,2\n")
    with pytest.raises(ValueError, match="is not a table of scores by case"):
        read_case_rows(tmp_path / "cases.csv")


def test_a_missing_case_is_named(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    rows = [row for row in read_case_rows(tmp_path / "study" / "tiny_cases.csv") if (row.seed, row.case) != (1, 4)]
    write_case_rows(tmp_path / "study" / "tiny_cases.csv", rows)
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    with pytest.raises(ValueError, match="a seed 1, main: case 4 is missing"):
        write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")


def test_the_overhead_is_a_section_where_it_was_measured(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    what = {"config": "tiny", "overrides": "", "device": "cpu x86_64", "threads": 1, "load_1min": "0.1"}
    times = {"standard_ms": 100, "dydiff_ms": 101, "ratio": 1.0104, "ratio_p20": 1.0, "ratio_p80": 1.02}
    row = {**what, **times, "standard_mib": 50, "dydiff_mib": 50.4}
    write_run_rows(tmp_path / "study" / "overhead.csv", [row])
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
    page = (tmp_path / "study.md").read_text()
    assert "| tiny | cpu x86_64, 1 | 100.0 ms | 101.0 ms | 1.010 (1.000 to 1.020) | 50, 50 MiB | 0.1 |" in page
    assert "Not measured on a GPU." in page


def test_learning_curves_stand_at_the_head_once_there_are_two_budgets(study_tree, tmp_path):
    tables(tmp_path / "study", 0.9)
    runs = read_run_rows(tmp_path / "study" / "tiny_runs.csv")
    write_run_rows(tmp_path / "study" / "tiny_runs.csv", [{**r, "passes": 10 if r["arm"] == "a" else 40} for r in runs])

    def page(curves: dict) -> str:
        study = StudyConfig.model_validate_json(json.dumps({**study_tree, "learning_curves": curves}))
        write_page({"tiny": study}, tmp_path / "study", tmp_path / "study.md", tmp_path / "images")
        return (tmp_path / "study.md").read_text()

    assert "Learning curves" not in page({"one": ["a"]})
    text = page({"one": ["b", "a"]})
    assert text.index("(images/study_learning.png)") < text.index("## Tiny")
    assert imread(tmp_path / "images" / "study_learning.png").std() > 0.05
    section = StudySection(
        "tiny",
        StudyConfig.model_validate_json(json.dumps({**study_tree, "learning_curves": {"one": ["b", "a"]}})),
        tmp_path / "study",
    )
    (points,) = section.learning_curves().values()
    assert [passes for passes, _ in points] == [10, 40]
    assert (points[1][1] / points[0][1]).tolist() == pytest.approx([0.9, 0.9])
    with pytest.raises(ValueError, match=r"learning_curves\.one names 'c'"):
        page({"one": ["a", "c"]})
