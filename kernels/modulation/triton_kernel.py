"""``modulated_norm`` and ``gated_residual`` in Triton, forward and backward (formulas in ``modulation.h``).

A program owns ROWS tokens of a group, whose shift, scale or gate it reads once; a token's channels are one block, 16 to
a thread. Sums over a group's tokens leave a row of partial sums for each program; a second kernel adds those up.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dydiff_kernels.gpu import AotCase
from dydiff_kernels.modulation import new_tokens, num_groups
from dydiff_kernels.outputs import channels_contiguous
from dydiff_kernels.partial_sums import AOT_CASES as PARTIAL_SUMS
from dydiff_kernels.partial_sums import add_partial_sums
from dydiff_kernels.registry import Passes

ROWS = 32  # 768 programs for 24,576 tokens, whose partial sums are an eleventh of the gradient in bf16
ELEMENTS_A_THREAD = 16


@triton.jit
def _first_token(T, ROWS: tl.constexpr):
    """What this program owns of groups of T tokens: the group, its number's first token, and how many, int64."""
    parts = tl.cdiv(T, ROWS)
    group = (tl.program_id(0) // parts).to(tl.int64)
    first = (tl.program_id(0) % parts) * ROWS
    return group, group * T + first, tl.minimum(ROWS, T - first)


@triton.jit
def _offset(token, S, N, stride_b, stride_s, stride_n):
    """Where token number (b·S + s)·N + n begins, int64."""
    frame = token // N
    return (frame // S) * stride_b + (frame % S) * stride_s + (token % N) * stride_n


@triton.jit
def _modulated_norm_kernel(
    x_ptr, shift_ptr, scale_ptr, out_ptr, statistics_ptr, T, S, N, R, epsilon,
    x_b, x_s, x_n, out_b, out_s, out_n, shift_row, scale_row, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, first, num = _first_token(T, ROWS)
    r = tl.arange(0, BLOCK)
    mask = r < R
    shift = tl.load(shift_ptr + group * shift_row + r, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + group * scale_row + r, mask=mask, other=0.0).to(tl.float32)
    for i in range(num):
        token = first + i
        x = tl.load(x_ptr + _offset(token, S, N, x_b, x_s, x_n) + r, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, 0) / R
        centred = tl.where(mask, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 0) / R + epsilon)
        tl.store(statistics_ptr + 2 * token, mean)
        tl.store(statistics_ptr + 2 * token + 1, inverse)
        y = centred * inverse * scale + shift
        tl.store(out_ptr + _offset(token, S, N, out_b, out_s, out_n) + r, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _modulated_norm_backward_kernel(
    x_ptr, scale_ptr, grad_ptr, statistics_ptr, grad_x_ptr, sums_ptr, T, S, N, R,
    x_b, x_s, x_n, grad_b, grad_s, grad_n, grad_x_b, grad_x_s, grad_x_n, scale_row,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of x, and the sums of dy and of dy x̂ over this program's tokens."""
    group, first, num = _first_token(T, ROWS)
    r = tl.arange(0, BLOCK)
    mask = r < R
    scale = 1.0 + tl.load(scale_ptr + group * scale_row + r, mask=mask, other=0.0).to(tl.float32)
    sum_shift = tl.zeros([BLOCK], tl.float32)
    sum_scale = tl.zeros([BLOCK], tl.float32)
    for i in range(num):
        token = first + i
        x = tl.load(x_ptr + _offset(token, S, N, x_b, x_s, x_n) + r, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(grad_ptr + _offset(token, S, N, grad_b, grad_s, grad_n) + r, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.load(statistics_ptr + 2 * token + 1)
        normal = tl.where(mask, (x - tl.load(statistics_ptr + 2 * token)) * inverse, 0.0)
        sum_shift += dy
        sum_scale += dy * normal
        p = dy * scale
        dx = (p - tl.sum(p, 0) / R - normal * (tl.sum(p * normal, 0) / R)) * inverse
        to = grad_x_ptr + _offset(token, S, N, grad_x_b, grad_x_s, grad_x_n) + r
        tl.store(to, dx.to(grad_x_ptr.dtype.element_ty), mask=mask)
    row = sums_ptr + tl.program_id(0).to(tl.int64) * R + r
    tl.store(row, sum_shift, mask=mask)
    tl.store(row + tl.num_programs(0).to(tl.int64) * R, sum_scale, mask=mask)


@triton.jit
def _gated_residual_kernel(
    x_ptr, gate_ptr, branch_ptr, out_ptr, T, S, N, R, x_b, x_s, x_n, branch_b, branch_s, branch_n,
    out_b, out_s, out_n, gate_row, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, first, num = _first_token(T, ROWS)
    r = tl.arange(0, BLOCK)
    mask = r < R
    gate = tl.load(gate_ptr + group * gate_row + r, mask=mask, other=0.0).to(tl.float32)
    for i in range(num):
        token = first + i
        x = tl.load(x_ptr + _offset(token, S, N, x_b, x_s, x_n) + r, mask=mask, other=0.0).to(tl.float32)
        from_branch = branch_ptr + _offset(token, S, N, branch_b, branch_s, branch_n) + r
        y = x + gate * tl.load(from_branch, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + _offset(token, S, N, out_b, out_s, out_n) + r, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_residual_backward_kernel(
    gate_ptr, branch_ptr, grad_ptr, grad_branch_ptr, sums_ptr, T, S, N, R, branch_b, branch_s, branch_n,
    grad_b, grad_s, grad_n, grad_branch_b, grad_branch_s, grad_branch_n, gate_row,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the branch, and the sum of dy·branch over this program's tokens."""
    group, first, num = _first_token(T, ROWS)
    r = tl.arange(0, BLOCK)
    mask = r < R
    gate = tl.load(gate_ptr + group * gate_row + r, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(num):
        token = first + i
        dy = tl.load(grad_ptr + _offset(token, S, N, grad_b, grad_s, grad_n) + r, mask=mask, other=0.0).to(tl.float32)
        from_branch = branch_ptr + _offset(token, S, N, branch_b, branch_s, branch_n) + r
        total += dy * tl.load(from_branch, mask=mask, other=0.0).to(tl.float32)
        to = grad_branch_ptr + _offset(token, S, N, grad_branch_b, grad_branch_s, grad_branch_n) + r
        tl.store(to, (dy * gate).to(grad_branch_ptr.dtype.element_ty), mask=mask)
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * R + r, total, mask=mask)


def _rows(condition: Tensor) -> Tensor:
    """(B, S or 1, 1, D) as one row for each group, (G, D)."""
    return channels_contiguous(condition).reshape(-1, condition.shape[-1])


def _launch(kernel, groups: int, tokens: dict[str, Tensor], rows: dict[str, Tensor], **others) -> None:
    """Runs a kernel over ``tokens``, (B, S, N, D) of any strides, and ``rows`` (G, D); none of them is empty."""
    B, S, N, D = next(iter(tokens.values())).shape
    T, block = B * S * N // groups, max(32, triton.next_power_of_2(D))
    arguments: dict[str, Any] = {f"{name}_ptr": tensor for name, tensor in {**tokens, **rows}.items()}
    for name, tensor in tokens.items():
        arguments |= dict(zip((f"{name}_b", f"{name}_s", f"{name}_n"), tensor.stride()[:3], strict=True))
    arguments |= {f"{name}_row": row.stride(0) for name, row in rows.items()}
    num_warps = max(1, block // (32 * ELEMENTS_A_THREAD))
    grid = (groups * triton.cdiv(T, ROWS),)
    kernel[grid](**arguments, **others, T=T, S=S, N=N, R=D, ROWS=ROWS, BLOCK=block, num_warps=num_warps)


def _new_sums(num_sums: int, groups: int, x: Tensor) -> Tensor:
    """Memory for the programs' partial sums: (sums·G, P, D)."""
    parts = triton.cdiv(x.shape[:3].numel() // groups, ROWS)
    return torch.empty((num_sums * groups, parts, x.shape[3]), dtype=torch.float32, device=x.device)


def _norm_forward(x: Tensor, shift: Tensor, scale: Tensor, epsilon: float, frames_last: bool) -> tuple[Tensor, Tensor]:
    x, out = channels_contiguous(x), new_tokens(x, frames_last)
    statistics = torch.empty((x.shape[:3].numel(), 2), dtype=torch.float32, device=x.device)
    rows = dict(shift=_rows(shift), scale=_rows(scale))
    groups = num_groups(x.shape, shift)
    _launch(_modulated_norm_kernel, groups, dict(x=x, out=out), rows, statistics_ptr=statistics, epsilon=float(epsilon))
    return out, statistics


def _norm_backward(grad: Tensor, x: Tensor, shift: Tensor, scale: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
    x, grad, grad_x = channels_contiguous(x), channels_contiguous(grad), new_tokens(x)
    groups = num_groups(x.shape, scale)
    sums = _new_sums(2, groups, x)
    tokens = dict(x=x, grad=grad, grad_x=grad_x)
    rows = dict(scale=_rows(scale))
    _launch(_modulated_norm_backward_kernel, groups, tokens, rows, statistics_ptr=statistics, sums_ptr=sums)
    return grad_x, *add_partial_sums(sums, shift, scale)


def _gate_forward(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    x, branch, out = channels_contiguous(x), channels_contiguous(branch), new_tokens(x)
    tokens, rows = dict(x=x, branch=branch, out=out), dict(gate=_rows(gate))
    _launch(_gated_residual_kernel, num_groups(x.shape, gate), tokens, rows)
    return out


def _gate_backward(grad: Tensor, gate: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    grad, branch, grad_branch = channels_contiguous(grad), channels_contiguous(branch), new_tokens(branch)
    groups = num_groups(branch.shape, gate)
    sums = _new_sums(1, groups, branch)
    tokens = dict(branch=branch, grad=grad, grad_branch=grad_branch)
    _launch(_gated_residual_backward_kernel, groups, tokens, dict(gate=_rows(gate)), sums_ptr=sums)
    return add_partial_sums(sums, gate)[0], grad_branch


NORM, GATE = Passes(_norm_forward, _norm_backward), Passes(_gate_forward, _gate_backward)


def _case(name: str, kernel, reads: tuple[str, ...], writes: tuple[str, ...], *scalars: str) -> AotCase:
    """A kernel of rows of 1024 channels, of strides that are a multiple of 16."""
    strides = tuple(name for name in kernel.arg_names if name.endswith(("_b", "_s", "_n", "_row")))
    constants, floats = dict(ROWS=ROWS, BLOCK=1024), ("epsilon",)
    return AotCase(name, kernel, reads, writes, scalars, constants, floats, ("R", *strides), num_warps=2)


_STATISTICS, _SUMS = "statistics_ptr", "sums_ptr"
AOT_CASES = [
    *PARTIAL_SUMS,
    _case("modulated_norm", _modulated_norm_kernel, ("x_ptr", "shift_ptr", "scale_ptr"), ("out_ptr",), _STATISTICS),
    _case(
        "modulated_norm_backward",
        _modulated_norm_backward_kernel,
        ("x_ptr", "scale_ptr", "grad_ptr"),
        ("grad_x_ptr",),
        _STATISTICS,
        _SUMS,
    ),
    _case("gated_residual", _gated_residual_kernel, ("x_ptr", "gate_ptr", "branch_ptr"), ("out_ptr",)),
    _case(
        "gated_residual_backward",
        _gated_residual_backward_kernel,
        ("gate_ptr", "branch_ptr", "grad_ptr"),
        ("grad_branch_ptr",),
        _SUMS,
    ),
]
