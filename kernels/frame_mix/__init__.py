"""``frame_mix`` and ``frame_unmix``: the Dynamics operator D_γ along frames (arXiv 2503.00951) and its inverse.

Both are linear in the frames, so the backward pass of each is its transpose, the same filter run from the last frame
to the first; that is a kernel too, which makes the ops differentiable any number of times.
"""

import enum
from collections.abc import Callable

import torch
from torch import Tensor

from dydiff_kernels import native
from dydiff_kernels.checks import Range, check_frames, check_per_sample
from dydiff_kernels.dtypes import square_roots
from dydiff_kernels.frame_mix.reference import frame_mix_reference, frame_unmix_reference
from dydiff_kernels.outputs import new_result
from dydiff_kernels.registry import Op, Operands, register_op
from dydiff_kernels.tables import Gammas, TableRows, of_samples


class FrameFilter(enum.IntEnum):
    """The four linear filters along frames; the numbers are those of ``frame_mix.h``."""

    MIX = 0
    UNMIX = 1
    MIX_TRANSPOSED = 2
    UNMIX_TRANSPOSED = 3

    @property
    def transposed(self) -> "FrameFilter":
        """The filter of the backward pass."""
        return FrameFilter((self + 2) % 4)


def frame_mix(
    x: Tensor, gamma_bar: Tensor | TableRows[Gammas], *, backend: str = "auto", inplace: bool = False
) -> Tensor:
    """y = D_γ̄ x:  y⁰ = x⁰,  yˢ = √γ̄ xˢ + √(1-γ̄) yˢ⁻¹ (arXiv 2503.00951, the Dynamics operator).

    Args:
        x: (B, S, *rest), S ≥ 1, float32, bfloat16, float16 or float64, any strides.
        gamma_bar: (B,) float64 or float32 in [0, 1], one level per sample; not differentiated. Or rows of a table of
            them.
        backend: ``auto | triton | cpp | reference``.
        inplace: overwrite and return ``x``.

    Returns:
        (B, S, *rest) in the dtype of ``x``; differentiable in ``x``.

    Raises:
        ValueError: wrong shape, dtype, device or length, ``gamma_bar`` out of range, or ``backend`` cannot run here.

    Examples:
        >>> x = torch.ones(1, 3)  # one sample of three frames, one number each
        >>> frame_mix(x, torch.tensor([0.36]))
        tensor([[1.0000, 1.4000, 1.7200]])
    """
    return _filter(_MIX, FrameFilter.MIX, x, gamma_bar, backend, inplace)


def frame_unmix(
    y: Tensor, gamma_bar: Tensor | TableRows[Gammas], *, backend: str = "auto", inplace: bool = False
) -> Tensor:
    """x = D_γ̄⁻¹ y:  x⁰ = y⁰,  xˢ = (yˢ - √(1-γ̄) yˢ⁻¹) / √γ̄.

    Arguments, result and errors as for ``frame_mix``, but ``gamma_bar`` must not be 0, where D has no inverse. Rounding
    of y is amplified by up to (1 + √(1-γ̄))/√γ̄.
    """
    return _filter(_UNMIX, FrameFilter.UNMIX, y, gamma_bar, backend, inplace)


def _filter(
    op: Op, kind: FrameFilter, x: Tensor, gamma_bar: Tensor | TableRows[Gammas], backend: str, inplace: bool
) -> Tensor:
    check_frames(op.name, "x" if kind == FrameFilter.MIX else "y", x)
    within: Range = "[0, 1]" if kind == FrameFilter.MIX else "(0, 1]"  # mixing by 0 has no inverse
    levels: Tensor | TableRows[Gammas]
    if isinstance(gamma_bar, TableRows):
        levels = gamma_bar.checked(op.name, x.shape[0])
        if within == "(0, 1]" and not bool(levels.table.values.gamma_bar.all()):
            raise ValueError(f"{op.name}: the table of gamma_bar holds 0.0; expected values in {within}")
    else:
        levels = check_per_sample(op.name, "gamma_bar", gamma_bar, x.shape[0], within)
    run = op.select(backend, [x])
    if run is op.reference:
        y = run(x, levels if isinstance(levels, Tensor) else of_samples(levels, x).gamma_bar)
        return x.copy_(y) if inplace else y
    return _FrameFilterFunction.apply(x, levels, kind, run, inplace)


class _FrameFilterFunction(torch.autograd.Function):
    """A kernel of any of the four filters; its backward is the transposed one, through this same class."""

    @staticmethod
    def forward(ctx, x: Tensor, levels: Tensor | TableRows, kind: FrameFilter, run: Callable, inplace: bool):
        ctx.levels, ctx.kind, ctx.run = levels, kind, run
        if inplace:
            ctx.mark_dirty(x)
        return run(x, levels, kind, inplace)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x = _FrameFilterFunction.apply(grad, ctx.levels, ctx.kind.transposed, ctx.run, False)
        return grad_x, None, None, None, None


def _filter_cpp(x: Tensor, levels: Tensor | TableRows[Gammas], kind: FrameFilter, inplace: bool) -> Tensor:
    """Filter ``kind`` of ``x`` (B, S, *rest), into a new contiguous tensor or into ``x``."""
    out = x if inplace and native.writable_in_place(x) else new_result(x.shape, x.dtype)
    coefficients = list(square_roots(levels)) if isinstance(levels, Tensor) else levels
    native.run("frame_filter", Operands(x, dict(out=out), dict(x=x, coefficients=coefficients, kind=int(kind))))
    return x.copy_(out) if inplace and out is not x else out


_MIX, _UNMIX = (
    register_op(
        name,
        reference=reference,
        cpp=_filter_cpp,
        triton="dydiff_kernels.frame_mix.triton_kernel:frame_filter",
        differentiable=True,
        aot_cases="dydiff_kernels.frame_mix.triton_kernel:AOT_CASES",
        benchmarks="dydiff_kernels.frame_mix.benchmark:BENCHMARKS",
    )
    for name, reference in (("frame_mix", frame_mix_reference), ("frame_unmix", frame_unmix_reference))
)
