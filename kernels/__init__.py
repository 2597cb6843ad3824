"""Fused kernels of Dynamical Diffusion, for CPUs (C++) and GPUs (Triton), each with a plain torch reference.

Every tensor with a batch is (B, S, *rest): B samples, S frames, any rest. Frames are axis 1. Where an op takes noise,
it takes a tensor, or the NoiseCounter to draw it from in the kernel.

    Stream, NoiseCounter                        names of counter-based noise (agreement 2 of docs/agreements.md)
    normal(counter, shape, device=…)            standard normals, shape (B, *sample_shape)
    uniform(counter, num, device=…)             uniforms in (0, 1], shape (B, num)
    frame_mix(x, gamma_bar)                     y = D_γ̄ x, the Dynamics operator; differentiable
    frame_unmix(y, gamma_bar)                   x = D_γ̄⁻¹ y; differentiable
    add_noise(latents, Levels(…), noise) -> NoisedLatents(z, target, x0); the forward process and its target
    LatentPosterior(mean, logvar, noise, scale)  latents to be sampled in the same pass
    denoising_loss(output, target, sample_weights=…, frame_weights=…) -> (B,); differentiable in output
    reverse_step(z, output, StepCoefficients(…)) -> ReverseStep(z, x0); every sampler's step
    CoefficientTable(Levels(…), N).at(rows)      coefficients put on a device once, with which a call is one launch
    modulated_norm(x, shift, scale), gated_residual(x, gate, branch)    the network's adaLN, tokens (B, S, N, D)
    attention_inputs(qkv, …) -> q, k, v          their norm, rotation and layout, (B, N, 3·H·E) -> (B, H, N, E)
    short_attention(qkv, …) -> y                 the same and attention over at most 32 tokens, (B, N, H·E); GPUs
    register_op(name, reference=…, triton=…)     an op of another package, with the same choice of backend

``backend`` is ``auto | triton | cpp | reference`` everywhere. ``auto`` takes triton for CUDA tensors, cpp for CPU
tensors and, where that is not to be had, the reference; what runs is logged once per op on the logger
``dydiff_kernels``. float64 tensors always go to the reference, which then calculates in float64; all others calculate
in float32.
"""

from dydiff_kernels.add_noise import LatentPosterior, NoisedLatents, add_noise
from dydiff_kernels.attention_inputs import HeadNorm, attention_inputs
from dydiff_kernels.backends import BACKENDS, Backend, available_backends
from dydiff_kernels.counter import NoiseCounter, Stream
from dydiff_kernels.denoising_loss import denoising_loss
from dydiff_kernels.frame_mix import frame_mix, frame_unmix
from dydiff_kernels.levels import Levels
from dydiff_kernels.modulation import gated_residual, modulated_norm
from dydiff_kernels.noise import normal, uniform
from dydiff_kernels.registry import Op, register_op
from dydiff_kernels.reverse_step import ReverseStep, StepCoefficients, reverse_step
from dydiff_kernels.short_attention import has_short_attention, short_attention
from dydiff_kernels.tables import CoefficientTable, Gammas, Numbers, TableRows

__all__ = [
    "BACKENDS",
    "Backend",
    "CoefficientTable",
    "Gammas",
    "HeadNorm",
    "LatentPosterior",
    "Levels",
    "NoiseCounter",
    "NoisedLatents",
    "Numbers",
    "Op",
    "ReverseStep",
    "StepCoefficients",
    "Stream",
    "TableRows",
    "add_noise",
    "attention_inputs",
    "available_backends",
    "denoising_loss",
    "frame_mix",
    "frame_unmix",
    "gated_residual",
    "has_short_attention",
    "modulated_norm",
    "normal",
    "register_op",
    "reverse_step",
    "short_attention",
    "uniform",
]
