"""What a simple forecast leaves open, as operators along frames: frames relative to it, and noise like its errors.

The history is given; what is uncertain is the rest. With x_h the H history frames, x_f the future ones, and a linear
forecast W x_h, which repeats the last frame (persistence) or is the best linear one (regression), the error
e = x_f - W x_h has, by the frames' autocovariance C,

    K = E[e eᵀ] = C_ff - W C_hf - C_fh Wᵀ + W C_hh Wᵀ        σ² = diag K, by lead time

Frames relative to the forecast are y = T x: history as it is, future (x_f - W x_h)/σ, of unit variance at every lead
time. A process on y need not learn what the forecast knows, and every lead time counts alike.

Noise like the errors is L ε of white ε: white on the history, and of covariance L Lᵀ = K, scaled to mean variance 1, on
the future: it grows with the lead time and moves as the errors do.

T and L are constant in t: y, and L⁻¹x, follow the process as x would, and every sampler is exact as there. Letters: S
frames, H of them history.
"""

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import as_matrix
from dydiff_dist.diffusion.names import SimpleForecastName

LEAST_VARIANCE = 1e-3
"""Smallest σ², as a share of its mean: measured by lag, an autocovariance may be slightly off."""
LEAST_NOISE_VARIANCE = 1e-2
"""Smallest eigenvalue of L Lᵀ, as a share of its mean variance: in no direction is noise so small (a deviation of 0.1)
that bfloat16's rounding of z, 2⁻⁹ of it, is much of it."""


def relative_operator(frame_autocovariance: Tensor, num_history_frames: int, name: SimpleForecastName) -> Tensor:
    """T, (S, S) float64, lower triangular.

    Args:
        frame_autocovariance: E[xʳ xˢ] in network units, by lag (S,) or as a matrix (S, S).
        num_history_frames: H in 1..S-1.
        name: of the forecast, "persistence" or "regression" on the history.

    Raises:
        ValueError: no frame is given, none is left to forecast, or the forecast makes no error.
    """
    W, K = _forecast_and_errors(frame_autocovariance, num_history_frames, name)
    variance = K.diagonal()
    deviation = variance.clamp(min=LEAST_VARIANCE * variance.mean().item()).sqrt()
    F, H = W.shape
    T = torch.eye(H + F, dtype=torch.float64)
    T[H:, :H] = -W / deviation[:, None]
    T[H:, H:] /= deviation[:, None]
    return T


def noise_operator(
    frame_autocovariance: Tensor,
    num_history_frames: int,
    name: SimpleForecastName,
    frame_operator: Tensor | None = None,
) -> Tensor:
    """L, (S, S) float64, lower triangular.

    Args:
        frame_autocovariance, num_history_frames, name: as for `relative_operator`.
        frame_operator: T, where the process runs on T x: the noise is then like the errors in T x, T K Tᵀ.

    Raises:
        ValueError: as there.
    """
    W, K = _forecast_and_errors(frame_autocovariance, num_history_frames, name)
    F, H = W.shape
    if frame_operator is not None:
        K = frame_operator[H:, H:] @ K @ frame_operator[H:, H:].T
    variances, vectors = torch.linalg.eigh(K)
    variances = variances.clamp(min=0)  # measured, K may be slightly off
    K = vectors @ (variances / variances.mean()).clamp(min=LEAST_NOISE_VARIANCE).diag() @ vectors.T
    L = torch.eye(H + F, dtype=torch.float64)
    L[H:, H:] = torch.linalg.cholesky(K / K.diagonal().mean())
    return L


def _forecast_and_errors(
    frame_autocovariance: Tensor, num_history_frames: int, name: SimpleForecastName
) -> tuple[Tensor, Tensor]:
    """W (S - H, H) and K (S - H, S - H), float64."""
    C = as_matrix(frame_autocovariance)
    H, S = num_history_frames, len(C)
    if not 1 <= H < S:
        raise ValueError(
            "frames_relative_to and noise_like_errors_of are about frames that follow on a history; of "
            f"{S} frames {H} are history, which must be 1 to {S - 1}"
        )
    if name == "regression":
        ridge = LEAST_VARIANCE * C.diagonal().mean() * torch.eye(H, dtype=torch.float64)
        W = torch.linalg.solve(C[:H, :H] + ridge, C[:H, H:]).T
    else:
        W = torch.zeros(S - H, H, dtype=torch.float64)
        W[:, -1] = 1
    crossed = W @ C[:H, H:]
    K = C[H:, H:] - crossed - crossed.T + W @ C[:H, :H] @ W.T
    if not K.trace() > 0:
        raise ValueError(
            f"a forecast by {name} makes no error by the data's frame autocovariance (mean {K.diagonal().mean():.2g}): "
            "nothing is left to forecast; leave out frames_relative_to and noise_like_errors_of"
        )
    return W, K
