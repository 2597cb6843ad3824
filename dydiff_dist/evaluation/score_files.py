"""The folder that an evaluation leaves behind: its files, how they are written, and how reports read them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from dydiff_dist.arrays import read_npz
from dydiff_dist.data.manifest import Independent
from dydiff_dist.evaluation.evaluate import FORECAST, FVD, TRUTH, Evaluation
from dydiff_dist.evaluation.score_tables import MAIN_SCORES
from dydiff_dist.files import PlainName, atomic_file, parse_json, parse_sealed, read_document_bytes, seal, write_json
from dydiff_dist.quoting import shortened

SCORES_NAME = "scores.json"
CASE_SCORES_NAME = "cases.csv"
DRAWS_NAME = "draws.npz"
_REMEDY = "run tools/evaluate.py again"
STRIPS_NAME, SERIES_NAME = "cases/strips.json", "cases/series.json"
"""Cases that the report shows, with their pictures beside them."""


class _Score(TypedDict):
    overall: float | None
    overall_interval_95: NotRequired[list[float | None]]
    by_lead: NotRequired[list[float | None]]
    interval_95: NotRequired[list[list[float | None]]]


class _Protocol(TypedDict, total=False):
    intervals: str
    independent: Independent
    num_independent: int
    num_members: NonNegativeInt


class _Summary(TypedDict):
    protocol: _Protocol
    errors: dict[str, str]
    cases: NotRequired[dict[str, str]]
    scores: dict[str, dict[str, _Score]]


class _Row(TypedDict):
    label: str
    file: PlainName


class _Shown(TypedDict):
    number: int
    key: str
    num_given: int


class _Strip(_Shown):
    rows: list[_Row]
    num_frames: int


class _Channel(TypedDict):
    name: str
    actual: list[float]


class _Series(_Shown):
    channels: list[_Channel]


def _check_form(tree: Any, form: Any, complaint: str) -> None:
    """One-line ``ValueError`` with the first place where a document, which may be of any origin, has not the form that
    its readers rely on."""
    try:
        TypeAdapter(form).validate_python(tree, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{complaint} ({shortened(f'{place}: ' + problem['msg'])}); {_REMEDY}") from None


@dataclass(frozen=True)
class ScoredRun:
    """One run's scores under a label."""

    label: str
    folder: Path
    """Where the functions below wrote."""

    def summary(self) -> dict:
        """Its scores and their protocol, as ``write_summary`` wrote them.

        Raises:
            FileNotFoundError: no scores there.
            ValueError: a damaged file, or one without any scored case.
        """
        path = self.folder / SCORES_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; run tools/evaluate.py first")
        summary = parse_sealed(read_document_bytes(path), str(path), _REMEDY)
        _check_form(summary, _Summary, f"{path} is not a file of scores")
        if FORECAST not in summary["scores"]:
            raise ValueError(f"{path} holds no scored case; see its errors")
        return summary

    def shown_cases(self, name: str) -> list[dict]:
        """The cases that ``STRIPS_NAME`` or ``SERIES_NAME`` shows, as ``html_report`` wrote them; none without it."""
        path = self.folder / name
        if not path.is_file():
            return []
        data = read_document_bytes(path)
        # earlier versions wrote the bare list
        bare = data.startswith(b"[")
        cases: Any = (
            parse_json(data, str(path), _REMEDY) if bare else parse_sealed(data, str(path), _REMEDY).get("cases")
        )
        _check_form(cases, list[_Strip] if name == STRIPS_NAME else list[_Series], f"{path} holds no cases")
        return cases

    def draws(self, forecaster: str) -> dict[str, np.ndarray]:
        """Its scores over all lead times of resampled cases, (1000,) each.

        Raises:
            FileNotFoundError, ValueError: missing or damaged.
        """
        path = self.folder / DRAWS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; run tools/evaluate.py again")
        prefix = f"{forecaster}/"
        try:
            return {
                name.removeprefix(prefix): drawn for name, drawn in read_npz(path).items() if name.startswith(prefix)
            }
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); {_REMEDY}") from None


def write_shown_cases(path: Path, records: list[dict]) -> None:
    """Writes what ``ScoredRun.shown_cases`` reads."""
    write_json(path, seal({"cases": records}))


