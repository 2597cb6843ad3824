"""Error of a field in units of its own spread, the score of The Well's benchmark.

Letters: M members, S lead times, C channels, H W height and width.
"""

from collections.abc import Sequence

import numpy as np

from dydiff_dist.evaluation.suites import Suite, Terms

EPSILON = 1e-7
"""Added to the variance, in squared units of the data, as in The Well's own metric."""
WINDOWS = ((6, 12), (13, 30))
"""First and last lead time of the published rollout windows, counted from 1."""


def vrmse(forecast_SCHW: np.ndarray, truth_SCHW: np.ndarray) -> np.ndarray:
    """√(mean squared error / variance of the truth) of each frame and channel, (S, C) float64; 1 is the truth's mean.

    Means are over pixels, the variance is divided by their number less 1 (Ohana et al. 2024, arXiv 2412.00568, section
    5, and its code).

    Examples:
        >>> truth = np.array([1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> round(float(vrmse(truth + 1, truth)[0, 0]), 6)
        0.707107
    """
    truth = truth_SCHW.astype(np.float64)
    error = np.square(forecast_SCHW.astype(np.float64) - truth).mean(axis=(-2, -1))
    return np.sqrt(error / (truth.var(axis=(-2, -1), ddof=1) + EPSILON))


def vrmse_suite(channels: Sequence[str], num_channels: int) -> Suite:
    """VRMSE of the ensemble mean: of each channel, their mean, and that over the published windows of lead times.

    Args:
        channels: their names; numbers stand for channels without.
        num_channels: C.
    """
    names = [f"vrmse_{name}" for name in (channels or map(str, range(num_channels)))]
    windows = {f"vrmse_leads_{first}_to_{last}": slice(first - 1, last) for first, last in WINDOWS}

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        by_channel = vrmse(members.mean(axis=0, dtype=np.float64), truth)
        terms = dict(zip(names, by_channel.T, strict=True)) | {"vrmse": by_channel.mean(axis=1)}
        for name, window in windows.items():
            # a window of which lead times are missing is none: its score would not be that of others
            inside = np.zeros(len(truth))
            inside[window] = window.stop <= len(truth)
            terms |= {f"{name}_count": inside, f"{name}_sum": inside * terms["vrmse"]}
        return terms

    def derive(terms: Terms) -> Terms:
        derived = {name: terms[name] for name in ("vrmse", *names)}
        for name in windows:
            total, count = terms[f"{name}_sum"], terms[f"{name}_count"]
            derived[name] = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
        return derived

    return Suite(
        "vrmse",
        measure,
        derive,
        ("vrmse", *windows, *names),
        protocol={
            "vrmse": f"sqrt(MSE / (variance + {EPSILON:g})) of the ensemble mean per frame and channel, variance over "
            "pixels of the truth divided by their number - 1; then averaged over channels, lead times and cases",
            "windows": "lead times counted from 1, both ends in; undefined unless all of them are forecast",
        },
    )
