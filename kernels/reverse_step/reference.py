"""One reverse step in plain torch: guidance, x̂, combination, mixing (arXiv 2503.00951, sampling)."""

import torch

from dydiff_kernels.dtypes import per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference, frame_unmix_reference
from dydiff_kernels.reverse_step.coefficients import StepCoefficients


def estimate_x0_reference(
    z: torch.Tensor,
    output: torch.Tensor,
    k: StepCoefficients,
    prediction: str,
    history: torch.Tensor | None,
) -> torch.Tensor:
    """x̂ = D_γ̄⁻¹ μ̂ with μ̂ from z and the output (eps, v), or the output itself (x0); history frames are set."""
    x0 = output
    if prediction != "x0":
        from_z, from_output = (per_sample(f, z) for f in k.mean_factors(prediction))
        x0 = frame_unmix_reference(from_z * z + from_output * output, k.gamma_bar)
    return x0 if history is None else torch.cat((history, x0[:, history.shape[1] :]), 1)


def reverse_step_reference(
    z: torch.Tensor,
    x0: torch.Tensor,
    k: StepCoefficients,
    dependent_noise: bool,
    noise: torch.Tensor | None,
    x0_prev: torch.Tensor | None,
) -> torch.Tensor:
    """z' by the formulas of ``StepCoefficients``; all tensors in the dtype of the calculation."""
    a, b, c, sigma = (per_sample(value, z) for value in (k.a, k.b, k.c, k.sigma))
    noise_part = 0.0 if noise is None else sigma * noise
    if not dependent_noise:
        mixed_next, mixed = frame_mix_reference(x0, k.gamma_bar_next), frame_mix_reference(x0, k.gamma_bar)
        return a * z + b * mixed_next + c * mixed + noise_part
    total = a * frame_unmix_reference(z, k.gamma_bar) + b * x0 + noise_part
    if x0_prev is not None:
        total = total + c * x0_prev
    return frame_mix_reference(total, k.gamma_bar_next)
