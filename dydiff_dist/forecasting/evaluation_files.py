"""What an evaluation leaves behind: scores, pictures and the report page."""

from collections.abc import Sequence
from pathlib import Path

from dydiff_dist.evaluation import figures
from dydiff_dist.evaluation.animation import forecast_animation
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.evaluate import Evaluation
from dydiff_dist.evaluation.html_report import write_report, write_series, write_strips
from dydiff_dist.evaluation.score_files import ScoredRun, write_scores
from dydiff_dist.forecasting.exported import MODEL_FOLDER
from dydiff_dist.forecasting.verification import Verification


def write_evaluation(
    verification: Verification,
    evaluation: Evaluation,
    out: str | Path,
    picture_cases: Sequence[int] | None = None,
    num_report_cases: int = 4,
) -> list[Path]:
    """Writes all scores, report.html, the curves, and picture and animation of some cases; returns the paths.

    Args:
        verification: the forecasts that were scored.
        evaluation: their scores.
        out: folder, created where needed.
        picture_cases: numbers of cases; one that could not be scored has no picture. None is the first scored one.
        num_report_cases: cases animated in the report, evenly spaced.

    Raises:
        ValueError: a case to be pictured that is not among the ones to be scored; nothing is written.
    """
    chosen = verification.check_numbers(picture_cases)
    out = Path(out)
    written, scored = write_scores(evaluation, out), sorted(evaluation.keys)
    if not scored:
        return written
    count = min(num_report_cases, len(scored))
    shown = [verification.case(scored[index * len(scored) // count]) for index in range(count)]
    if verification.kind.is_series:
        write_series(shown, verification.reader.schema.channels, out)
    else:
        write_strips(shown, verification.reader.style(), out)
    label = _label(Path(verification.store.request.model).resolve())
    written.append(write_report([ScoredRun(label, out)], out / "report.html", f"Forecasts of {label}"))
    written.append(figures.save_figure(figures.score_figure(evaluation), out / "scores.png"))
    for number in scored[:1] if chosen is None else chosen:
        if number in evaluation.keys:  # else it is among the errors
            written += _write_pictures(verification, verification.case(number), out)
    return written


def _label(model: Path) -> str:
    """What a model is called: its folder's name, or its run's where it lies in one as ``model/``."""
    return model.parent.name if model.name == MODEL_FOLDER else model.name


def _write_pictures(verification: Verification, case: ForecastCase, out: Path) -> list[Path]:
    """Picture and animation of one case; of time series, a picture only."""
    stem = f"forecast_{case.number:06d}"
    if verification.kind.is_series:
        channels = verification.reader.schema.channels
        return [figures.save_figure(figures.series_figure(case, channels), out / f"{stem}.png")]
    style = verification.reader.style()
    return [
        figures.save_figure(figures.forecast_figure(case, style), out / f"{stem}.png"),
        forecast_animation(case, style, out / f"{stem}.gif"),
    ]
