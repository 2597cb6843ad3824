"""Scores that studies keep case by case, as ratios of additive terms.

A score over any set of cases and lead times is (mean of its value) / (mean of its scale), where most scores have no
scale. So it can be formed anew from the kept terms for every resampling of the cases.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class KeptScore:
    """Which terms of the evaluation make a score."""

    title: str
    """How the page calls it."""
    value: str
    """Term of the numerator, (S,) or (S, Q); the mean over Q is taken."""
    scale: str | None = None
    """Term of the denominator; None is 1."""

    def terms(self, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of one case: part ("value", and "scale" where there is one) -> (S,) float64."""
        names = {"value": self.value} | ({"scale": self.scale} if self.scale else {})
        return {part: measured[name].reshape(len(measured[name]), -1).mean(axis=1) for part, name in names.items()}


SCORES = {
    "crps": KeptScore("CRPS", "crps"),
    "crps_fair": KeptScore("fair CRPS", "crps_fair"),
    "mse": KeptScore("MSE of the ensemble mean", "mse"),
    "mae": KeptScore("MAE of the ensemble mean", "mae"),
    "variance": KeptScore("ensemble variance", "corrected_variance"),
    "blockiness": KeptScore("blockiness (1: no edges)", "edge_gradient_members", "inner_gradient_members"),
    "crps_sum": KeptScore("CRPS-sum", "quantile_loss_sum", "absolute_target_sum"),
    "crps_quantile": KeptScore("quantile CRPS", "quantile_loss", "absolute_target"),
    "nd_sum": KeptScore("ND-sum", "absolute_error_sum", "absolute_target_sum"),
}
