"""The report page: what it holds, and that a browser draws it without network, on a phone and in the dark."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dydiff_dist.evaluation import ForecastCase, SeasonalNaive, evaluate
from dydiff_dist.evaluation.baselines import Baseline
from dydiff_dist.evaluation.calibration import Climate, calibration_suite
from dydiff_dist.evaluation.colors import field_style
from dydiff_dist.evaluation.fields import spectrum_suite
from dydiff_dist.evaluation.html_report import write_report, write_series, write_strips
from dydiff_dist.evaluation.rain import RainProtocol, rain_suite
from dydiff_dist.evaluation.score_files import ScoredRun, write_scores
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import ensemble_suite
from dydiff_dist.files import seal

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _scored(folder: Path, num_members: int = 3, seed: int = 0) -> ScoredRun:
    """A run of three cases of rain, 4 + 5 frames of 24x20."""
    rng = np.random.default_rng(seed)

    def case(number: int) -> ForecastCase:
        truth = np.random.default_rng(number).uniform(0, 200, (5, 1, 24, 20))
        members = truth + rng.normal(0, 30, (num_members, *truth.shape))
        return ForecastCase(number, f"event <{number}> & more", truth[:4], truth, members)

    cases = [case(number) for number in range(3)]
    protocol = RainProtocol(thresholds=(74.0, 230.0))
    calibration = calibration_suite(Climate((100.0,), (60.0,)), protocol.thresholds)
    suites = [ensemble_suite(pools=(2,)), calibration, spectrum_suite(False), rain_suite(protocol)]
    evaluation = evaluate(cases, suites=suites)
    write_scores(evaluation, folder)
    write_strips(cases, field_style(1, channels=("vil",)), folder)
    return ScoredRun(f"run {seed}", folder)


def _payload(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_the_page_stands_alone_and_holds_scores_and_frames(tmp_path) -> None:
    page = write_report([_scored(tmp_path)], tmp_path / "report.html", "A title")
    text = page.read_text()
    assert not re.search(r'(src|href)\s*=\s*["\'](https?:)?//|url\(|@import|fetch\(', text)
    payload = _payload(page)
    assert seal(payload["runs"][0]["summary"]) == json.loads((tmp_path / "scores.json").read_text())
    assert [case["key"] for case in payload["cases"]] == [f"event <{number}> & more" for number in range(3)]
    assert [row["label"] for row in payload["cases"][0]["rows"]] == ["truth", "ensemble mean", "member 1", "member 2"]
    assert set(payload["groups"]) == {"Ensemble", "Calibration", "Fields", "Rain"}
    assert {"coverage_50", "brier_74", "brier_skill_230"} <= set(payload["groups"]["Calibration"])
    (sentence,) = payload["calibration"]
    assert re.fullmatch(r"50 % intervals hold \d+ % of the truth, 50 % would be right; 3 independent .*", sentence)


def test_strips_hold_the_frames_from_left_to_right(tmp_path) -> None:
    _scored(tmp_path)
    record = json.loads((tmp_path / "cases" / "strips.json").read_text())["cases"][0]
    assert (record["num_given"], record["num_frames"], record["width"], record["height"]) == (4, 9, 20, 24)
    with Image.open(tmp_path / "cases" / record["rows"][0]["file"]) as strip:
        pixels = np.asarray(strip)
    assert pixels.shape == (24, 9 * 20, 3)
    np.testing.assert_array_equal(
        pixels[:, :20], pixels[:, 80:100]
    )  # first given frame and first truth frame are equal


def test_several_runs_share_the_truth_and_are_warned_about(tmp_path) -> None:
    runs = [_scored(tmp_path / "a"), _scored(tmp_path / "b", num_members=2, seed=1)]
    payload = _payload(write_report(runs, tmp_path / "report.html"))
    rows = [(row["run"], row["label"]) for row in payload["cases"][0]["rows"]]
    own = ("ensemble mean", "member 1", "member 2")
    assert rows == [(None, "truth"), *(("run 0", row) for row in own), *(("run 1", row) for row in own)]
    assert payload["warnings"] == [
        "run 0 and run 1 were not scored alike, their numbers don't compare: num_members: 3 and 2"
    ]
    assert payload["comparisons"][0]["objections"] == ["protocol differs: num_members: 3 and 2"]
    with pytest.raises(ValueError, match="two runs are called 'run 0'"):
        write_report([runs[0], runs[0]], tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match=r"scores.json does not exist; run tools/evaluate.py first"):
        write_report([ScoredRun("c", tmp_path / "c")], tmp_path / "report.html")


def test_runs_that_were_scored_alike_are_compared_score_by_score(tmp_path) -> None:
    payload = _payload(write_report([_scored(tmp_path / "a"), _scored(tmp_path / "b", seed=1)], tmp_path / "r.html"))
    (comparison,) = payload["comparisons"]
    assert payload["warnings"] == [] and comparison["objections"] == []
    names = {score["score"] for score in comparison["scores"]}
    assert {"crps", "csi_74", "log_spectral_distance_db"} <= names
    assert "pod_230" not in names  # undefined: no pixel of the truth reaches it


def test_cases_that_were_not_scored_are_told_before_anything_else(tmp_path) -> None:
    run = _scored(tmp_path / "a")
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    scores["errors"] = {"7": "case 7: no such file"}
    (tmp_path / "a" / "scores.json").write_text(json.dumps(seal(scores)))
    payload = _payload(write_report([run], tmp_path / "r.html"))
    assert payload["warnings"] == [
        "run 0: 1 cases could not be scored and are in no number; the first: case 7: no such file"
    ]


def _scored_series(folder: Path, seed: int = 0) -> ScoredRun:
    """A run of two cases of time series, 6 + 4 times of 3 variates."""
    cases = []
    for number in range(2):
        truth = np.random.default_rng(number).normal(10, 1, (4, 3, 1, 1))
        members = truth + np.random.default_rng(seed).normal(0, 1, (20, *truth.shape))
        cases.append(ForecastCase(number, f"window {number}", np.full((6, 3, 1, 1), 10.0), truth, members))
    evaluation = evaluate(cases, SeasonalNaive(5), _Twice(), suites=[series_suite()])
    write_scores(evaluation, folder)
    write_series(cases, ("a", "b"), folder)
    return ScoredRun(f"run {seed}", folder)


class _Twice(Baseline):
    name = "twice_the_last"

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        return 2 * np.repeat(case.history[None, -1:], case.num_leads, axis=1)

    def protocol(self) -> dict:
        return {"forecast": "twice the last given frame"}


def test_time_series_are_shown_with_the_quantiles_of_every_run(tmp_path) -> None:
    runs = [_scored_series(tmp_path / "a"), _scored_series(tmp_path / "b", seed=1)]
    payload = _payload(write_report(runs, tmp_path / "report.html"))
    assert payload["cases"] == [] and set(payload["groups"]) == {"Ensemble", "Series"}
    shown = payload["series"][1]
    assert [channel["name"] for channel in shown["channels"]] == ["a", "b", "channel 2"]
    assert len(shown["channels"][0]["actual"]) == 10 and len(shown["channels"][0]["runs"]) == 2
    quantiles = shown["channels"][2]["runs"][1]
    bounds = (np.array(quantiles[name]) for name in ("lower", "median", "upper"))
    assert (np.diff(np.stack(list(bounds)), axis=0) > 0).all()


PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const canvas = [...document.querySelectorAll("#panels canvas")];
  const pixels = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  const lit = canvas.filter((c) => pixels(c).some((v, i) => i % 4 < 3 && v > 60));
  document.body.dataset.probe = JSON.stringify({
    panels: canvas.length, lit: lit.length, lines: document.querySelectorAll("#curve polyline").length,
    bars: document.querySelectorAll("#ranks rect").length, rows: document.querySelectorAll("#score-table tr").length,
    headline: [...document.querySelectorAll("#tiles tr")].map((row) => row.innerText.split("\\t")[0]),
    compared: document.querySelectorAll("#comparison-table tr").length,
    series: document.querySelectorAll("#series polyline").length,
    words: document.getElementById("calibration-words").innerText,
    coverage: document.querySelectorAll("#coverage polyline").length,
    spread_skill: document.querySelectorAll("#spread-skill polyline").length,
    reliability: document.querySelectorAll("#reliability polyline").length,
    kinds: [...document.querySelectorAll("#rank-kind option")].map((option) => option.innerText),
    strokes: [...document.querySelectorAll("#curve polyline")].map((line) => getComputedStyle(line).stroke),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor, width: innerWidth,
  });
}, 300));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium; Debian: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_it_without_network(tmp_path, dark: bool) -> None:
    other = replace(_scored(tmp_path / "b", seed=1), label="run 1, whose name is longer than a phone is wide")
    page = write_report([_scored(tmp_path / "a"), other], tmp_path / "report.html")
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    # a browser's own window is never as narrow as a phone, a frame in it is
    (tmp_path / "phone.html").write_text(f'<iframe src="{page.name}" style="width:375px;height:800px"></iframe>')
    wide = _probe(page, dark)
    assert wide["panels"] == wide["lit"] == 8  # the truth stands beside each of two runs
    headline = [
        "CRPS",
        "CRPS against run 0",
        "of the CRPS of persistence",
        "mean CSI",
        "spread over error (1 is ideal)",
    ]
    assert [text.strip() for text in wide["headline"][1:]] == headline
    assert wide["lines"] == 3 and wide["bars"] == 8 and wide["rows"] > 20 and wide["compared"] > 20
    # two runs and what is right; error and spread of two runs; two runs and the diagonal
    assert (wide["coverage"], wide["spread_skill"], wide["reliability"]) == (3, 4, 3)
    assert "run 0: 50 % intervals hold" in wide["words"] and f"{other.label}: 50 % intervals hold" in wide["words"]
    assert wide["kinds"] == ["ranks", "shares (PIT)", *(f"ranks, forecast values {n} of 3" for n in (1, 2, 3))]
    assert wide["overflow"] <= 0
    assert wide["background"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    narrow = _probe(tmp_path / "phone.html", dark)
    assert narrow["width"] == 375 and narrow["overflow"] <= 0 and narrow["lit"] == 8


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium; Debian: apt-get install chromium")
def test_a_browser_draws_time_series(tmp_path) -> None:
    runs = [_scored_series(tmp_path / "a"), _scored_series(tmp_path / "b", seed=1)]
    page = write_report(runs, tmp_path / "report.html")
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    found = _probe(page, dark=False)
    assert found["series"] == 3 * 3 and found["panels"] == 0  # a panel a variate: two runs and the truth
    # two runs, persistence, the seasonal naive forecast and a baseline of one's own, each in a colour
    assert found["overflow"] <= 0 and found["lines"] == 5 and "none" not in found["strokes"]


def _probe(page: Path, dark: bool) -> dict:
    """What the page found out about itself, once drawn."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    options += ["--allow-file-access-from-files", "--disable-web-security", "--host-resolver-rules=MAP * ~NOTFOUND"]
    if dark:
        options.append("--blink-settings=preferredColorScheme=0")
    if page.name == "phone.html":
        text = page.read_text()
        # copies the frame's findings to the outer page, which is the one that is printed
        copy = "document.body.dataset.probe = frames[0].document.body.dataset.probe"
        page.write_text(f"{text}<script>setTimeout(() => {{ {copy} }}, 2000)</script>")
    command = [BROWSER, *options, "--window-size=1100,900", f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
    found = re.search(r'data-probe="([^"]*)"', dump)
    assert found, dump[-2000:]
    return json.loads(found[1].replace("&quot;", '"'))
