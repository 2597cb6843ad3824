"""``reverse_step``: one pass over z and the network's output for every sampler (arXiv 2503.00951, sampling).

Reads z and the output, writes z': 3·N·b bytes for N elements of b bytes; one more N·b for each of x̂_prev and x̂. The
kernels pass on no gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dydiff_kernels import native
from dydiff_kernels.checks import check_frames, check_like, check_noise, check_noise_operator
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.outputs import run_into
from dydiff_kernels.registry import Operands, register_op
from dydiff_kernels.reverse_step.coefficients import StepCoefficients
from dydiff_kernels.reverse_step.reference import reverse_step_reference
from dydiff_kernels.tables import TableRows, as_operand, in_general


class ReverseStep(NamedTuple):
    """Results of ``reverse_step``, each (B, S, *rest); ``x0`` is None unless asked for."""

    z: Tensor
    x0: Tensor | None


def reverse_step(
    z: Tensor,
    output: Tensor,
    step: StepCoefficients | TableRows[StepCoefficients],
    *,
    mixes_output: bool = True,
    noise: Tensor | NoiseCounter | None = None,
    noise_operator: Tensor | None = None,
    history: Tensor | None = None,
    x0_prev: Tensor | None = None,
    return_x0: bool = False,
    out: ReverseStep | None = None,
    backend: str = "auto",
) -> ReverseStep:
    """z_t and the network's output to z_t' by the formulas of ``StepCoefficients``, which cover every sampler here.

    Args:
        z: z_t, (B, S, *rest), any strides.
        output: the network's output, like ``z`` (storage types may differ).
        step: the operators' levels and the factors, (B,) each; or rows of a table of them, with which a call is one
            launch.
        mixes_output: False for an output before mixing, as of a network that predicts x itself.
        noise: w, like ``z``, or the ``NoiseCounter`` to draw it from; needed where sigma is not 0.
        noise_operator: L (S, S), float32 (float64 for float64) on the device of ``z``. Its lower triangle acts on the
            frames of w: L w takes its place. None is the identity.
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
    op = "reverse_step"
    check_frames(op, "z", z)
    check_like(op, "output", output, "z", z)
    if history is not None:
        frames = history.shape[1] if history.ndim >= 2 else 0
        if not 1 <= frames <= z.shape[1]:
            found = tuple(history.shape)
            raise ValueError(f"{op}: history has shape {found}; expected 1 to {z.shape[1]} frames of z's shape")
        check_like(op, "history", history, "z[:, :H]", z[:, :frames])
    if x0_prev is not None:
        check_like(op, "x0_prev", x0_prev, "z", z)
    if noise is not None:
        check_noise(op, "noise", noise, "z", z)
    check_noise_operator(op, noise_operator, "z", z)
    step = step.checked(op, z.shape[0])
    if noise is None and _is_not_zero(step, "sigma"):
        raise ValueError(f"{op}: step.sigma is not 0, noise is None; give noise")
    if x0_prev is None and _is_not_zero(step, "previous"):
        raise ValueError(f"{op}: step.previous is not 0, x0_prev is None; give x0_prev")
    if not mixes_output and not in_general(step).shares_operators and _is_not_zero(step, "from_z"):
        # z = a A x + s B ε gives x from an unmixed output only where A⁻¹ unmixes the noise as well, so where B is A.
        raise ValueError(
            f"{op}: step.from_z is not 0 for an output before mixing and operators on noise of their own; "
            "expected 0, for an output that is x itself"
        )
    arguments = (z, output, step, mixes_output, noise, noise_operator, history, x0_prev)
    inputs, wanted = (z, output, noise, history, x0_prev), dict(z=True, x0=return_x0)
    z_next, x0 = run_into(_OP, backend, inputs, arguments, wanted=wanted, out=out, like=z, dtype=z.dtype)
    assert z_next is not None
    return ReverseStep(z_next, x0)


def _is_not_zero(step: StepCoefficients | TableRows[StepCoefficients], name: str) -> bool:
    """Whether a factor is known to be other than 0; on a GPU a look would force a wait."""
    values = getattr(in_general(step), name)
    if values is not None and isinstance(step, TableRows):
        if isinstance(step.rows, Tensor) and step.rows.device.type != "cpu":
            return False
        values = values[step.rows]
    return values is not None and values.device.type == "cpu" and bool(values.any())


def operands(
    z: Tensor,
    output: Tensor,
    step: StepCoefficients | TableRows[StepCoefficients],
    mixes_output: bool,
    noise: Tensor | NoiseCounter | None,
    noise_operator: Tensor | None,
    history: Tensor | None,
    x0_prev: Tensor | None,
    out: Sequence[Tensor | None],
) -> Operands:
    """What the kernels take, from the arguments of the reference and where to write."""
    reads = dict(z=z, output=output, history=history, x0_prev=x0_prev, coefficients=as_operand(step))
    fresh = dict(noise=noise, noise_operator=None if noise is None else noise_operator)
    flags = dict(mixes_output=mixes_output, shares_operators=in_general(step).shares_operators)
    history_frames = 0 if history is None else history.shape[1]
    writes = dict(zip(("z_next", "x0"), out, strict=True))
    return Operands(z, writes, dict(reads, **fresh, **flags, history_frames=history_frames))


_OP = register_op(
    "reverse_step",
    reference=reverse_step_reference,
    cpp=lambda *arguments: native.run("reverse_step", operands(*arguments)),
    triton="dydiff_kernels.reverse_step.triton_kernel:reverse_step",
    aot_cases="dydiff_kernels.reverse_step.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.reverse_step.benchmark:BENCHMARKS",
)
