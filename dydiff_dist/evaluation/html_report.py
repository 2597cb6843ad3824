"""One self-contained HTML page of scores and animated cases, for one run or several side by side.

The page holds everything itself: no network, no server, any browser. What it needs is written beside the scores:
``scores.json``, and ``cases/`` with a strip of frames (PNG, frames from left to right) per case and row, or of time
series with their truth and quantiles.
"""

import base64
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import FieldStyle
from dydiff_dist.evaluation.comparison import compare
from dydiff_dist.evaluation.fields import flow_suite, image_suite, spectrum_suite
from dydiff_dist.evaluation.score_files import protocol_differences
from dydiff_dist.evaluation.scored_run import SERIES_NAME, STRIPS_FOLDER, STRIPS_NAME, ScoredRun
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import base_suite, ensemble_suite
from dydiff_dist.files import write_json, write_text

MAX_FRAME_PIXELS = 160
"""Wider frames are shrunk, to keep the page small."""
NUM_MEMBERS_SHOWN = 2
MAX_SERIES_SHOWN = 8
_PAGE = "report_page"


def write_strips(cases: list[ForecastCase], style: FieldStyle, folder: Path) -> Path:
    """Writes the strips of truth, ensemble mean and two members of some cases to ``folder/cases``."""
    target = folder / STRIPS_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    records = []
    for case in cases:
        rows = {"truth": case.truth, "ensemble mean": case.members.mean(axis=0)}
        rows |= {f"member {m + 1}": case.members[m] for m in range(min(NUM_MEMBERS_SHOWN, len(case.members)))}
        shown = {label: style.show(np.concatenate([case.history, future])) for label, future in rows.items()}
        limits = style.limits(shown["truth"])
        record = {"number": case.number, "key": case.key, "num_given": len(case.history), "rows": []}
        for label, fields in shown.items():
            frames = [_shrunk(frame) for frame in style.rgb(fields, limits)]
            name = f"case_{case.number:06d}_{label.replace(' ', '_')}.png"
            Image.fromarray(np.concatenate(frames, axis=1)).save(target / name, optimize=True)
            record["rows"].append({"label": label, "file": name})
            record |= {"num_frames": len(frames), "height": frames[0].shape[0], "width": frames[0].shape[1]}
        records.append(record)
    path = target / STRIPS_NAME
    write_json(path, records)
    return path


def write_series(cases: list[ForecastCase], channels: tuple[str, ...], folder: Path) -> Path:
    """Writes the given and true values of some cases of time series (frames of one pixel) with the members' median and
    90 % band, for at most 8 channels each, to ``folder/cases``."""
    records = []
    for case in cases:
        record = {"number": case.number, "key": case.key, "num_given": len(case.history), "channels": []}
        for channel in range(min(case.truth.shape[1], MAX_SERIES_SHOWN)):
            lower, median, upper = np.quantile(case.members[:, :, channel, 0, 0], (0.05, 0.5, 0.95), axis=0)
            actual = np.concatenate([case.history, case.truth])[:, channel, 0, 0]
            values = {"actual": actual, "median": median, "lower": lower, "upper": upper}
            name = channels[channel] if channel < len(channels) else f"channel {channel}"
            record["channels"].append({"name": name} | {key: x.tolist() for key, x in values.items()})
        records.append(record)
    path = folder / STRIPS_FOLDER / SERIES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, records, indent=None)
    return path


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
        "comparisons": [compare(runs[0], run).to_json() for run in runs[1:]],
        "warnings": _warnings(labels, summaries),
    }
    page = files("dydiff_dist.evaluation") / _PAGE
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


def _merged_cases(runs: list[ScoredRun]) -> list[dict]:
    """Cases that every run has, with the truth once and each run's own rows."""
    by_run = [{(case["number"], case["key"]): case for case in run.strips()} for run in runs]
    merged = []
    for identity, first in by_run[0].items():
        others = [cases.get(identity) for cases in by_run]
        if any(other is None or other["num_frames"] != first["num_frames"] for other in others):
            continue
        rows = []
        for run, case in zip(runs, others, strict=True):
            for row in case["rows"]:
                if row["label"] == "truth" and rows:
                    continue
                source = _data_uri(run.folder / STRIPS_FOLDER / Path(row["file"]).name)
                owner = None if row["label"] == "truth" else run.label
                rows.append({"label": row["label"], "run": owner, "src": source})
        merged.append({**first, "rows": rows})
    return merged


def _merged_series(runs: list[ScoredRun]) -> list[dict]:
    """Time series that every run has, with the truth once and each run's own quantiles."""
    by_run = [{(case["number"], case["key"]): case for case in run.series()} for run in runs]
    merged = []
    for identity, first in by_run[0].items():
        others = [cases.get(identity) for cases in by_run]
        if any(other is None or len(other["channels"]) != len(first["channels"]) for other in others):
            continue
        channels = [
            {
                "name": channel["name"],
                "actual": channel["actual"],
                "runs": [other["channels"][index] for other in others],
            }
            for index, channel in enumerate(first["channels"])
        ]
        merged.append({**first, "channels": channels})
    return merged


def _groups(summaries: list[dict]) -> dict[str, list[str]]:
    """Names of scores under the title of their suite, in a fixed order."""
    present = {name for summary in summaries for name in summary["scores"]["forecast"]}
    known = {
        "Ensemble": (*base_suite().scores, *ensemble_suite().scores),
        "Fields": (*spectrum_suite(True).scores, *flow_suite(0, 1, True).scores),
        "Images": (*image_suite(255.0).scores, "lpips", "lpips_best_member", "fvd"),
        "Series": series_suite().scores,
    }
    groups = {title: [name for name in names if name in present] for title, names in known.items()}
    named = {name for names in groups.values() for name in names}
    rain = [name for name in summaries[0]["scores"]["forecast"] if name not in named]
    return {title: names for title, names in (groups | {"Rain": rain}).items() if names}


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


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
