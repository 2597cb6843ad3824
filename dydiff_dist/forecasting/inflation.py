"""Calibration after the fact: members are moved away from their mean, or towards it, by one factor a lead time.

The factors are those with which central 80 % intervals of validation cases hold 80 % of the truth; the mean itself
stays. The ratio of error to spread, the usual factor, is one of variances: of rain, which is mostly zero, few pixels
decide it, and intervals stay too narrow. Letters: M members, S lead times, C channels, H W height and width.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema, SealedDocument, document_bytes, read_document
from dydiff_dist.evaluation.calibration import interval_coverage
from dydiff_dist.evaluation.evaluate import FORECAST, Evaluation
from dydiff_dist.evaluation.scores import rank_counts
from dydiff_dist.files import write_bytes
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import find_model, read_description
from dydiff_dist.forecasting.verification import Verification

CALIBRATION_NAME = "calibration.json"
"""In a model's folder."""
LEVEL = 0.8
"""Of the central intervals that are fitted; (M - 1)/(M + 1) where M members make none so wide."""
_LARGEST_FACTOR = 16.0
_ROUNDING = 1e-9
_HALVINGS = 13
"""Of the interval 1/16 to 16, in which a factor is sought: to one part in a thousand."""


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
    """The factors with which central intervals of these cases hold their share of the truth, lead time by lead time.

    Args:
        verification: forecasts of validation cases, which are read once for each of 13 steps of a bisection.
        evaluation: their scores; cases that could not be scored are left out.

    Raises:
        ValueError: test cases, forecasts that are inflated already, without spread, or so far from the truth that no
            factor from 1/16 to 16 will do.
    """
    _check_forecasts(verification)
    request = verification.store.request
    if not evaluation.num_cases:
        raise ValueError(f"no case of {verification.store.folder} could be scored; there is nothing to calibrate by")
    if not (evaluation.by_lead(FORECAST)["spread"] > 0).any():
        raise ValueError(f"{verification.store.folder} has no spread to calibrate; forecast more than one member")
    return Inflation(
        factors=_covering_factors(verification, sorted(evaluation.keys)),
        weights_sha256=request.weights_sha256,
        sampling=request.sampling,
        num_members=request.num_members,
        num_cases=evaluation.num_cases,
        shards=request.shards,
        shards_sha256=request.shards_sha256,
    )


def _covering_factors(verification: Verification, numbers: list[int]) -> tuple[float, ...]:
    """(S,) factors with which ``LEVEL`` intervals of these cases hold that share of the truth, by bisection."""
    request = verification.store.request
    level = min(LEVEL, (request.num_members - 1) / (request.num_members + 1))
    num_leads = verification.case(numbers[0]).num_leads
    low, high = np.full(num_leads, 1 / _LARGEST_FACTOR), np.full(num_leads, _LARGEST_FACTOR)
    for _ in range(_HALVINGS):
        factors = np.sqrt(low * high)
        held = np.zeros(num_leads)
        for case in map(verification.case, numbers):
            members = inflate(case.members, tuple(factors), request.frames)
            ranks = rank_counts(members, case.truth) / case.truth[0].size
            held += interval_coverage(ranks, level) / len(numbers)
        # where all ties, at lead times without rain, any factor will do: the first, 1, stays
        low = np.where(held < level + _ROUNDING, factors, low)
        high = np.where(held > level - _ROUNDING, factors, high)
    for lead, factor in enumerate(factors.tolist(), start=1):
        if not 1.01 / _LARGEST_FACTOR < factor < _LARGEST_FACTOR / 1.01:
            raise ValueError(
                f"{verification.store.folder}: at +{lead} no factor from {1 / _LARGEST_FACTOR:g} to "
                f"{_LARGEST_FACTOR:g} makes {level:.0%} intervals hold {level:.0%}; train the model for longer"
            )
    return tuple(factors.tolist())


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
