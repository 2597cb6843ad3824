"""Fréchet distance between two sets of features, the second half of FVD.

Letters: N clips, D features.
"""

from typing import Literal

import numpy as np

Divisor = Literal["n", "n-1"]


def frechet_distance(first_ND: np.ndarray, second_ND: np.ndarray, divisor: Divisor = "n") -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the sets' means and covariances (Dowson & Landau 1982).

    |m1 - m2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½). With Σ = Aᵀ A, A the centred features over √divisor, the last trace is the
    sum of the singular values of A1 A2ᵀ. So no covariance is formed and no root of a nearly singular matrix is drawn:
    it is as exact for fewer clips than features, where covariances have no full rank, as for many. All in float64.

    Args:
        first_ND, second_ND: features, at least two of each set, any real dtype; the sets may differ in size.
        divisor: of the covariances.

    Raises:
        ValueError: fewer than two clips.

    Example:
        >>> features = np.array([[0.0], [2.0]])
        >>> frechet_distance(features, features + 3)
        9.0
    """
    (mean1, root1), (mean2, root2) = (_mean_and_root(x, divisor) for x in (first_ND, second_ND))
    between = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(np.square(mean1 - mean2).sum() + np.square(root1).sum() + np.square(root2).sum() - 2 * between)


def _mean_and_root(features_ND: np.ndarray, divisor: Divisor) -> tuple[np.ndarray, np.ndarray]:
    """(mean (D,), A with at most D rows and Aᵀ A the covariance)."""
    count = len(features_ND)
    if count < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 clips of each kind, there are {count}; score more cases")
    features = features_ND.astype(np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(count if divisor == "n" else count - 1)
    return mean, root if count <= features.shape[1] else np.asarray(np.linalg.qr(root, mode="r"))
