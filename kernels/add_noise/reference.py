"""Forward process and training target in plain torch (arXiv 2503.00951)."""

import torch

from dydiff_kernels.dtypes import per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference


def sample_posterior_reference(
    mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor, scale: float
) -> torch.Tensor:
    """Latents x = scale·(mean + exp(logvar/2)·n) of a pre-encoded Gaussian posterior."""
    return scale * (mean + (0.5 * logvar).exp() * noise)


def add_noise_reference(
    x0: torch.Tensor,
    alpha_bar: torch.Tensor,
    gamma_bar: torch.Tensor,
    noise: torch.Tensor,
    prediction: str,
    dependent_noise: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """z = √ᾱ μ + √(1-ᾱ) ε̃ with μ = D_γ̄ x and ε̃ = D_γ̄ ε or ε; target ε̃, √ᾱ ε̃ - √(1-ᾱ) μ, or x.

    All tensors are in the dtype of the calculation, and so are the results.
    """
    signal = per_sample(alpha_bar.double().sqrt(), x0)
    spread = per_sample((1.0 - alpha_bar.double()).sqrt(), x0)
    mean = frame_mix_reference(x0, gamma_bar)
    mixed_noise = frame_mix_reference(noise, gamma_bar) if dependent_noise else noise
    targets = {
        "eps": lambda: mixed_noise,
        "v": lambda: signal * mixed_noise - spread * mean,
        "x0": lambda: x0,
    }
    return signal * mean + spread * mixed_noise, targets[prediction]()
