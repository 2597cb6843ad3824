"""One self-contained HTML page of scores and animated cases, for one run or several side by side.

The page holds everything itself: no network, no server, any browser. What it needs is written beside the scores:
``scores.json``, and ``cases/`` with a strip of frames (PNG, frames from left to right) per case and row, or of time
series with their truth and quantiles.
"""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dydiff_dist.evaluation.calibration import calibration_suite, describe_calibration
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import FieldStyle
from dydiff_dist.evaluation.comparison import compare, num_independent, protocol_differences
from dydiff_dist.evaluation.evaluate import FORECAST
from dydiff_dist.evaluation.fields import blockiness_suite, flow_suite, image_suite, spectrum_suite
from dydiff_dist.evaluation.figures import channel_name
from dydiff_dist.evaluation.resampling import FEW_GROUPS
from dydiff_dist.evaluation.score_files import SERIES_NAME, STRIPS_NAME, ScoredRun, write_shown_cases
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import base_suite, ensemble_suite
from dydiff_dist.files import write_bytes, write_text

MAX_FRAME_PIXELS = 160
"""Wider frames are shrunk, to keep the page small."""
MAX_SERIES_SHOWN = 8


def write_strips(cases: list[ForecastCase], style: FieldStyle, folder: Path) -> Path:
    """Writes the strips of truth, ensemble mean and two members of some cases to ``folder/cases``, in this style."""
    path = folder / STRIPS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for case in cases:
        futures = case.shown_futures().items()
        shown = {label: style.show(np.concatenate([case.history, future])) for label, future in futures}
        limits = style.limits(shown["truth"])
        rows, size = [], {}
        for label, fields in shown.items():
            frames = [_shrunk(frame) for frame in style.rgb(fields, limits)]
            name = f"case_{case.number:06d}_{label.replace(' ', '_')}.png"
            picture = BytesIO()
            Image.fromarray(np.concatenate(frames, axis=1)).save(picture, format="PNG", optimize=True)
            write_bytes(path.parent / name, picture.getvalue())
            rows.append({"label": label, "file": name})
            size = {"num_frames": len(frames), "height": frames[0].shape[0], "width": frames[0].shape[1]}
        records.append(_record(case) | {"rows": rows} | size)
    write_shown_cases(path, records)
    return path


def write_series(cases: list[ForecastCase], channels: tuple[str, ...], folder: Path) -> Path:
    """Writes the given and true values of some cases of time series (frames of one pixel) with the members' median and
    90 % band, for at most 8 channels each, to ``folder/cases``."""
    path = folder / SERIES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for case in cases:
        shown = []
        for channel in range(min(case.truth.shape[1], MAX_SERIES_SHOWN)):
            lower, median, upper = np.quantile(case.members[:, :, channel, 0, 0], (0.05, 0.5, 0.95), axis=0)
            actual = np.concatenate([case.history, case.truth])[:, channel, 0, 0]
            values = {"actual": actual, "median": median, "lower": lower, "upper": upper}
            shown.append({"name": channel_name(channels, channel)} | {key: x.tolist() for key, x in values.items()})
        records.append(_record(case) | {"channels": shown})
    write_shown_cases(path, records)
    return path


def _record(case: ForecastCase) -> dict[str, Any]:
    return {"number": case.number, "key": case.key, "num_given": len(case.history)}


def write_report(runs: list[ScoredRun], path: str | Path, title: str = "Forecast report") -> Path:
    """Writes the page.

    Args:
        runs: one or several; baselines are the first one's.
        path: of the HTML file.
        title: of the page.

    Raises:
        FileNotFoundError, ValueError: scores that are missing, damaged or empty, or a label given twice.
    """
    labels = [run.label for run in runs]
    if len(set(labels)) != len(labels):
        raise ValueError(f"two runs are called {max(labels, key=labels.count)!r}; give each its own label")
    summaries = [run.summary() for run in runs]
    payload = {
        "title": title,
        "runs": [{"label": label, "summary": summary} for label, summary in zip(labels, summaries, strict=True)],
        "cases": _merged_cases(runs),
        "series": _merged_series(runs),
        "groups": _groups(summaries),
        "comparisons": [asdict(compare(runs[0], run)) for run in runs[1:]],
        "warnings": _warnings(labels, summaries),
        "calibration": [_calibration(summary) for summary in summaries],
    }
    page = files("dydiff_dist.evaluation") / "report_page"
    text = (page / "page.html").read_text()
    # "<" could end the script element early; as an escape it means the same to JSON
    data = json.dumps(payload, allow_nan=False).replace("<", "\\u003c")
    for mark, content in (
        ("/*STYLE*/", (page / "style.css").read_text()),
        ("/*SCRIPT*/", (page / "report.js").read_text()),
        ("/*DATA*/", data),
    ):
        text = text.replace(mark, content, 1)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _shared_cases(runs: list[ScoredRun], name: str, length: Callable[[dict], int]) -> Iterator[list[dict]]:
    """Each case that every run shows with the same length, as each run shows it."""
    first, *others = ({(case["number"], case["key"]): case for case in run.shown_cases(name)} for run in runs)
    for identity, case in first.items():
        found = [case, *(cases[identity] for cases in others if identity in cases)]
        if len(found) == len(runs) and len({length(each) for each in found}) == 1:
            yield found


