"""``reverse_step``: one pass over z and the network's output for every sampler (arXiv 2503.00951, sampling).

Reads z and the output, writes z': 3·N·b bytes for N elements of b bytes; one more N·b for each of unconditional output,
x̂_prev and x̂. Not differentiable.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dydiff_kernels.backends import choose_backend
from dydiff_kernels.checks import (
    check_frames,
    check_like,
    check_no_grad,
    check_noise,
    check_output,
    check_per_sample,
    check_prediction,
)
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype, per_sample
from dydiff_kernels.memory import new_result
from dydiff_kernels.noise.reference import draw_noise
from dydiff_kernels.reverse_step import cpp, reference
from dydiff_kernels.reverse_step.coefficients import StepCoefficients


class ReverseStep(NamedTuple):
    """Results of ``reverse_step``, each (B, S, *rest); ``x0`` is None unless asked for."""

    z: torch.Tensor
    x0: torch.Tensor | None


def reverse_step(
    z: torch.Tensor,
    output: torch.Tensor,
    coefficients: StepCoefficients,
    *,
    prediction: str = "eps",
    dependent_noise: bool = True,
    uncond_output: torch.Tensor | None = None,
    guidance_scale: float | torch.Tensor = 1.0,
    noise: torch.Tensor | NoiseCounter | None = None,
    history: torch.Tensor | None = None,
    x0_prev: torch.Tensor | None = None,
    return_x0: bool = False,
    out: ReverseStep | None = None,
    backend: str = "auto",
) -> ReverseStep:
    """z_t and the network's output to z_t' by the formula of ``StepCoefficients``, which covers every sampler here.

    Args:
        z: z_t, (B, S, *rest), any strides.
        output: the network's output, like ``z`` (storage types may differ); conditional where there is guidance.
        coefficients: per-sample levels and factors.
        prediction: what ``output`` is: ``eps``, ``v`` or ``x0``.
        dependent_noise: which of the two formulas.
        uncond_output: output of the unconditional branch; out = uncond + w·(output - uncond).
        guidance_scale: w, a number or (B,); only with ``uncond_output``.
        noise: n, like ``z``, or the ``NoiseCounter`` to draw it from; needed where sigma is not 0.
        history: known clean latents of the first H frames, (B, H, *rest), 1 ≤ H ≤ S; x̂ is set to them.
        x0_prev: x̂ of the step before, for multistep samplers; only with dependent noise.
        return_x0: also return x̂.
        out: results to overwrite; ``out.z`` may be ``z``, ``out.x0`` may be ``x0_prev``. Saves allocations, which on a
            CPU cost more than the kernel.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        ``ReverseStep(z, x0)`` in the dtype of ``z``.

    Raises:
        ValueError: wrong shape, dtype, device, length or range, or arguments that do not belong together.
    """
    request = _request(
        z, output, coefficients, prediction, dependent_noise, uncond_output, guidance_scale, noise, history, x0_prev
    )
    inputs = (z, output, uncond_output, noise, history, x0_prev)
    dtypes = tuple(t.dtype for t in inputs if isinstance(t, torch.Tensor))
    chosen = choose_backend("reverse_step", backend, z.device, dtypes)
    results = _allocate(z, return_x0, out)
    if chosen == "reference":
        _run_reference(request, results)
    elif chosen == "triton":
        from dydiff_kernels.reverse_step import triton_kernel

        triton_kernel.reverse_step(request, results)
    else:
        cpp.reverse_step(request, results)
    return results


@dataclass(frozen=True)
class ReverseStepRequest:
    """Validated arguments of ``reverse_step``; ``guidance_scale`` is (B,) float64."""

    z: torch.Tensor
    output: torch.Tensor
    coefficients: StepCoefficients
    prediction: str
    dependent_noise: bool
    uncond_output: torch.Tensor | None
    guidance_scale: torch.Tensor
    noise: torch.Tensor | NoiseCounter | None
    history: torch.Tensor | None
    x0_prev: torch.Tensor | None

    def columns(self) -> list[torch.Tensor]:
        """Columns of the kernels' coefficient table."""
        return self.coefficients.columns(self.prediction, self.guidance_scale)


