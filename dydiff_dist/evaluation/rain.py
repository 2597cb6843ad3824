"""Scores of rain and radar forecasts: events above thresholds, and how near they are.

With hits h, misses m, false alarms f and correct negatives c at a threshold:
CSI = h/(h+m+f), POD = h/(h+m), FAR = f/(h+f), bias = (h+f)/(h+m),
HSS = 2 (h c - m f) / ((h+m)(m+c) + (h+f)(f+c)).
Undefined scores (no event anywhere) are NaN, null in the JSON, and never averaged away: how many cases hold events is
reported. Letters: M members, S lead times, T thresholds, W windows.
"""

import math
import warnings
from typing import Literal

import numpy as np
from pydantic import model_validator
from scipy.ndimage import uniform_filter

from dydiff_dist.evaluation.suites import Suite, Terms, pool_blocks, ratio
from dydiff_dist.strict_config import StrictConfig

SEVIR_THRESHOLDS = (16.0, 74.0, 133.0, 160.0, 181.0, 219.0)
Rule = Literal[">=", ">"]
"""When a value counts as an event, beside a threshold."""


def are_events(values: np.ndarray, threshold: float, rule: Rule) -> np.ndarray:
    """Which values count as events, bool like ``values``."""
    return values >= threshold if rule == ">=" else values > threshold


class RainProtocol(StrictConfig):
    """Everything that changes a rain score."""

    name: str = "default"
    thresholds: tuple[float, ...] = SEVIR_THRESHOLDS
    """Of events, in stored units."""
    rule: Rule = ">="
    """When a value counts as an event."""
    forecast: Literal["mean", "members"] = "mean"
    """Threshold the ensemble mean, or every member, with counts pooled over members."""
    lead_times: Literal["pooled", "averaged"] = "pooled"
    """Overall scores: from counts over all lead times, or the mean of the scores by lead time."""
    integer_range: tuple[int, int] | None = None
    """Clip forecasts to this range and cut off their fractions first, as for 8-bit values; None leaves them."""
    pools: tuple[int, ...] = (4, 16)
    """Windows of CSI after max-pooling, in pixels."""
    fss_windows: tuple[int, ...] = (5, 17)
    """Windows of the fractions skill score, odd, in pixels."""
    undefined: Literal["left_out", "zero"] = "left_out"
    """A threshold without any event: left out of the mean over thresholds, or counted as 0."""
    frames: tuple[int, int] | None = None
    """(history, future) that the published protocol asks for; None takes any."""
    size: tuple[int, int] | None = None
    """(H, W) that the published protocol asks for; None takes any."""

    @model_validator(mode="after")
    def _check(self) -> "RainProtocol":
        if not self.thresholds or list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds {self.thresholds} must ascend and there must be at least one")
        if any(window % 2 == 0 or window < 1 for window in self.fss_windows):
            raise ValueError(f"fss_windows {self.fss_windows} must be odd, so that a window has a centre")
        return self

    def events(self, values: np.ndarray, threshold: float) -> np.ndarray:
        """Which values count as events, bool like ``values``."""
        return are_events(values, threshold, self.rule)


RAIN_PRESETS = {
    "default": RainProtocol(),
    "sevir-lr": RainProtocol(name="sevir-lr", undefined="zero", frames=(7, 6), size=(128, 128)),
    "cascast": RainProtocol(name="cascast", undefined="zero", frames=(13, 12), size=(384, 384)),
    "diffcast": RainProtocol(
        name="diffcast",
        undefined="zero",
        frames=(5, 20),
        size=(128, 128),
        integer_range=(0, 255),
        lead_times="averaged",
    ),
}
_DBZ_OF_90 = (20.0, 30.0, 35.0, 40.0)
_RADAR_THRESHOLDS: dict[str, tuple[float, ...]] = {
    "shanghai": tuple(dbz * 255 / 90 for dbz in _DBZ_OF_90),  # DiffCast's scale: stored 255 is 90
    "cikm": tuple(dbz * 255 / 90 for dbz in _DBZ_OF_90),
    "meteonet": (12.0, 18.0, 24.0, 32.0),
    # Shi et al. 2017, section 3: Z = 58.53 R^1.56, stored 0 to 255 is -10 to 60 dBZ; R in mm/h
    "hko7": tuple(
        (10 * math.log10(58.53) + 15.6 * math.log10(rain) + 10) * 255 / 70 for rain in (0.5, 2.0, 5.0, 10.0, 30.0)
    ),
}
RAIN_PRESETS |= {
    name: RainProtocol(
        name=name,
        thresholds=thresholds,
        undefined="zero",
        frames=(5, 10) if name == "cikm" else (5, 20),
        size=None if name == "hko7" else (128, 128),
        lead_times="averaged",
    )
    for name, thresholds in _RADAR_THRESHOLDS.items()
}
RAIN_PRESETS["nowcastdit"] = RAIN_PRESETS["diffcast"].model_copy(update={"name": "nowcastdit"})
"""Protocols of published numbers; docs/evaluation.md says where each comes from and what of it is certain."""


