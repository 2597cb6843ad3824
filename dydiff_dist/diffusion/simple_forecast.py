"""Frames relative to a simple forecast of them, as an operator along frames.

The history is given; what is uncertain is the rest. With x_h the H history frames, x_f the future ones, and a linear
forecast W x_h, which repeats the last frame (persistence) or is the best linear one (regression), the error
e = x_f - W x_h has, by the frames' autocovariance C,

    K = E[e eᵀ] = C_ff - W C_hf - C_fh Wᵀ + W C_hh Wᵀ        σ² = diag K, by lead time

Frames relative to the forecast are y = T x: history as it is, future (x_f - W x_h)/σ, of unit variance at every lead
time. A process on y need not learn what the forecast knows, and every lead time counts alike. T is constant in t: y
follows the process as x would, and every sampler is exact as there. Letters: S frames.
"""

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import as_matrix
from dydiff_dist.diffusion.names import SimpleForecastName

LEAST_VARIANCE = 1e-3
"""Smallest σ², as a share of its mean: measured by lag, an autocovariance may be slightly off."""


def relative_operator(frame_autocovariance: Tensor, num_history_frames: int, name: SimpleForecastName) -> Tensor:
    """T, (S, S) float64, lower triangular.

    Args:
        frame_autocovariance: E[xʳ xˢ] in network units, by lag (S,) or as a matrix (S, S).
        num_history_frames: H in 1..S-1.
        name: of the forecast, "persistence" or "regression" on the history.

    Raises:
        ValueError: no frame is given, or none is left to forecast.
    """
    C = as_matrix(frame_autocovariance)
    H, S = num_history_frames, len(C)
    if not 1 <= H < S:
        raise ValueError(
            f"frames_relative_to {name!r} is about the frames that follow on a history; of {S} frames {H} are history, "
            f"which must be 1 to {S - 1}"
        )
    if name == "regression":
        ridge = LEAST_VARIANCE * C.diagonal().mean() * torch.eye(H, dtype=torch.float64)
        W = torch.linalg.solve(C[:H, :H] + ridge, C[:H, H:]).T
    else:
        W = torch.zeros(S - H, H, dtype=torch.float64)
        W[:, -1] = 1
    crossed = W @ C[:H, H:]
    variance = (C[H:, H:] - crossed - crossed.T + W @ C[:H, :H] @ W.T).diagonal()
    deviation = variance.clamp(min=LEAST_VARIANCE * variance.mean().item()).sqrt()
    T = torch.eye(S, dtype=torch.float64)
    T[H:, :H] = -W / deviation[:, None]
    T[H:, H:] /= deviation[:, None]
    return T
