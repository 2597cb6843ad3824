"""Noise with the covariance along frames of what a simple forecast leaves open.

The history is given; what is uncertain is the rest. With x_h the history frames, x_f the future ones and a linear
forecast W x_h of them, the error e = x_f - W x_h has, by the frames' autocovariance C,

    K = E[e eᵀ] = C_ff - W C_hf - C_fh Wᵀ + W C_hh Wᵀ

Noise n = L ε with L Lᵀ = K (scaled to mean variance 1; white on the history) then grows with the lead time and moves
as a whole, as the errors of forecasts do. L is the same at every timestep, so L⁻¹z is standard diffusion of L⁻¹x.

Letters: S frames, of which H history.
"""

import torch
from torch import Tensor

from dydiff_dist.diffusion.names import NoiseCovariance

LEAST_VARIANCE = 1e-3
"""Smallest eigenvalue of K, as a share of its mean variance: one measured by lag need not be positive definite."""


def forecast_error_operator(frame_autocovariance: Tensor, num_history_frames: int, forecast: NoiseCovariance) -> Tensor:
    """L, (S, S) float64, lower triangular.

    Args:
        frame_autocovariance: E[xʳ xˢ] in network units, by lag (S,) or as a matrix (S, S).
        num_history_frames: H in 1..S-1.
        forecast: "persistence_error": W repeats the last history frame. "regression_error": W is the linear regression
            on the history.

    Raises:
        ValueError: no frame is given, or none is left to forecast.
    """
    C = frame_autocovariance.double()
    if C.ndim == 1:
        frame = torch.arange(len(C))
        C = C[(frame[:, None] - frame[None, :]).abs()]
    H, S = num_history_frames, len(C)
    if not 1 <= H < S:
        raise ValueError(
            f"noise_covariance {forecast!r} is about the frames that follow on a history; of {S} frames {H} are "
            f"history, which must be 1 to {S - 1}"
        )
    if forecast == "regression_error":
        ridge = LEAST_VARIANCE * C.diagonal().mean() * torch.eye(H, dtype=torch.float64)
        W = torch.linalg.solve(C[:H, :H] + ridge, C[:H, H:]).T
    else:
        W = torch.zeros(S - H, H, dtype=torch.float64)
        W[:, -1] = 1
    crossed = W @ C[:H, H:]
    K = C[H:, H:] - crossed - crossed.T + W @ C[:H, :H] @ W.T
    variances, vectors = torch.linalg.eigh(K / K.diagonal().mean())
    K = vectors @ variances.clamp(min=LEAST_VARIANCE).diag() @ vectors.T
    L = torch.eye(S, dtype=torch.float64)
    L[H:, H:] = torch.linalg.cholesky(K / K.diagonal().mean())
    return L
