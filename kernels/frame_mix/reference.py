"""The Dynamics operator D_γ along frames and its inverse, in plain torch; differentiable.

arXiv 2503.00951, the Dynamics operator:  y⁰ = x⁰,  yˢ = √γ xˢ + √(1-γ) yˢ⁻¹.
Both calculate in float32 (float64 for float64 tensors) and return the input's dtype.
"""

import itertools

import torch
from torch import Tensor

from dydiff_kernels.dtypes import compute_dtype, per_sample, square_roots


def frame_mix_reference(x: Tensor, gamma_bar: Tensor) -> Tensor:
    """y = D_γ x:  y⁰ = x⁰,  yˢ = √γ xˢ + √(1-γ) yˢ⁻¹."""
    frames, keep, carry = _frames(x, gamma_bar)
    mixed = [frames[0]]
    for frame in frames[1:]:
        mixed.append(keep * frame + carry * mixed[-1])
    return torch.stack(mixed, 1).to(x.dtype)


def frame_unmix_reference(y: Tensor, gamma_bar: Tensor) -> Tensor:
    """x = D_γ⁻¹ y:  x⁰ = y⁰,  xˢ = (yˢ - √(1-γ) yˢ⁻¹) / √γ."""
    frames, keep, carry = _frames(y, gamma_bar)
    pairs = itertools.pairwise(frames)
    unmixed = [frames[0], *((frame - carry * before) / keep for before, frame in pairs)]
    return torch.stack(unmixed, 1).to(y.dtype)


def _frames(x: Tensor, gamma_bar: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Frames of ``x`` in the dtype of the calculation, and √γ, √(1-γ) shaped to multiply a frame."""
    frames = x.to(compute_dtype(x)).unbind(1)
    keep, carry = (per_sample(root, frames[0]) for root in square_roots(gamma_bar))
    return frames, keep, carry
