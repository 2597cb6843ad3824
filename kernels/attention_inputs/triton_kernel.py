"""``attention_inputs`` in Triton, forward and backward (formulas in ``attention_inputs.h``).

A program owns ROWS rows, a row being one head of one token; the two channels of each rotated pair are loaded as two
blocks [ROWS, HALF], so that the rotation moves nothing between threads. The second axis of the grid is queries and
keys; in the backward pass also values, whose gradient is only copied.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dydiff_kernels.attention_inputs import NORM_CODES, by_head, values
from dydiff_kernels.gpu import NUM_WARPS, AotCase
from dydiff_kernels.outputs import channels_contiguous
from dydiff_kernels.partial_sums import add_partial_sums
from dydiff_kernels.registry import Passes

ELEMENTS = 2048  # of a program's rows: 16 to a thread
MAX_SUMS = 1024  # programs a part: eight to a multiprocessor, and few enough partial sums of the weights' gradients


@triton.jit
def norm_rows(NORM: tl.constexpr, first, second, mask, E: tl.constexpr, epsilon):
    """x̂ of rows in two halves, and 1/σ; without a norm x and 1."""
    inverse = tl.full([first.shape[0]], 1.0, tl.float32)
    if NORM == 1:
        mean = ((tl.sum(first, 1) + tl.sum(second, 1)) / E)[:, None]
        first = tl.where(mask, first - mean, 0.0)
        second = tl.where(mask, second - mean, 0.0)
    if NORM > 0:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        inverse = 1.0 / tl.sqrt_rn(squares / E + epsilon)
    return first * inverse[:, None], second * inverse[:, None], inverse


@triton.jit
def load_pair(ptr, mask, E: tl.constexpr):
    """Channels e and e + E/2, in float32."""
    first = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    return first, tl.load(ptr + E // 2, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_pair(ptr, first, second, mask, E: tl.constexpr):
    tl.store(ptr, first.to(ptr.dtype.element_ty), mask=mask)
    tl.store(ptr + E // 2, second.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _prepare(
    qkv_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, part, B, N, H, epsilon, qkv_b, qkv_n, qkv_h,
    NORM: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """ROWS queries or keys; ``out_ptr`` is (B, N, H, E), contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, HALF)
    mask = (row < B * N * H)[:, None] & (e < E // 2)[None, :]
    token, head = row // H, row % H
    n = token % N
    start = (token // N) * qkv_b + n * qkv_n + (part * H + head) * qkv_h
    first, second = load_pair(qkv_ptr + start[:, None] + e[None, :], mask, E)
    first, second, _ = norm_rows(NORM, first, second, mask, E, epsilon)
    if NORM > 0:
        weight_first, weight_second = load_pair(weight_ptr + e, e < E // 2, E)
        first, second = first * weight_first[None, :], second * weight_second[None, :]
    angle = n[:, None] * (E // 2) + e[None, :]
    cos, sin = tl.load(cos_ptr + angle, mask=mask, other=0.0), tl.load(sin_ptr + angle, mask=mask, other=0.0)
    to = out_ptr + row[:, None] * E + e[None, :]
    store_pair(to, first * cos - second * sin, second * cos + first * sin, mask, E)


@triton.jit
def _attention_inputs_kernel(
    qkv_ptr, weight_q_ptr, weight_k_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, B, N, H, epsilon, qkv_b, qkv_n, qkv_h,
    NORM: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _prepare(
            qkv_ptr, weight_q_ptr, cos_ptr, sin_ptr, q_ptr, 0, B, N, H, epsilon, qkv_b, qkv_n, qkv_h,
            NORM, E, ROWS, HALF,
        )  # fmt: skip
    else:
        _prepare(
            qkv_ptr, weight_k_ptr, cos_ptr, sin_ptr, k_ptr, 1, B, N, H, epsilon, qkv_b, qkv_n, qkv_h,
            NORM, E, ROWS, HALF,
        )  # fmt: skip


@triton.jit
def prepare_backward_rows(
    NORM: tl.constexpr, dy_first, dy_second, cos, sin, x_first, x_second, inverse, weight_ptr, e, half_mask,
    E: tl.constexpr,
):  # fmt: skip
    """Rows of dx and of du x̂, in two halves each, from dy, x̂ and 1/σ; without a norm the latter two are not used."""
    first = dy_first * cos + dy_second * sin
    second = dy_second * cos - dy_first * sin
    dw_first, dw_second = first * x_first, second * x_second
    if NORM > 0:
        weight_first, weight_second = load_pair(weight_ptr + e, half_mask, E)
        first, second = first * weight_first[None, :], second * weight_second[None, :]
        with_x = ((tl.sum(first * x_first, 1) + tl.sum(second * x_second, 1)) / E)[:, None]
        if NORM == 1:
            mean = ((tl.sum(first, 1) + tl.sum(second, 1)) / E)[:, None]
            first, second = first - mean, second - mean
        first = (first - x_first * with_x) * inverse[:, None]
        second = (second - x_second * with_x) * inverse[:, None]
    return first, second, dw_first, dw_second


@triton.jit
def _prepare_backward(
    qkv_ptr, weight_ptr, cos_ptr, sin_ptr, grad_ptr, grad_qkv_ptr, sums_ptr, part, B, N, H, epsilon,
    qkv_b, qkv_n, qkv_h, grad_b, grad_h, grad_n,
    NORM: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Every so manieth tile of gradients of queries or keys, and the sum of du x̂ over them."""
    e = tl.arange(0, HALF)
    if NORM > 0:
        sum_first = tl.zeros([ROWS, HALF], tl.float32)
        sum_second = tl.zeros([ROWS, HALF], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(B * N * H, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (row < B * N * H)[:, None] & (e < E // 2)[None, :]
        token, head = row // H, row % H
        b, n = token // N, token % N
        dy = grad_ptr + (b * grad_b + head * grad_h + n * grad_n)[:, None] + e[None, :]
        dy_first, dy_second = load_pair(dy, mask, E)
        angle = n[:, None] * (E // 2) + e[None, :]
        cos, sin = tl.load(cos_ptr + angle, mask=mask, other=0.0), tl.load(sin_ptr + angle, mask=mask, other=0.0)
        x_first, x_second = dy_first, dy_second
        inverse = tl.full([ROWS], 1.0, tl.float32)
        if NORM > 0:
            start = b * qkv_b + n * qkv_n + (part * H + head) * qkv_h
            x_first, x_second = load_pair(qkv_ptr + start[:, None] + e[None, :], mask, E)
            x_first, x_second, inverse = norm_rows(NORM, x_first, x_second, mask, E, epsilon)
        first, second, dw_first, dw_second = prepare_backward_rows(
            NORM, dy_first, dy_second, cos, sin, x_first, x_second, inverse, weight_ptr, e, e < E // 2, E
        )
        if NORM > 0:
            sum_first += dw_first
            sum_second += dw_second
        to = grad_qkv_ptr + (token * 3 * H + part * H + head)[:, None] * E + e[None, :]
        store_pair(to, first, second, mask, E)
    if NORM > 0:
        to = sums_ptr + (part * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * E + e
        store_pair(to, tl.sum(sum_first, 0), tl.sum(sum_second, 0), e < E // 2, E)


@triton.jit
def _copy_values(
    grad_ptr, grad_qkv_ptr, B, N, H, grad_b, grad_h, grad_n,
    E: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The gradient of values to its place in that of the projection."""
    e = tl.arange(0, HALF)
    for tile in range(tl.program_id(0), tl.cdiv(B * N * H, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (row < B * N * H)[:, None] & (e < E // 2)[None, :]
        token, head = row // H, row % H
        start = (token // N) * grad_b + head * grad_h + (token % N) * grad_n
        first, second = load_pair(grad_ptr + start[:, None] + e[None, :], mask, E)
        to = grad_qkv_ptr + (token * 3 * H + 2 * H + head)[:, None] * E + e[None, :]
        store_pair(to, first, second, mask, E)


@triton.jit
def _attention_inputs_backward_kernel(
    qkv_ptr, weight_q_ptr, weight_k_ptr, cos_ptr, sin_ptr, grad_q_ptr, grad_k_ptr, grad_v_ptr, grad_qkv_ptr, sums_ptr,
    B, N, H, epsilon, qkv_b, qkv_n, qkv_h, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    NORM: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _prepare_backward(
            qkv_ptr, weight_q_ptr, cos_ptr, sin_ptr, grad_q_ptr, grad_qkv_ptr, sums_ptr, 0, B, N, H, epsilon,
            qkv_b, qkv_n, qkv_h, q_b, q_h, q_n, NORM, E, ROWS, HALF,
        )  # fmt: skip
    elif tl.program_id(1) == 1:
        _prepare_backward(
            qkv_ptr, weight_k_ptr, cos_ptr, sin_ptr, grad_k_ptr, grad_qkv_ptr, sums_ptr, 1, B, N, H, epsilon,
            qkv_b, qkv_n, qkv_h, k_b, k_h, k_n, NORM, E, ROWS, HALF,
        )  # fmt: skip
    else:
        _copy_values(grad_v_ptr, grad_qkv_ptr, B, N, H, v_b, v_h, v_n, E, ROWS, HALF)


def _sizes(num_rows: int, E: int) -> dict[str, int]:
    """Rows and half channels of a program's block."""
    half = max(8, triton.next_power_of_2(E // 2))
    return dict(HALF=half, ROWS=max(1, min(ELEMENTS // (2 * half), triton.next_power_of_2(num_rows))))


def _arguments(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> dict:
    """What both kernels take; ``qkv`` is (B, N, 3·H, E)."""
    B, N, _, E = qkv.shape
    strides = dict(zip(("qkv_b", "qkv_n", "qkv_h"), qkv.stride()[:3], strict=True))
    pointers = dict(qkv_ptr=qkv, weight_q_ptr=weight_q, weight_k_ptr=weight_k, cos_ptr=cos, sin_ptr=sin)
    numbers = dict(B=B, N=N, H=num_heads, E=E, epsilon=float(epsilon), NORM=NORM_CODES[norm])
    return dict(**pointers, **numbers, **strides, **_sizes(B * N * num_heads, E), num_warps=NUM_WARPS)


def _forward(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> tuple[Tensor, Tensor, Tensor]:
    heads = by_head(qkv, num_heads)
    B, N, _, E = heads.shape
    q, k = (torch.empty((B, N, num_heads, E), dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    arguments = _arguments(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    _attention_inputs_kernel[(triton.cdiv(B * N * num_heads, arguments["ROWS"]), 2)](**arguments, q_ptr=q, k_ptr=k)
    return q.transpose(1, 2), k.transpose(1, 2), values(qkv, num_heads)


def _backward(grad_q, grad_k, grad_v, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon):
    heads = by_head(qkv, num_heads)
    arguments = _arguments(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    for name, grad in zip("qkv", (grad_q, grad_k, grad_v), strict=True):
        grad = channels_contiguous(grad)
        arguments[f"grad_{name}_ptr"] = grad
        arguments |= dict(zip((f"{name}_b", f"{name}_h", f"{name}_n"), grad.stride()[:3], strict=True))
    B, N, _, E = heads.shape
    programs = min(MAX_SUMS, triton.cdiv(B * N * num_heads, arguments["ROWS"]))
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    sums = None if weight_q is None else torch.empty((2, programs, E), dtype=torch.float32, device=qkv.device)
    _attention_inputs_backward_kernel[(programs, 3)](**arguments, grad_qkv_ptr=grad_qkv, sums_ptr=sums)
    if sums is None:
        return grad_qkv, None, None
    return grad_qkv, *add_partial_sums(sums, weight_q, weight_k)


PASSES = Passes(_forward, _backward)

_READS = ("qkv_ptr", "weight_q_ptr", "weight_k_ptr")
_STRIDES = tuple(f"{name}_{axis}" for name, axes in (("qkv", "bnh"), *((x, "bhn") for x in "qkv")) for axis in axes)
_OPTIONS: dict[str, Any] = dict(floats=("epsilon",), divisible=_STRIDES)
_CONSTANTS = dict(NORM=1, E=64, ROWS=32, HALF=32)
AOT_CASES = [
    AotCase(
        "attention_inputs",
        _attention_inputs_kernel,
        _READS,
        ("q_ptr", "k_ptr"),
        ("cos_ptr", "sin_ptr"),
        _CONSTANTS,
        **_OPTIONS,
    ),
    AotCase(
        "attention_inputs_backward",
        _attention_inputs_backward_kernel,
        (*_READS, "grad_q_ptr", "grad_k_ptr", "grad_v_ptr"),
        ("grad_qkv_ptr",),
        ("cos_ptr", "sin_ptr", "sums_ptr"),
        _CONSTANTS,
        **_OPTIONS,
    ),
]
