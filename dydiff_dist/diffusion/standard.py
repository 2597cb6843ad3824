"""Standard variance-preserving diffusion, u = √ᾱ x + √(1-ᾱ) ε, elementwise: targets, and what outputs say of x and ε.

Everything is in the dtype of the calculation, with a = √ᾱ and s = √(1-ᾱ) shaped for broadcasting by ``over_frames``.
"""

import torch
from torch import Tensor

from dydiff_dist.diffusion.levels import Levels
from dydiff_dist.diffusion.names import Prediction


def to_compute(x: Tensor) -> Tensor:
    """``x`` in the dtype of the calculation: float64 as it is, any other storage in float32."""
    return x if x.dtype == torch.float64 else x.float()


def over_frames(coefficient: Tensor, z: Tensor) -> Tensor:
    """(B,) or (B, S) float64 as a view that multiplies z (B, S, *rest), in the dtype of the calculation."""
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return coefficient.to(dtype).view(*coefficient.shape, *[1] * (z.ndim - coefficient.ndim))


def signal_and_noise(levels: Levels, z: Tensor) -> tuple[Tensor, Tensor]:
    """a = √ᾱ and s = √(1-ᾱ), to multiply z."""
    return over_frames(levels.alpha_bar.sqrt(), z), over_frames((1 - levels.alpha_bar).sqrt(), z)


def noised(prediction: Prediction, clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """u and the target of the network: ε, v = a ε - s x (Salimans & Ho 2022), or x."""
    targets = {"eps": lambda: noise, "v": lambda: a * noise - s * clean, "x0": lambda: clean}
    return a * clean + s * noise, targets[prediction]()


def clean_and_noise(prediction: Prediction, u: Tensor, output: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """x̂ and ε̂ of u, from the output of an eps, v or x0 network."""
    if prediction == "eps":
        return (u - s * output) / a, output
    if prediction == "v":
        return a * u - s * output, s * u + a * output
    clean = torch.where(s > 0, output, u)  # a clean frame is known, whatever the network says of it
    return clean, implied_noise(u, clean, a, s)


def implied_noise(u: Tensor, clean: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """(u - a x)/s; 0 for a frame without noise."""
    return torch.where(s > 0, (u - a * clean) / torch.where(s > 0, s, 1.0), 0.0)
