"""The second stage of a sum over tokens: what the programs of a kernel found for themselves is added up, in order.

No atomics, so runs repeat exactly; as many programs as there are stretches of columns, so none adds up all of them.
"""

import torch
import triton
import triton.language as tl

from dydiff_kernels.gpu import NUM_WARPS, AotCase

_ELEMENTS = 2048  # of a program's block


@triton.jit
def _partial_sums_kernel(sums_ptr, out_ptr, next_out_ptr, K, P, R, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of one of the sums (P, R); the first K rows go to one result, the others to the next."""
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for first in range(0, P, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < P)[:, None] & (columns < R)[None, :]
        total += tl.load(sums_ptr + (row * P + part)[:, None] * R + columns[None, :], mask=mask, other=0.0)
    out = tl.sum(total, 0)
    if row < K:
        tl.store(out_ptr + row * R + columns, out.to(out_ptr.dtype.element_ty), mask=columns < R)
    else:
        tl.store(next_out_ptr + (row - K) * R + columns, out.to(next_out_ptr.dtype.element_ty), mask=columns < R)


def add_partial_sums(sums: torch.Tensor, *like: torch.Tensor) -> list[torch.Tensor]:
    """(n·K, P, R) float32, P partial sums of each row -> results like the n of ``like``, one or two of K·R elements."""
    rows, P, R = sums.shape
    results = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in like]
    parts = min(128, triton.next_power_of_2(P))
    block = min(128, _ELEMENTS // parts)
    grid = (rows, triton.cdiv(R, block))
    outs = dict(out_ptr=results[0], next_out_ptr=results[-1], K=rows // len(like))
    _partial_sums_kernel[grid](sums, **outs, P=P, R=R, PARTS=parts, BLOCK=block, num_warps=NUM_WARPS)
    return results


AOT_CASES = [
    AotCase(
        "partial_sums",
        _partial_sums_kernel,
        (),
        ("out_ptr", "next_out_ptr"),
        ("sums_ptr",),
        constants=dict(PARTS=16, BLOCK=128),
    )
]
