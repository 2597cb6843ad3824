"""Scores of multivariate time series, by the quantile protocol of the field (Salinas et al. 2019, GluonTS).

A series is a frame of C channels and one pixel: (S, C, 1, 1). *sum* scores are of the sum over channels, the others of
all channels together. Letters: M members, S lead times, C channels, Q quantiles.
"""

import numpy as np

from dydiff_dist.evaluation.suites import Suite, Terms

QUANTILES = tuple(round(0.05 * q, 2) for q in range(1, 20))
"""0.05, 0.10, ... 0.95."""


def sample_quantiles(members: np.ndarray) -> np.ndarray:
    """(M, ...) -> (Q, ...): the member at rank round((M - 1) q), without interpolation."""
    ranks = [round((len(members) - 1) * q) for q in QUANTILES]
    return np.sort(members, axis=0)[ranks]


def quantile_terms(members: np.ndarray, truth: np.ndarray) -> Terms:
    """Additive terms of the scores of (M, S, C) against (S, C): each mean over C, (S,) or (S, Q)."""
    members, truth = members.astype(np.float64), truth.astype(np.float64)
    quantiles = sample_quantiles(members)
    level = np.array(QUANTILES)[:, None, None]
    loss = 2 * np.abs((quantiles - truth) * ((truth <= quantiles) - level))
    return {
        "quantile_loss": loss.mean(axis=2).T,
        "absolute_target": np.abs(truth).mean(axis=1),
        "absolute_error": np.abs(truth - quantiles[QUANTILES.index(0.5)]).mean(axis=1),
        "squared_error": np.square(truth - members.mean(axis=0)).mean(axis=1),
    }


def series_suite() -> Suite:
    """CRPS-sum, ND and NRMSE: quantile losses, absolute error of the median, root mean square error of the mean.

    Each is a ratio of sums over cases (and lead times, overall) to the sum of |target|.
    """

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        assert truth.shape[-2:] == (1, 1), truth.shape  # choose_suites refuses others
        values, target = members[..., 0, 0], truth[..., 0, 0]
        of_sum = quantile_terms(values.sum(axis=-1, keepdims=True), target.sum(axis=-1, keepdims=True))
        of_all = quantile_terms(values, target)
        return {f"{name}_sum": term for name, term in of_sum.items()} | of_all

    def derive(terms: Terms) -> Terms:
        derived: Terms = {}
        for suffix in ("_sum", ""):
            target = np.where(terms[f"absolute_target{suffix}"] > 0, terms[f"absolute_target{suffix}"], np.nan)
            derived[f"crps_quantile{suffix}"] = terms[f"quantile_loss{suffix}"].mean(axis=-1) / target
            derived[f"nd{suffix}"] = terms[f"absolute_error{suffix}"] / target
            derived[f"nrmse{suffix}"] = np.sqrt(terms[f"squared_error{suffix}"]) / target
        derived["crps_sum"] = derived.pop("crps_quantile_sum")
        return derived

    return Suite(
        "series",
        measure,
        derive,
        ("crps_sum", "nd_sum", "nrmse_sum", "crps_quantile", "nd", "nrmse"),
        protocol={
            "quantiles": list(QUANTILES),
            "sample_quantile": "member at rank round((M-1) q)",
            "crps_sum": "mean over quantiles of sum of 2 |(forecast - y) (1{y <= forecast} - q)| over sum of |y|",
            "nd": "absolute error of the median over sum of |y|; nrmse: RMSE of the mean over mean |y|",
            "sum": "of the sum over channels; the others over all channels",
        },
    )