def _merged_cases(runs: list[ScoredRun]) -> list[dict]:
    """Cases that every run has, with the truth once and each run's own rows."""
    merged = []
    for cases in _shared_cases(runs, STRIPS_NAME, lambda case: case["num_frames"]):
        rows: list[dict] = []
        for run, case in zip(runs, cases, strict=True):
            for row in case["rows"]:
                is_truth = row["label"] == "truth"
                if is_truth and rows:
                    continue
                picture = ((run.folder / STRIPS_NAME).parent / Path(row["file"]).name).read_bytes()
                source = "data:image/png;base64," + base64.b64encode(picture).decode()
                rows.append({"label": row["label"], "run": None if is_truth else run.label, "src": source})
        merged.append({**cases[0], "rows": rows})
    return merged


def _merged_series(runs: list[ScoredRun]) -> list[dict]:
    """Time series that every run has, with the truth once and each run's own quantiles."""
    merged = []
    for cases in _shared_cases(runs, SERIES_NAME, lambda case: len(case["channels"])):
        channels = [
            {"name": of_runs[0]["name"], "actual": of_runs[0]["actual"], "runs": list(of_runs)}
            for of_runs in zip(*(case["channels"] for case in cases), strict=True)
        ]
        merged.append({**cases[0], "channels": channels})
    return merged


def _groups(summaries: list[dict]) -> dict[str, list[str]]:
    """Names of scores under the title of their suite, in a fixed order."""
    present = {name for summary in summaries for name in summary["scores"][FORECAST]}
    known = {
        "Ensemble": (*base_suite().scores, *ensemble_suite().scores),
        "Calibration": (
            *calibration_suite().scores,
            *(name for name in summaries[0]["scores"][FORECAST] if name.startswith("brier_")),
        ),
        "Fields": (
            *spectrum_suite(True).scores,
            *blockiness_suite(2).scores,
            *flow_suite(0, 1, True).scores,
            *(name for name in summaries[0]["scores"][FORECAST] if name.startswith("vrmse")),
        ),
        "Images": (*image_suite(255.0).scores, "lpips", "lpips_best_member", "fvd"),
        "Series": series_suite().scores,
        "Globe": tuple(name for name in summaries[0]["scores"][FORECAST] if name.startswith("lat_weighted_")),
    }
    groups = {title: [name for name in names if name in present] for title, names in known.items()}
    named = {name for names in groups.values() for name in names}
    groups["Rain"] = [name for name in summaries[0]["scores"][FORECAST] if name not in named]
    return {title: names for title, names in groups.items() if names}


def _calibration(summary: dict) -> str:
    """What its coverage says of a run, in a sentence; empty where it was not scored."""
    num_members = summary["protocol"].get("num_members", 0)
    return describe_calibration(summary["scores"][FORECAST], num_members, num_independent(summary), FEW_GROUPS)


def _warnings(labels: list[str], summaries: list[dict]) -> list[str]:
    """What a reader must know before reading: protocols that differ, cases that were not scored."""
    warnings = []
    for label, summary in zip(labels, summaries, strict=True):
        differences = protocol_differences(summaries[0]["protocol"], summary["protocol"])
        if differences:
            warnings.append(
                f"{labels[0]} and {label} were not scored alike, their numbers don't compare: {'; '.join(differences)}"
            )
        if summary["errors"]:
            first = next(iter(summary["errors"].values()))
            warnings.append(
                f"{label}: {len(summary['errors'])} cases could not be scored and are in no number; the first: {first}"
            )
    return warnings


def _shrunk(frame: np.ndarray) -> np.ndarray:
    """The frame at no more than ``MAX_FRAME_PIXELS`` wide."""
    height, width = frame.shape[:2]
    if width <= MAX_FRAME_PIXELS:
        return frame
    size = (MAX_FRAME_PIXELS, round(height * MAX_FRAME_PIXELS / width))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
