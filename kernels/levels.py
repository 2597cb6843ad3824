"""``Levels``: one timestep of a diffusion process as the six numbers per sample that the forward process needs."""

from typing import NamedTuple

from torch import Tensor


class Levels(NamedTuple):
    """z = a A x + s B ε and target = p B ε + q A x, with A and B the Dynamics operators of two levels γ̄.

    Every tensor is (B,), one number per sample, float64 (float32 is accepted), on any one device. Standard diffusion has
    γ̄ = 1 (A = B = 1), a = √ᾱ and s = √(1-ᾱ); the target is the noise for p, q = 1, 0, v for a, -s, and A x for 0, 1.
    """

    signal: Tensor
    """a ≥ 0, the factor of the frames."""
    noise: Tensor
    """s ≥ 0, the factor of the noise."""
    frame_gamma: Tensor
    """γ̄ of A, the operator on frames, in (0, 1]."""
    noise_gamma: Tensor
    """γ̄ of B, the operator on noise, in (0, 1]."""
    target_noise: Tensor
    """p, the target's factor of the noise, finite."""
    target_signal: Tensor
    """q, the target's factor of the frames, finite."""