def summary(evaluation: Evaluation) -> dict:
    """Everything as JSON types: protocol, cases, errors, scores and profiles by lead time and overall."""
    forecasters = list(evaluation.tables) if evaluation.num_cases else []
    baselines = [name for name in forecasters if name != FORECAST]
    return {
        "protocol": {**evaluation.protocol, **evaluation.resampling(), "num_cases": evaluation.num_cases},
        "errors": {str(case): message for case, message in sorted(evaluation.errors.items())},
        "cases": {str(case): key for case, key in sorted(evaluation.keys.items())},
        "skill": {score: {name: evaluation.skill(name, score) for name in baselines} for score in MAIN_SCORES},
        "scores": {name: _scores_of(evaluation, name) for name in forecasters},
        "profiles": {name: _profiles_of(evaluation, name) for name in forecasters},
    }


def write_scores(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes everything that a ``ScoredRun`` of this folder reads, and the scores case by case. ``SCORES_NAME`` comes
    last, and an older one goes first, so that none ever stands beside the files of another evaluation.

    Args:
        evaluation: where no case was scored, only its summary is written.
        folder: created where needed.

    Returns:
        the files that a person may want to read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORES_NAME).unlink(missing_ok=True)
    written = [folder / SCORES_NAME]
    if evaluation.num_cases:
        _write_case_scores(evaluation, folder / CASE_SCORES_NAME)
        _write_draws(evaluation, folder / DRAWS_NAME)
        written.append(folder / CASE_SCORES_NAME)
    write_summary(evaluation, folder / SCORES_NAME)
    return written


def write_summary(evaluation: Evaluation, path: Path) -> dict:
    """Writes ``summary`` as JSON and returns it; numbers that are undefined (a spread of one member) are null."""
    content = seal(_without_nan(summary(evaluation)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content, allow_nan=False)
    return content


def _write_draws(evaluation: Evaluation, path: Path) -> None:
    """All scores over all lead times of 1000 sets of resampled cases, ``FORECASTER/SCORE`` -> (1000,) float64.

    The same draw holds the same cases in every run that scored as many, so runs can be compared in pairs.
    """
    drawn: dict[str, Any] = {
        f"{name}/{score}": values
        for name in evaluation.tables
        for score, values in evaluation.draws(name).overall.items()
    }
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **drawn)


def _write_case_scores(evaluation: Evaluation, path: Path) -> None:
    """Every case's own scores over all lead times as CSV: case, key, forecaster, then a column per score.

    A score that is a ratio of sums (CSI, say) is here that of the single case; their mean is not the score of all.
    """
    with atomic_file(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "key", "forecaster", *evaluation.scores])
        for number, key in sorted(evaluation.keys.items()):
            for name in evaluation.tables:
                values = evaluation.of_case(name, number)
                own = [float(values[score]) for score in evaluation.scores]
                writer.writerow([number, key, name, *("" if np.isnan(value) else repr(value) for value in own)])


def _scores_of(evaluation: Evaluation, name: str) -> dict:
    by_lead, overall = evaluation.by_lead(name), evaluation.overall(name)
    scores: dict[str, dict] = {}
    for score in evaluation.scores:
        intervals = evaluation.intervals(name, score)
        scores[score] = {
            "overall": float(overall[score]),
            "overall_interval_95": intervals.overall.tolist(),
            "by_lead": by_lead[score].tolist(),
            "interval_95": intervals.by_lead.tolist(),
        }
        if evaluation.is_distance(score):
            scores[score]["is_distance"] = True
    if evaluation.clips:
        num_real, num_forecast = len(evaluation.features(TRUTH)), len(evaluation.features(name))
        scores[FVD] = {"overall": evaluation.fvd(name), "num_real": num_real, "num_forecast": num_forecast}
    return scores


def _profiles_of(evaluation: Evaluation, name: str) -> dict:
    by_lead, overall = evaluation.by_lead(name), evaluation.overall(name)
    return {
        profile: {"overall": overall[profile].tolist(), "by_lead": by_lead[profile].tolist()}
        for suite in evaluation.suites
        for profile in suite.profiles
    }


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
