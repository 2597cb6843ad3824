"""Fused kernels of Dynamical Diffusion, for CPUs (C++) and GPUs (Triton), each with a plain torch reference.

Every tensor with a batch is (B, S, *rest): B samples, S frames, any rest. Frames are axis 1.

    Stream, NoiseCounter                        names of counter-based noise (agreement 2 of docs/architecture.md)
    normal(counter, shape, device=…)            standard normals, shape (B, *sample_shape)
    uniform(counter, num, device=…)             uniforms in (0, 1], shape (B, num)
    frame_mix(x, gamma_bar)                     y = D_γ̄ x, the Dynamics operator; differentiable
    frame_unmix(y, gamma_bar)                   x = D_γ̄⁻¹ y; differentiable

``backend`` is ``auto | triton | cpp | reference`` everywhere. ``auto`` takes triton for CUDA tensors, cpp for CPU tensors
and, where that is not to be had, the reference; what runs is logged once per op on the logger ``dydiff_kernels``.
float64 tensors always go to the reference, which then calculates in float64; all others calculate in float32.
"""

from dydiff_kernels.backends import BACKENDS, Backend, available_backends
from dydiff_kernels.frame_mix import frame_mix, frame_unmix
from dydiff_kernels.noise import NoiseCounter, Stream, normal, uniform

__all__ = [
    "BACKENDS",
    "Backend",
    "NoiseCounter",
    "Stream",
    "available_backends",
    "frame_mix",
    "frame_unmix",
    "normal",
    "uniform",
]
