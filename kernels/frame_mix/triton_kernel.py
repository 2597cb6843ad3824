"""The Dynamics operator, its inverse and their transposes in Triton (formulas in ``reference.py``)."""

import torch
import triton
import triton.language as tl

from dydiff_kernels.frame_mix import FrameFilter
from dydiff_kernels.gpu import TABLE, AotCase, launch, program_block, table_row
from dydiff_kernels.registry import Operands
from dydiff_kernels.tables import Gammas, TableRows


@triton.jit
def mix_frame(s, keep, carry, x, state):
    """state ← keep·x + carry·state; frame 0 is taken as it is. ``state`` starts as zeros."""
    return tl.where(s == 0, 1.0, keep) * x + carry * state


@triton.jit
def unmix_frame(s, inverse_keep, carry, x, before):
    """(x - carry·before) / keep; frame 0 is taken as it is. ``before`` starts as zeros."""
    return (x - carry * before) * tl.where(s == 0, 1.0, inverse_keep)


@triton.jit(do_not_specialize=["coefficients_row"])
def _frame_filter_kernel(
    x_ptr, out_ptr, gamma_bar_ptr, coefficients_ptr, coefficients_index_ptr, coefficients_row, S, R,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one sample, frame by frame; KIND is a ``FrameFilter``. Levels come as γ̄, float64, or as a table."""
    b, _, r = program_block(R, BLOCK)
    mask = r < R
    if gamma_bar_ptr is not None:
        gamma_bar = tl.load(gamma_bar_ptr + b).to(tl.float64)
        keep, carry = tl.sqrt(gamma_bar).to(tl.float32), tl.sqrt(1.0 - gamma_bar).to(tl.float32)
    else:
        row = coefficients_ptr + 2 * table_row(coefficients_index_ptr, coefficients_row, b)
        keep, carry = tl.load(row), tl.load(row + 1)
    inverse_keep = 1.0 / keep
    state = tl.zeros([BLOCK], tl.float32)
    for position in range(S):
        s = position if KIND < 2 else S - 1 - position  # transposes run from the last frame
        offset = (b * S + s) * R + r
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if KIND == 0:
            state = mix_frame(s, keep, carry, x, state)
            out = state
        elif KIND == 1:
            out = unmix_frame(s, inverse_keep, carry, x, state)
            state = x
        elif KIND == 2:
            state = x + carry * state
            out = state * tl.where(s == 0, 1.0, keep)
        else:
            out = x * tl.where(s == 0, 1.0, inverse_keep) - (carry * inverse_keep) * state
            state = x
        tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=mask)


def frame_filter(
    x: torch.Tensor, levels: torch.Tensor | TableRows[Gammas], kind: FrameFilter, inplace: bool
) -> torch.Tensor:
    """Filter ``kind`` of ``x`` (B, S, *rest), into a new contiguous tensor or into ``x``."""
    out = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format)
    if isinstance(levels, TableRows):
        reads = dict(x=x, gamma_bar=None, coefficients=levels)
    else:
        reads = dict(x=x, gamma_bar=levels.to(x.device), coefficients=None)
    launch(_frame_filter_kernel, Operands(x, dict(out=out), dict(reads, kind=int(kind))))
    return out


AOT_CASES = [
    AotCase(name, _frame_filter_kernel, ("x_ptr",), ("out_ptr",), ("gamma_bar_ptr",), dict(KIND=kind))
    for kind, name in enumerate(("frame_mix", "frame_unmix", "frame_mix_transposed", "frame_unmix_transposed"))
] + [AotCase("frame_unmix_rows", _frame_filter_kernel, ("x_ptr",), ("out_ptr",), TABLE, dict(KIND=FrameFilter.UNMIX))]
