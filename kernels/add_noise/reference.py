"""Forward process and training target in plain torch (arXiv 2503.00951); differentiable."""

import torch

from dydiff_kernels.dtypes import per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference
from dydiff_kernels.levels import Levels


def sample_posterior_reference(
    mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor, scale: float
) -> torch.Tensor:
    """Latents x = scale·(mean + exp(logvar/2)·n) of a pre-encoded Gaussian posterior."""
    return scale * (mean + (0.5 * logvar).exp() * noise)


def add_noise_reference(
    x0: torch.Tensor, levels: Levels, noise: torch.Tensor, mixes_target: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """z = a A x + s B ε and target = p B ε + q A x, or p ε + q x without mixing; in the dtype of the tensors."""
    a, s, p, q = (
        per_sample(factor, x0) for factor in (levels.signal, levels.noise, levels.target_noise, levels.target_signal)
    )
    mean = frame_mix_reference(x0, levels.frame_gamma)
    mixed_noise = frame_mix_reference(noise, levels.noise_gamma)
    target = p * mixed_noise + q * mean if mixes_target else p * noise + q * x0
    return a * mean + s * mixed_noise, target
