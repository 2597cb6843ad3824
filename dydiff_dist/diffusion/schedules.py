"""Noise schedules ᾱ and dynamics schedules γ̄, in float64 (arXiv 2503.00951; Nichol & Dhariwal 2021 for the cosine).

Index t = 0..N-1 means "after t + 1 noising steps". With τ_k = k/N and f(τ) = cos²((τ + s₀)/(1 + s₀) · π/2):

    β "cosine"          β_k = clip(1 - f(τ_{k+1})/f(τ_k), 0, 0.999)
    β "linear"          linspace(start, end, N)
    β "scaled_linear"   linspace(√start, √end, N)²
    γ "cosine", r       γ_k = clip(1 - g_{k+1}/g_k, 0, 0.999), g_k = r f(τ_k)/f(τ_0) + (1 - r): γ̄ falls from 1 to 1 - r
    γ "linear_cumprod"  the same with g_k = 1 - τ_k, to which the offset s₀ cancels: γ̄ falls linearly from 1 to 0
    γ "linear_carry", r √((1-γ̄)/γ̄) = α τ_{k+1}, α² = r/(1 - r): what is carried over grows linearly beside what is a
                        frame's own, and 1 - γ̄ up to r (NowcastDiT, arXiv 2609.37038, Eq. 4: their t is 1 - τ)
    γ "constant", r     γ̄ = 1 - r
    γ "none"            γ̄ = 1, standard diffusion

and ᾱ = cumprod(1 - β), γ̄ = cumprod(1 - γ). A factor k on the signal-to-noise ratio shifts any ᾱ to kᾱ / (kᾱ + 1 - ᾱ)
(Hoogeboom et al. 2023, section 3.1).
"""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from dydiff_dist.diffusion.names import BetaSchedule, GammaSchedule

COSINE_OFFSET = 0.008
MAX_DECREMENT = 0.999
"""Largest β_k and γ_k: without it the last step of a schedule that reaches 0 would have no inverse."""

BETA_RANGE = {"linear": (1e-4, 2e-2), "scaled_linear": (8.5e-4, 1.2e-2)}
"""(start, end) of β: Ho et al. 2020, and Stable Diffusion."""


def alpha_bar_schedule(
    num_timesteps: int,
    schedule: BetaSchedule,
    *,
    zero_terminal_snr: bool = False,
    snr_factor: float = 1.0,
) -> Tensor:
    """Signal levels ᾱ_t, (N,) float64, decreasing from nearly 1 to nearly 0 (to 0 with ``zero_terminal_snr``).

    Args:
        num_timesteps: N ≥ 2.
        schedule: "cosine", "linear" or "scaled_linear".
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2024, Algorithm 1).
        snr_factor: k > 0 on ᾱ/(1 - ᾱ) at every timestep: above 1 there is less noise.

    Raises:
        ValueError: unknown schedule, or numbers out of range.
    """
    if num_timesteps < 2:
        raise ValueError(f"num_timesteps is {num_timesteps}; it must be at least 2 (1000 is usual)")
    if schedule == "cosine":
        alpha_bar = _cumulative(_cosine_squared(num_timesteps))
    elif schedule in BETA_RANGE:
        alpha_bar = torch.cumprod(1 - _linear_betas(num_timesteps, schedule), 0)
    else:
        raise ValueError(f"beta_schedule is {schedule!r}; choose one of {', '.join(get_args(BetaSchedule))}")
    alpha_bar = rescale_to_zero_terminal_snr(alpha_bar) if zero_terminal_snr else alpha_bar
    return alpha_bar if snr_factor == 1 else scale_snr(alpha_bar, snr_factor)


def gamma_bar_schedule(
    num_timesteps: int, schedule: GammaSchedule | Sequence[float] | np.ndarray | Tensor, ratio: float = 0.5
) -> Tensor:
    """Dynamics levels γ̄_t, (N,) float64 in (0, 1].

    Args:
        num_timesteps: N ≥ 2.
        schedule: "cosine", "linear_cumprod", "linear_carry", "constant", "none", or γ̄ itself as N numbers
            in (0, 1].
        ratio: how far the cosine, linear_carry and constant schedules fall, in [0, 1]: the last γ̄ is about 1 - ratio.

    Raises:
        ValueError: unknown schedule, ratio out of range, or a given γ̄ of wrong length or range.
    """
    if not isinstance(schedule, str):
        return _given_gamma_bar(num_timesteps, schedule)
    if not 0 <= ratio <= 1:
        raise ValueError(f"gamma_ratio is {ratio}; it must lie in [0, 1], where 0 is standard diffusion")
    if schedule == "cosine":
        return _cumulative(ratio * _cosine_squared(num_timesteps) + (1 - ratio))
    if schedule == "linear_cumprod":
        return _cumulative(1 - torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps)
    if schedule in ("constant", "linear_carry"):
        if ratio == 1:
            raise ValueError(
                f"gamma_ratio is 1 with gamma_schedule {schedule!r}: gamma_bar 0 has no inverse; give less"
            )
        if schedule == "constant":
            return torch.full((num_timesteps,), 1 - ratio, dtype=torch.float64)
        tau = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        return (1 - ratio) / (1 - ratio + ratio * tau.square())
    if schedule == "none":
        return torch.ones(num_timesteps, dtype=torch.float64)
    names = ", ".join(get_args(GammaSchedule))
    raise ValueError(
        f"gamma_schedule is {schedule!r}; choose one of {names}, or give {num_timesteps} values of gamma_bar"
    )


def rescale_to_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """√ᾱ shifted and scaled so that the last value is 0 and the first is kept (Lin et al. 2024, Algorithm 1), (N,)."""
    signal = alpha_bar.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * (first / (first - last))).square()


def scale_snr(alpha_bar: Tensor, factor: float) -> Tensor:
    """ᾱ with ``factor`` times the signal-to-noise ratio: kᾱ / (kᾱ + 1 - ᾱ); any shape, ᾱ = 0 and 1 stay.

    Raises:
        ValueError: the factor is not a positive number.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"snr_factor is {factor}; it must be positive (1 changes nothing, above 1 is less noise)")
    return factor * alpha_bar / (factor * alpha_bar + 1 - alpha_bar)


def _cosine_squared(num_timesteps: int) -> Tensor:
    """f(τ_k)/f(τ_0) for k = 0..N, (N + 1,)."""
    tau = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = torch.cos((tau + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)).square()
    return f / f[0]


def _cumulative(levels: Tensor) -> Tensor:
    """Levels at k = 0..N, as the product over clipped decrements 1 - g_{k+1}/g_k, (N,)."""
    decrements = (1 - levels[1:] / levels[:-1]).clamp(0, MAX_DECREMENT)
    return torch.cumprod(1 - decrements, 0)


def _linear_betas(num_timesteps: int, schedule: str) -> Tensor:
    start, end = BETA_RANGE[schedule]
    if schedule == "linear":
        return torch.linspace(start, end, num_timesteps, dtype=torch.float64)
    return torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64).square()


def _given_gamma_bar(num_timesteps: int, values: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    gamma_bar = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    if gamma_bar.shape != (num_timesteps,):
        raise ValueError(
            f"gamma_schedule has shape {tuple(gamma_bar.shape)}; given as numbers it must hold gamma_bar for each of "
            f"the {num_timesteps} timesteps"
        )
    if not bool(((gamma_bar > 0) & (gamma_bar <= 1)).all()):
        raise ValueError("gamma_schedule, given as numbers, holds a gamma_bar outside (0, 1]; 1 is no mixing")
    return gamma_bar