def contingency_counts(forecast: np.ndarray, truth: np.ndarray, protocol: RainProtocol) -> np.ndarray:
    """Hits, misses, false alarms and correct negatives, (S, T, 4) float64.

    Args:
        forecast: (F, S, H, W), F forecasts whose counts are pooled.
        truth: (S, H, W).
        protocol: gives thresholds and the rule.
    """
    counts = np.empty((len(truth), len(protocol.thresholds), 4))
    for index, threshold in enumerate(protocol.thresholds):
        predicted, observed = protocol.events(forecast, threshold), protocol.events(truth, threshold)[None]
        hits = (predicted & observed).sum(axis=(0, 2, 3))
        misses = observed.sum(axis=(0, 2, 3)) * len(forecast) - hits
        false_alarms = predicted.sum(axis=(0, 2, 3)) - hits
        negatives = forecast[:, 0].size - hits - misses - false_alarms
        counts[:, index] = np.stack((hits, misses, false_alarms, negatives), axis=-1)
    return counts


def event_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """csi, pod, far, bias and hss of counts (..., 4); NaN where there is nothing to score."""
    h, m, f, c = (counts[..., index] for index in range(4))
    return {
        "csi": ratio(h, h + m + f),
        "pod": ratio(h, h + m),
        "far": ratio(f, h + f),
        "bias": ratio(h + f, h + m),
        "hss": ratio(2 * (h * c - m * f), (h + m) * (m + c) + (h + f) * (f + c)),
    }


def fss_terms(forecast: np.ndarray, truth: np.ndarray, protocol: RainProtocol) -> tuple[np.ndarray, np.ndarray]:
    """Fractions skill score (Roberts & Lean 2008, eqs. 5-7) as (error, reference), each (S, T, W).

    FSS = 1 - error / reference. Fractions are those of events in a window around each pixel; outside the frame there
    are none.
    """
    shape = (len(truth), len(protocol.thresholds), len(protocol.fss_windows))
    error, reference = np.empty(shape), np.empty(shape)
    for t, threshold in enumerate(protocol.thresholds):
        predicted, observed = (protocol.events(x, threshold).astype(np.float64) for x in (forecast, truth[None]))
        for w, window in enumerate(protocol.fss_windows):
            size = (1, 1, window, window)
            p, o = (uniform_filter(events, size=size, mode="constant") for events in (predicted, observed))
            error[:, t, w] = np.square(p - o).mean(axis=(0, 2, 3))
            reference[:, t, w] = np.square(p).mean(axis=(0, 2, 3)) + np.square(o).mean(axis=(0, 2, 3))
    return error, reference


def rain_suite(protocol: RainProtocol) -> Suite:
    """CSI, POD, FAR, bias, HSS by threshold, CSI after max-pooling, FSS, and the mean of each CSI over thresholds."""

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        forecast, observed = _fields(members, truth, protocol)
        terms = {"counts_pool1": contingency_counts(forecast, observed, protocol)}
        for pool in protocol.pools:
            pooled, pooled_truth = (pool_blocks(x, pool, "max") for x in (forecast, observed))
            terms[f"counts_pool{pool}"] = contingency_counts(pooled, pooled_truth, protocol)
        terms["fss_error"], terms["fss_reference"] = fss_terms(forecast, observed, protocol)
        terms["has_event"] = (terms["counts_pool1"][..., :2].sum(axis=-1) > 0).astype(np.float64)
        return terms

    def derive(terms: Terms) -> Terms:
        by_threshold = event_scores(terms["counts_pool1"])
        for pool in protocol.pools:
            by_threshold[f"csi_pool{pool}"] = event_scores(terms[f"counts_pool{pool}"])["csi"]
        fss = 1 - ratio(terms["fss_error"], terms["fss_reference"])
        by_threshold |= {f"fss_window{window}": fss[..., w] for w, window in enumerate(protocol.fss_windows)}
        derived: Terms = {}
        for name, values in by_threshold.items():
            values = np.nan_to_num(values, nan=0.0) if protocol.undefined == "zero" else values
            derived |= {f"{name}_{threshold:g}": values[..., t] for t, threshold in enumerate(protocol.thresholds)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no defined score is NaN, as it should be
                derived[f"{name}_mean"] = np.nanmean(values, axis=-1)
        events = terms["has_event"]
        shares = {f"share_with_event_{threshold:g}": events[..., t] for t, threshold in enumerate(protocol.thresholds)}
        return derived | shares

    nothing = np.zeros((1, 1, 1, 1, 1))
    names = tuple(derive(measure(nothing, nothing[0])))  # what it derives does not depend on the data
    return Suite(
        "rain",
        measure,
        derive,
        names,
        overall=protocol.lead_times,
        protocol={
            **protocol.model_dump(mode="json"),
            "aggregation": "counts over all pixels and cases first, ratios after",
            "pooling": "maximum over whole blocks",
        },
    )


def _fields(members: np.ndarray, truth: np.ndarray, protocol: RainProtocol) -> tuple[np.ndarray, np.ndarray]:
    """What is thresholded: (F, S, H, W) and (S, H, W)."""
    forecast = members[:, :, 0].astype(np.float64)
    if protocol.forecast == "mean":
        forecast = forecast.mean(axis=0, keepdims=True)
    if protocol.integer_range is not None:
        forecast = np.floor(np.clip(forecast, *protocol.integer_range))
    return forecast, truth[:, 0].astype(np.float64)
