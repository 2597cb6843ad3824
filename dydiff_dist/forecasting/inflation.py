"""Calibration after the fact: members are moved away from their mean, or towards it, by one factor a lead time.

With the factors a_s = √(MSE / ((M + 1)/M variance)) of validation cases, the spread of those cases becomes the error of
their mean (Fortin et al. 2014, eq. 15); the mean itself stays. Letters: M members, S lead times, C channels, H W height
and width.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema, SealedDocument, document_bytes, read_document
from dydiff_dist.evaluation.evaluate import FORECAST, Evaluation
from dydiff_dist.files import write_bytes
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import find_model, read_description
from dydiff_dist.forecasting.verification import Verification

CALIBRATION_NAME = "calibration.json"
"""In a model's folder."""


class Inflation(SealedDocument):
    """How far a model's members are moved from their mean, and from which cases that is known."""

    remedy: ClassVar[str] = "fit it again with tools/evaluate.py --calibrate"

    format_version: Literal[1] = 1
    factors: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    """(S,) by lead time, above 0; the last one holds for later ones."""
    weights_sha256: str
    """Of the model it was fitted to."""
    sampling: SamplingConfig
    """With which it was fitted: another one has another spread."""
    num_members: int
    """M of those forecasts."""
    num_cases: int
    shards: str
    """Whose cases they were."""
    shards_sha256: str


def check_calibration(verification: Verification, model: str | Path) -> None:
    """Refuses before anything is scored, as ``fit_inflation`` and ``write_inflation`` would afterwards.

    Raises:
        FileNotFoundError, ValueError: no such model, or forecasts of test cases, calibrated ones, or another model's.
    """
    _check_forecasts(verification)
    _fitted_model(model, verification.store.request.weights_sha256)


def _check_forecasts(verification: Verification) -> None:
    if verification.reader.shards.manifest.split == "test":
        raise ValueError(f"{verification.reader.source} holds test cases; calibrate on forecasts of validation cases")
    if verification.store.request.inflation is not None:
        raise ValueError(f"{verification.store.folder} is calibrated already; forecast without --calibrated")


def _fitted_model(model: str | Path, weights_sha256: str) -> Path:
    folder = find_model(model)
    if read_description(folder)[1] != weights_sha256:
        raise ValueError(f"{folder} is another model than the forecasts were made with; give that one")
    return folder


def fit_inflation(verification: Verification, evaluation: Evaluation) -> Inflation:
    """The factors that make the spread of these cases the error of their mean, lead time by lead time.

    Args:
        verification: forecasts of validation cases.
        evaluation: their scores.

    Raises:
        ValueError: test cases, forecasts that are inflated already, or without spread.
    """
    _check_forecasts(verification)
    request = verification.store.request
    if not evaluation.num_cases:
        raise ValueError(f"no case of {verification.store.folder} could be scored; there is nothing to calibrate by")
    ratio = evaluation.by_lead(FORECAST)["spread_skill_ratio"]
    if not (np.isfinite(ratio) & (ratio > 0)).all():
        raise ValueError(f"{verification.store.folder} has no spread to calibrate; forecast more than one member")
    return Inflation(
        factors=tuple((1 / ratio).tolist()),
        weights_sha256=request.weights_sha256,
        sampling=request.sampling,
        num_members=request.num_members,
        num_cases=evaluation.num_cases,
        shards=request.shards,
        shards_sha256=request.shards_sha256,
    )


def write_inflation(inflation: Inflation, model: str | Path) -> Path:
    """Writes it where ``read_inflation`` finds it, in the folder of the model that it was fitted to; returns the file.

    Raises:
        FileNotFoundError, ValueError: no such model, or another one.
    """
    path = _fitted_model(model, inflation.weights_sha256) / CALIBRATION_NAME
    write_bytes(path, document_bytes(inflation))
    return path


def read_inflation(model: str | Path, weights_sha256: str, sampling: SamplingConfig) -> Inflation:
    """What was fitted to a model.

    Args:
        model: folder of the model or its run.
        weights_sha256: of its weights.
        sampling: with which it is to forecast.

    Raises:
        FileNotFoundError: nothing was fitted.
        ValueError: it was to other weights, or with other sampling.
    """
    path = find_model(model) / CALIBRATION_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make it: forecast validation cases, then tools/evaluate.py … --calibrate {model}"
        )
    inflation = read_document(path, Inflation)
    if inflation.weights_sha256 != weights_sha256:
        raise ValueError(f"{path} was fitted to other weights; {inflation.remedy}")
    for name, fitted in inflation.sampling.model_dump().items():
        asked = getattr(sampling, name)
        if fitted != asked:
            raise ValueError(
                f"{path} was fitted with sampling.{name} = {fitted!r}, not {asked!r}; forecast alike, or fit it again"
            )
    return inflation


def inflate(members_MSCHW: np.ndarray, factors: tuple[float, ...], schema: FrameSchema) -> np.ndarray:
    """Members (M, S, C, H, W) at ``factors`` times their distance from their mean, within the schema's bounds.

    Examples:
        >>> schema = FrameSchema(num_frames=2, shape=(1, 1, 1), dtype="float32", bounds=((0, None),))
        >>> inflate(np.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1), (3.0,), schema).ravel().tolist()
        [0.0, 5.0]
    """
    num_leads = members_MSCHW.shape[1]
    by_lead = np.array((*factors, *factors[-1:] * num_leads)[:num_leads])[:, None, None, None]
    mean = members_MSCHW.mean(axis=0, dtype=np.float64)
    return np.clip(mean + by_lead * (members_MSCHW - mean), *schema.limits()).astype(members_MSCHW.dtype)
