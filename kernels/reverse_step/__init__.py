"""``reverse_step``: one pass over z and the network's output for every sampler (arXiv 2503.00951, sampling).

Reads z and the output, writes z': 3·N·b bytes for N elements of b bytes; one more N·b for each of x̂_prev and x̂. The
kernels pass on no gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dydiff_kernels import native
from dydiff_kernels.checks import check_frames, check_like, check_noise
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.noise.reference import draw_noise
from dydiff_kernels.outputs import check_out, deliver, given_or_new
from dydiff_kernels.registry import register_op
from dydiff_kernels.reverse_step.coefficients import StepCoefficients
from dydiff_kernels.reverse_step.reference import reverse_step_reference


class ReverseStep(NamedTuple):
    """Results of ``reverse_step``, each (B, S, *rest); ``x0`` is None unless asked for."""

    z: torch.Tensor
    x0: torch.Tensor | None


def reverse_step(
    z: torch.Tensor,
    output: torch.Tensor,
    step: StepCoefficients,
    *,
    mixes_output: bool = True,
    noise: torch.Tensor | NoiseCounter | None = None,
    history: torch.Tensor | None = None,
    x0_prev: torch.Tensor | None = None,
    return_x0: bool = False,
    out: ReverseStep | None = None,
    backend: str = "auto",
) -> ReverseStep:
    """z_t and the network's output to z_t' by the formulas of ``StepCoefficients``, which cover every sampler here.

    Args:
        z: z_t, (B, S, *rest), any strides.
        output: the network's output, like ``z`` (storage types may differ).
        step: the operators' levels and the factors, (B,) each.
        mixes_output: False for an output before mixing, as of a network that predicts x itself.
        noise: w, like ``z``, or the ``NoiseCounter`` to draw it from; needed where sigma is not 0.
        history: known clean latents of the first H frames, (B, H, *rest), 1 ≤ H ≤ S; x̂ is set to them.
        x0_prev: x̂ of the step before, for multistep samplers; needed where ``step.previous`` is not 0.
        return_x0: also return x̂.
        out: results to overwrite; ``out.z`` may be ``z``, ``out.x0`` may be ``x0_prev``. Saves allocations, which on a
            CPU cost more than the kernel.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        ``ReverseStep(z, x0)`` in the dtype of ``z``. Differentiable in every tensor that requires a gradient; then, and
        for float64, the reference runs.

    Raises:
        ValueError: wrong shape, dtype, device, length or range, or arguments that do not belong together.
    """
    request = _request(z, output, step, mixes_output, noise, history, x0_prev, return_x0)
    given = check_out("reverse_step", ReverseStep._fields, out, z, z.dtype)
    return _OP.select(backend, (z, output, noise, history, x0_prev))(request, given)


Given = tuple[torch.Tensor | None, ...]
"""z' and x̂ to overwrite; None for new memory."""


@dataclass(frozen=True)
class ReverseStepRequest:
    """Validated arguments of ``reverse_step``; ``step`` is a checked one."""

    z: torch.Tensor
    output: torch.Tensor
    step: StepCoefficients
    mixes_output: bool
    noise: torch.Tensor | NoiseCounter | None
    history: torch.Tensor | None
    x0_prev: torch.Tensor | None
    return_x0: bool

    @property
    def history_frames(self) -> int:
        """How many frames are known."""
        return 0 if self.history is None else self.history.shape[1]

    def results(self, given: Given) -> ReverseStep:
        """Tensors for a kernel to write."""
        z, x0 = given
        new_x0 = given_or_new(x0, self.z, self.z.dtype) if self.return_x0 else None
        return ReverseStep(given_or_new(z, self.z, self.z.dtype), new_x0)


def _request(
    z: torch.Tensor,
    output: torch.Tensor,
    step: StepCoefficients,
    mixes_output: bool,
    noise: torch.Tensor | NoiseCounter | None,
    history: torch.Tensor | None,
    x0_prev: torch.Tensor | None,
    return_x0: bool,
) -> ReverseStepRequest:
    op = "reverse_step"
    check_frames(op, "z", z)
    check_like(op, "output", output, "z", z)
    if history is not None:
        _check_history(op, z, history)
    if x0_prev is not None:
        check_like(op, "x0_prev", x0_prev, "z", z)
    if noise is not None:
        check_noise(op, "noise", noise, "z", z)
    step = step.checked(op, z.shape[0])
    if noise is None and _holds_other_than_zero(step.sigma):
        raise ValueError(f"{op}: step.sigma is not 0, noise is None; give noise")
    if x0_prev is None and _holds_other_than_zero(step.previous):
        raise ValueError(f"{op}: step.previous is not 0, x0_prev is None; give x0_prev")
    if not mixes_output and not step.shares_operators() and _holds_other_than_zero(step.from_z):
        # z = a A x + s B ε gives x from an unmixed output only where A⁻¹ unmixes the noise as well, so where B is A.
        raise ValueError(
            f"{op}: step.from_z is not 0 for an output before mixing and operators on noise of their own; "
            "expected 0, for an output that is x itself"
        )
    return ReverseStepRequest(z, output, step, mixes_output, noise, history, x0_prev, return_x0)


def _holds_other_than_zero(values: torch.Tensor | None) -> bool:
    """Whether a value is known to be other than 0; on a GPU a look would force a wait."""
    return values is not None and values.device.type == "cpu" and any(values.tolist())


def _check_history(op: str, z: torch.Tensor, history: torch.Tensor) -> None:
    frames = history.shape[1] if history.ndim >= 2 else 0
    if not 1 <= frames <= z.shape[1]:
        raise ValueError(
            f"{op}: history has shape {tuple(history.shape)}; expected 1 to {z.shape[1]} frames of z's shape"
        )
    check_like(op, "history", history, "z[:, :H]", z[:, :frames])


def _run_reference(request: ReverseStepRequest, given: Given) -> ReverseStep:
    compute = compute_dtype(request.z)
    z, output, history, x0_prev = (
        None if t is None else t.to(compute) for t in (request.z, request.output, request.history, request.x0_prev)
    )
    noise = None if request.noise is None else draw_noise(request.noise, request.z)
    z_next, x0 = reverse_step_reference(z, output, request.step, request.mixes_output, noise, history, x0_prev)
    dtype = request.z.dtype
    return ReverseStep(deliver(z_next, given[0], dtype), deliver(x0, given[1], dtype) if request.return_x0 else None)


def _run_cpp(request: ReverseStepRequest, given: Given) -> ReverseStep:
    results = request.results(given)
    table = native.float_table(request.step.columns())
    native.run(
        "reverse_step",
        request.z,
        z=request.z,
        output=request.output,
        history=request.history,
        history_frames=request.history_frames,
        x0_prev=request.x0_prev,
        noise=request.noise,
        coefficients=table.data_ptr(),
        mixes_output=request.mixes_output,
        shares_operators=request.step.shares_operators(),
        z_next=results.z,
        x0=results.x0,
    )
    return results


_OP = register_op(
    "reverse_step",
    reference=_run_reference,
    cpp=_run_cpp,
    triton="dydiff_kernels.reverse_step.triton_kernel:reverse_step",
    aot_cases="dydiff_kernels.reverse_step.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.reverse_step.benchmark:BENCHMARKS",
)
