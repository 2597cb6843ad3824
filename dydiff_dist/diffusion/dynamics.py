"""The Dynamics operator D_γ along frames (arXiv 2503.00951) and what follows from it in closed form.

    y = D_γ x :    y⁰ = x⁰ ,   yˢ = √γ xˢ + √(1-γ) yˢ⁻¹
    x = D_γ⁻¹ y :  x⁰ = y⁰ ,   xˢ = (yˢ - √(1-γ) yˢ⁻¹) / √γ

``frame_mix`` and ``frame_unmix`` apply them to (B, S, *rest) with one γ̄ per sample. White noise becomes a stationary
AR(1) sequence of unit variance: Cov(yʳ, yˢ) = √(1-γ)^|r-s|. Correlated frames don't keep their variance, see
``mixed_signal_variance``.
"""

import torch
from torch import Tensor

from dydiff_kernels import frame_mix, frame_unmix

__all__ = [
    "along_frames",
    "as_matrix",
    "frame_mix",
    "frame_unmix",
    "mixed_signal_variance",
    "mixing_matrix",
    "unmix_gain",
]


def along_frames(operator: Tensor, x: Tensor) -> Tensor:
    """A matrix (S, S) on the frames of x (B, S, *rest), in float32 (float64 for float64), stored as x.

    Raises:
        ValueError: another number of frames.
    """
    B, S = x.shape[:2]
    if operator.shape != (S, S):
        raise ValueError(
            f"the process is made for {len(operator)} frames, this sequence has {S}; give windows as in training"
        )
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (operator.to(x.device, compute) @ x.reshape(B, S, -1).to(compute)).view(x.shape).to(x.dtype)


def as_matrix(frame_autocovariance: Tensor) -> Tensor:
    """E[xʳ xˢ], (S, S) float64, also where it is given by lag |r - s|, (S,)."""
    covariance = frame_autocovariance.double()
    if covariance.ndim == 2:
        return covariance
    frame = torch.arange(len(covariance), device=covariance.device)
    return covariance[(frame[:, None] - frame[None, :]).abs()]


def mixing_matrix(gamma_bar: Tensor, num_frames: int) -> Tensor:
    """D as matrices, (N, S, S) float64 for levels (N,): entry (s, r ≤ s) is √(1-γ)^(s-r) · (√γ if r > 0 else 1)."""
    carry, keep = (1 - gamma_bar.double()).sqrt(), gamma_bar.double().sqrt()
    frame = torch.arange(num_frames, device=gamma_bar.device)
    distance = (frame[:, None] - frame[None, :]).clamp(min=0)
    powers = carry[:, None, None] ** distance  # 0⁰ = 1 keeps the diagonal at γ = 1
    scale = torch.where(frame > 0, keep[:, None], 1.0)
    return torch.tril(powers * scale[:, None, :])


def mixed_signal_variance(gamma_bar: Tensor, frame_autocovariance: Tensor) -> Tensor:
    """Mean over frames of Var(D x), (N,) float64.

    Args:
        gamma_bar: (N,) levels.
        frame_autocovariance: E[xʳ xˢ] in network units, (S, S), or by lag |r - s|, (S,).

    Uncorrelated frames keep their variance at every level. A constant sequence grows towards (1 + b)/(1 - b) times its
    own, b = √(1-γ): 5.8 at γ = 0.5.
    """
    covariance = as_matrix(frame_autocovariance)
    D = mixing_matrix(gamma_bar, len(covariance))
    return torch.einsum("nsq,qr,nsr->ns", D, covariance, D).mean(1)


def unmix_gain(gamma_bar: Tensor) -> Tensor:
    """√((2-γ)/γ), by how much D⁻¹ enlarges white errors (from frame 1 on): 1 at γ = 1, 1.7 at 0.5, 3e4 at 2.4e-9."""
    return ((2 - gamma_bar) / gamma_bar).sqrt()