def _request(
    z, output, coefficients, prediction, dependent_noise, uncond_output, guidance_scale, noise, history, x0_prev
):
    op = "reverse_step"
    check_frames(op, "z", z)
    check_prediction(op, prediction)
    coefficients = coefficients.checked(op, z.shape[0])
    for name, x in (("output", output), ("uncond_output", uncond_output), ("x0_prev", x0_prev)):
        if x is not None:
            check_like(op, name, x, "z", z)
    for name, x in (("z", z), ("output", output), ("uncond_output", uncond_output), ("history", history)):
        if x is not None:
            check_no_grad(op, name, x)
    if history is not None:
        _check_history(op, z, history)
    if x0_prev is not None and not dependent_noise:
        raise ValueError(f"{op}: x0_prev is given with dependent_noise=False; multistep samplers need dependent noise")
    if noise is not None:
        check_noise(op, "noise", noise, "z", z)
    elif coefficients.sigma.device.type == "cpu" and (coefficients.sigma != 0).any():
        raise ValueError(f"{op}: coefficients.sigma holds {coefficients.sigma.max().item()}, noise is None; give noise")
    if x0_prev is None and dependent_noise and coefficients.c.device.type == "cpu" and (coefficients.c != 0).any():
        raise ValueError(f"{op}: coefficients.c is not 0, x0_prev is None; give x0_prev")
    return ReverseStepRequest(
        z, output, coefficients, prediction, dependent_noise, uncond_output,
        _guidance(op, z, coefficients, uncond_output, guidance_scale), noise, history, x0_prev,
    )  # fmt: skip


def _guidance(op: str, z, coefficients, uncond_output, guidance_scale: float | torch.Tensor) -> torch.Tensor:
    """w as (B,) float64, where the coefficients are."""
    if isinstance(guidance_scale, torch.Tensor) and guidance_scale.ndim:
        w = check_per_sample(op, "guidance_scale", guidance_scale, z.shape[0], low=None).to(coefficients.a.device)
    else:
        w = torch.full_like(coefficients.a, float(guidance_scale))
    if uncond_output is None and not isinstance(guidance_scale, torch.Tensor) and guidance_scale != 1.0:
        raise ValueError(f"{op}: guidance_scale is {guidance_scale}, uncond_output is None; give uncond_output")
    return w


def _check_history(op: str, z: torch.Tensor, history: torch.Tensor) -> None:
    frames = history.shape[1] if history.ndim >= 2 else 0
    if not 1 <= frames <= z.shape[1]:
        raise ValueError(
            f"{op}: history has shape {tuple(history.shape)}; expected 1 to {z.shape[1]} frames of z's shape"
        )
    check_like(op, "history", history, "z[:, :H]", z[:, :frames])


def _allocate(z: torch.Tensor, return_x0: bool, out: ReverseStep | None) -> ReverseStep:
    out = out or ReverseStep(None, None)

    def room(name: str) -> torch.Tensor:
        given = getattr(out, name)
        if given is None:
            return new_result(z.shape, z.dtype, z.device)
        check_output("reverse_step", f"out.{name}", given, z, z.dtype)
        return given

    return ReverseStep(room("z"), room("x0") if return_x0 else None)


def _run_reference(request: ReverseStepRequest, results: ReverseStep) -> None:
    compute = compute_dtype(request.z)
    z, output, uncond, history, x0_prev = (
        None if t is None else t.to(compute)
        for t in (request.z, request.output, request.uncond_output, request.history, request.x0_prev)
    )
    if uncond is not None:
        output = uncond + per_sample(request.guidance_scale, z) * (output - uncond)
    noise = None if request.noise is None else draw_noise(request.noise, z)
    x0 = reference.estimate_x0_reference(z, output, request.coefficients, request.prediction, history)
    z_next = reference.reverse_step_reference(z, x0, request.coefficients, request.dependent_noise, noise, x0_prev)
    results.z.copy_(z_next)
    if results.x0 is not None:
        results.x0.copy_(x0)
