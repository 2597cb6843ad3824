"""One reverse step in plain torch, the specification of every sampler's step; differentiable."""

import torch
from torch import Tensor

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype, per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference, frame_unmix_reference
from dydiff_kernels.noise.reference import draw_colored
from dydiff_kernels.reverse_step.coefficients import StepCoefficients
from dydiff_kernels.tables import TableRows, of_samples


def reverse_step_reference(
    z: Tensor,
    output: Tensor,
    step: StepCoefficients | TableRows[StepCoefficients],
    mixes_output: bool,
    noise: Tensor | NoiseCounter | None,
    noise_operator: Tensor | None,
    history: Tensor | None,
    x0_prev: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(z', x̂) by the formulas of ``StepCoefficients`` (a checked one), in float32 or float64."""
    z, step = z.to(compute_dtype(z)), of_samples(step, z)
    from_z, from_output, a, b, c, k, sigma = (per_sample(factor, z) for factor in step.factors())
    if mixes_output:
        x0 = frame_unmix_reference(from_z * z + from_output * output, step.frame_gamma)
    else:
        x0 = from_z * frame_unmix_reference(z, step.frame_gamma) + from_output * output
    if history is not None:
        x0 = torch.cat((history.to(z.dtype), x0[:, history.shape[1] :]), 1)
    noise_gamma, next_noise_gamma = step.noise_operators()
    clean = b * x0 if x0_prev is None else b * x0 + c * x0_prev
    white = k * frame_unmix_reference(z - a * frame_mix_reference(x0, step.frame_gamma), noise_gamma)
    white = white if noise is None else white + sigma * draw_colored(noise, noise_operator, z)
    return frame_mix_reference(clean, step.next_frame_gamma) + frame_mix_reference(white, next_noise_gamma), x0
