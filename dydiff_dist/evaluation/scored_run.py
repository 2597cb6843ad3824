"""The folder that an evaluation leaves behind, as reports and comparisons read it."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCORES_NAME = "scores.json"
CASE_SCORES_NAME = "cases.csv"
DRAWS_NAME = "draws.npz"
STRIPS_FOLDER, STRIPS_NAME, SERIES_NAME = "cases", "strips.json", "series.json"


@dataclass(frozen=True)
class ScoredRun:
    """One run's scores under a label."""

    label: str
    folder: Path
    """Where ``write_evaluation`` wrote its scores and strips."""

    def summary(self) -> dict:
        """Its scores and their protocol.

        Raises:
            FileNotFoundError: no scores there.
            ValueError: a damaged file, or one without any scored case.
        """
        path = self.folder / SCORES_NAME
        summary = _read_json(path)
        if not isinstance(summary, dict) or not {"protocol", "errors", "scores"} <= set(summary):
            raise ValueError(f"{path} is not a file of scores; run tools/evaluate.py again")
        if not summary["scores"]:
            raise ValueError(f"{path} holds no scored case; see its errors")
        return summary

    def strips(self) -> list[dict]:
        """Its animated cases as ``write_strips`` wrote them; none if it wrote none."""
        path = self.folder / STRIPS_FOLDER / STRIPS_NAME
        return _read_json(path) if path.is_file() else []

    def series(self) -> list[dict]:
        """Its time series as ``write_series`` wrote them; none if it wrote none."""
        path = self.folder / STRIPS_FOLDER / SERIES_NAME
        return _read_json(path) if path.is_file() else []

    def draws(self, forecaster: str) -> dict[str, np.ndarray]:
        """Its scores over all lead times of resampled cases, (1000,) each.

        Raises:
            FileNotFoundError, ValueError: missing or damaged.
        """
        path = self.folder / DRAWS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; run tools/evaluate.py again")
        try:
            with np.load(path, allow_pickle=False) as archive:
                prefix = f"{forecaster}/"
                return {name.removeprefix(prefix): archive[name] for name in archive if name.startswith(prefix)}
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); run tools/evaluate.py again") from None


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run tools/evaluate.py first")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error.msg}); run tools/evaluate.py again") from None
