"""The Dynamics operator D_γ along frames, its inverse, and the transposes of both, in plain torch.

arXiv 2503.00951, the Dynamics operator:  y⁰ = x⁰,  yˢ = √γ xˢ + √(1-γ) yˢ⁻¹.
All calculate in float32 (float64 for float64 tensors) and return the input's dtype.
"""

import itertools

import torch

from dydiff_kernels.dtypes import compute_dtype, per_sample


def frame_coefficients(gamma_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(√γ, √(1-γ)) in float64 for γ (B,)."""
    gamma_bar = gamma_bar.double()
    return gamma_bar.sqrt(), (1.0 - gamma_bar).sqrt()


def _frames(x: torch.Tensor, gamma_bar: torch.Tensor):
    """Frames of ``x`` in the dtype of the calculation, and √γ, √(1-γ) shaped to multiply a frame."""
    frames = x.to(compute_dtype(x)).unbind(1)
    keep, carry = (per_sample(c, frames[0]) for c in frame_coefficients(gamma_bar))
    return frames, keep, carry


def frame_mix_reference(x: torch.Tensor, gamma_bar: torch.Tensor) -> torch.Tensor:
    """y = D_γ x:  y⁰ = x⁰,  yˢ = √γ xˢ + √(1-γ) yˢ⁻¹."""
    frames, keep, carry = _frames(x, gamma_bar)
    mixed = [frames[0]]
    for frame in frames[1:]:
        mixed.append(keep * frame + carry * mixed[-1])
    return torch.stack(mixed, 1).to(x.dtype)


def frame_unmix_reference(y: torch.Tensor, gamma_bar: torch.Tensor) -> torch.Tensor:
    """x = D_γ⁻¹ y:  x⁰ = y⁰,  xˢ = (yˢ - √(1-γ) yˢ⁻¹) / √γ."""
    frames, keep, carry = _frames(y, gamma_bar)
    pairs = itertools.pairwise(frames)
    unmixed = [frames[0], *((frame - carry * before) / keep for before, frame in pairs)]
    return torch.stack(unmixed, 1).to(y.dtype)


def frame_mix_transposed_reference(g: torch.Tensor, gamma_bar: torch.Tensor) -> torch.Tensor:
    """h = D_γᵀ g, the backward pass of mixing:  aˢ = gˢ + √(1-γ) aˢ⁺¹,  hˢ = √γ aˢ,  h⁰ = a⁰."""
    frames, keep, carry = _frames(g, gamma_bar)
    adjoints = [frames[-1]]
    for frame in frames[-2::-1]:
        adjoints.append(frame + carry * adjoints[-1])
    adjoints.reverse()
    return torch.stack([adjoints[0], *(keep * a for a in adjoints[1:])], 1).to(g.dtype)


def frame_unmix_transposed_reference(g: torch.Tensor, gamma_bar: torch.Tensor) -> torch.Tensor:
    """h = D_γ⁻ᵀ g, the backward pass of unmixing:  aˢ = gˢ/√γ (a⁰ = g⁰),  hˢ = aˢ - √(1-γ) aˢ⁺¹."""
    frames, keep, carry = _frames(g, gamma_bar)
    scaled = [frames[0], *(frame / keep for frame in frames[1:])]
    pairs = itertools.pairwise(scaled)
    return torch.stack([*(a - carry * after for a, after in pairs), scaled[-1]], 1).to(g.dtype)
