"""Reverse steps as coefficients: every sampler here is one linear combination in the unmixed space.

    u' = signal · x̂ + noise · ε̂ + correction · (x̂ - x̂_before) + sigma · n

x̂ and ε̂ are the clean frames and the noise that the network's output implies at timestep t, x̂_before is x̂ of the step
before (multistep solvers), n fresh noise. The functions are pure, elementwise, and take float64 levels of any shape.
``DynamicalDiffusion.advance`` applies them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import dydiff_kernels as kernels
from dydiff_dist.diffusion.levels import Levels
from dydiff_dist.diffusion.schedules import log_snr


class StepCoefficients(NamedTuple):
    """Of one reverse step, float64, (B,) or (B, S)."""

    signal: Tensor
    noise: Tensor
    correction: Tensor
    sigma: Tensor


def ddim(alpha_bar: Tensor, alpha_bar_next: Tensor, eta: float = 0.0) -> StepCoefficients:
    """DDIM (Song et al. 2021, Eq. 12 and 16) from level ᾱ to ᾱ'; η = 1 is ancestral (DDPM) sampling.

    σ = η √((1-ᾱ')/(1-ᾱ)) √(1-ᾱ/ᾱ'),  u' = √ᾱ' x̂ + √(1-ᾱ'-σ²) ε̂ + σ n.
    """
    # A frame that is already clean has ᾱ = ᾱ' = 1: 0/0 stands for no noise.
    ratio = torch.where(alpha_bar < 1, (1 - alpha_bar_next) / (1 - alpha_bar), 0.0)
    sigma = eta * ratio.sqrt() * (1 - alpha_bar / alpha_bar_next).clamp(min=0).sqrt()
    noise = (1 - alpha_bar_next - sigma**2).clamp(min=0).sqrt()
    return StepCoefficients(alpha_bar_next.sqrt(), noise, torch.zeros_like(sigma), sigma)


def dpmpp_2m(alpha_bar: Tensor, alpha_bar_next: Tensor, alpha_bar_before: Tensor | None) -> StepCoefficients:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) from level ᾱ to ᾱ', with the level of the step before.

    With h = λ' - λ, r = h_before/h and X = x̂ + (x̂ - x̂_before)/(2r), the published u' = (σ'/σ) u - √ᾱ'(e^{-h} - 1) X
    equals DDIM plus √ᾱ' (1 - e^{-h})/(2r) (x̂ - x̂_before): the form used here, which stays finite when ᾱ is 0 or 1.
    The first step, and the last, to clean, are plain DDIM.
    """
    first_order = ddim(alpha_bar, alpha_bar_next)
    if alpha_bar_before is None:
        return first_order
    log_snr_now = log_snr(alpha_bar)
    h = log_snr(alpha_bar_next) - log_snr_now
    h_before = log_snr_now - log_snr(alpha_bar_before)
    correction = alpha_bar_next.sqrt() * -torch.expm1(-h) * h / (2 * h_before)
    usable = (h > 0) & torch.isfinite(h) & (h_before > 0)
    return first_order._replace(correction=torch.where(usable, correction, 0.0))


def kernel_coefficients(
    step: StepCoefficients, levels: Levels, after: Levels, dependent_noise: bool
) -> kernels.StepCoefficients:
    """The same step in terms of z, x̂ and x̂_before, which is what the fused kernel reads: ε̂ = (u - √ᾱ x̂)/√(1-ᾱ)."""
    a = step.noise / (1 - levels.alpha_bar).sqrt()
    from_clean = -a * levels.alpha_bar.sqrt()
    if dependent_noise:
        b, c = step.signal + from_clean + step.correction, -step.correction
    else:
        b, c = step.signal, from_clean
    return kernels.StepCoefficients(
        levels.alpha_bar, levels.gamma_bar, after.gamma_bar, a=a, b=b, c=c, sigma=step.sigma
    )
