"""What a simple forecast leaves open, as operators along frames: frames relative to it, and noise like its errors.

The history is given; what is uncertain is the rest. With x_h the H history frames, x_f the future ones, and a linear
forecast W x_h, which repeats the last frame (persistence) or is the best linear one (regression), the error
e = x_f - W x_h has, by the frames' autocovariance C,

    K = E[e eᵀ] = C_ff - W C_hf - C_fh Wᵀ + W C_hh Wᵀ        σ² = diag K, by lead time

* Frames relative to the forecast, y = T x: history as it is, future (x_f - W x_h)/σ, of unit variance at every lead
  time. A process on y learns what the forecast doesn't know, and every lead time counts alike.
* Noise n = L ε with L Lᵀ = K, scaled to mean variance 1 and white on the history, grows with the lead time and moves
  as a whole, as forecast errors do.

Both are constant in t: y and L⁻¹x follow standard diffusion, and every sampler is exact as there. Letters: S frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import as_matrix
from dydiff_dist.diffusion.names import SimpleForecastName

LEAST_VARIANCE = 1e-3
"""Smallest eigenvalue of a covariance, as a share of its mean variance: measured by lag, it may be slightly off."""


@dataclass(frozen=True, eq=False)
class SimpleForecast:
    """A linear forecast of the future frames by the history."""

    weights: Tensor
    """W, (S - H, H) float64."""
    error_covariance: Tensor
    """K, (S - H, S - H) float64."""

    @classmethod
    def fit(cls, frame_autocovariance: Tensor, num_history_frames: int, name: SimpleForecastName) -> "SimpleForecast":
        """The forecast called ``name`` of frames with this autocovariance.

        Args:
            frame_autocovariance: E[xʳ xˢ] in network units, by lag (S,) or as a matrix (S, S).
            num_history_frames: H in 1..S-1.
            name: "persistence", or "regression" on the history.

        Raises:
            ValueError: no frame is given, or none is left to forecast.
        """
        C = as_matrix(frame_autocovariance)
        H, S = num_history_frames, len(C)
        if not 1 <= H < S:
            raise ValueError(
                f"a forecast by {name} is about the frames that follow on a history; of {S} frames {H} are history, "
                f"which must be 1 to {S - 1}"
            )
        if name == "regression":
            ridge = LEAST_VARIANCE * C.diagonal().mean() * torch.eye(H, dtype=torch.float64)
            W = torch.linalg.solve(C[:H, :H] + ridge, C[:H, H:]).T
        else:
            W = torch.zeros(S - H, H, dtype=torch.float64)
            W[:, -1] = 1
        crossed = W @ C[:H, H:]
        return cls(W, C[H:, H:] - crossed - crossed.T + W @ C[:H, :H] @ W.T)

    def relative_operator(self) -> Tensor:
        """T, (S, S) float64, lower triangular."""
        variance = self.error_covariance.diagonal()
        deviation = variance.clamp(min=LEAST_VARIANCE * variance.mean().item()).sqrt()
        F, H = self.weights.shape
        T = torch.eye(H + F, dtype=torch.float64)
        T[H:, :H] = -self.weights / deviation[:, None]
        T[H:, H:] /= deviation[:, None]
        return T

    def noise_operator(self) -> Tensor:
        """L, (S, S) float64, lower triangular."""
        F, H = self.weights.shape
        L = torch.eye(H + F, dtype=torch.float64)
        variances, vectors = torch.linalg.eigh(self.error_covariance / self.error_covariance.diagonal().mean())
        K = vectors @ variances.clamp(min=LEAST_VARIANCE).diag() @ vectors.T
        L[H:, H:] = torch.linalg.cholesky(K / K.diagonal().mean())
        return L
