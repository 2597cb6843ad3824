"""``short_attention`` in Triton, forward and backward.

A program holds all TOKENS tokens of one head of one sequence, as two blocks [TOKENS, HALF] of the channels that turn
together; scores are [TOKENS, TOKENS]. Products take operands in the storage type and add up in float32, as flash
attention does; softmax, norm and rotation are in float32. With P probabilities, S scores and C = 1/√E:

    dv = Pᵀ dy,   dP = dy vᵀ,   dS = C P (dP - Σ P dP),   dq = dS k,   dk = dSᵀ q

The backward pass reads angles and x̂ again where it needs them, from the cache: held from their first use to their last
they would not fit into the registers. For the same reason its loop is not pipelined (num_stages).
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dydiff_kernels.attention_inputs import NORM_CODES, by_head
from dydiff_kernels.attention_inputs.triton_kernel import load_pair, norm_rows, prepare_backward_rows, store_pair
from dydiff_kernels.backends import interpreted
from dydiff_kernels.gpu import AotCase
from dydiff_kernels.outputs import channels_contiguous
from dydiff_kernels.partial_sums import add_partial_sums
from dydiff_kernels.registry import Passes

MAX_SUMS = 2048  # programs of a backward pass, and so partial sums of the weights' gradients
MAX_BACKWARD_WARPS = 8  # more would leave a thread fewer registers than float32 blocks of 32 tokens take


@triton.jit
def _tokens(N, E: tl.constexpr, TOKENS: tl.constexpr, HALF: tl.constexpr):
    """A program's tokens n and half channels e, which of both and of e are there, and the places of their angles."""
    n, e = tl.arange(0, TOKENS), tl.arange(0, HALF)
    half_mask = e < E // 2
    return n, e, (n < N)[:, None] & half_mask[None, :], half_mask, n[:, None] * (E // 2) + e[None, :]


@triton.jit
def _cosines_and_sines(cos_ptr, sin_ptr, angle, mask):
    return tl.load(cos_ptr + angle, mask=mask, other=0.0), tl.load(sin_ptr + angle, mask=mask, other=0.0)


@triton.jit
def _normal_rows(ptr, mask, NORM: tl.constexpr, E: tl.constexpr, epsilon):
    """x̂ of queries or keys in two halves, and 1/σ."""
    first, second = load_pair(ptr, mask, E)
    return norm_rows(NORM, first, second, mask, E, epsilon)


@triton.jit
def _product(a, b, dtype: tl.constexpr, WIDE: tl.constexpr):
    """a b of operands rounded to storage; WIDE for the interpreter, whose products know no bfloat16."""
    a, b = a.to(dtype), b.to(dtype)
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _turned(first, second, weight_ptr, cos, sin, half_mask, NORM: tl.constexpr, E: tl.constexpr, e):
    """Queries or keys from their x̂ in two halves."""
    if NORM > 0:
        weight_first, weight_second = load_pair(weight_ptr + e, half_mask, E)
        first, second = first * weight_first[None, :], second * weight_second[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _probabilities(
    q_first, q_second, k_first, k_second, n, N, E: tl.constexpr, dtype: tl.constexpr, WIDE: tl.constexpr
):
    """softmax(q kᵀ / √E), [TOKENS, TOKENS] float32; rows and columns beyond N are 0."""
    scores = _product(q_first, tl.trans(k_first), dtype, WIDE)
    scores += _product(q_second, tl.trans(k_second), dtype, WIDE)
    inside = (n < N)[None, :]
    scores = tl.where(inside, scores * (1.0 / E**0.5), -float("inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return tl.where((n < N)[:, None], powers / tl.sum(powers, 1)[:, None], 0.0)


@triton.jit
def _short_attention_kernel(
    qkv_ptr, weight_q_ptr, weight_k_ptr, cos_ptr, sin_ptr, out_ptr, N, H, epsilon, qkv_b, qkv_n, qkv_h,
    NORM: tl.constexpr, E: tl.constexpr, TOKENS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n, e, mask, half_mask, angle = _tokens(N, E, TOKENS, HALF)
    cos, sin = _cosines_and_sines(cos_ptr, sin_ptr, angle, mask)
    row = qkv_ptr + b * qkv_b + n[:, None] * qkv_n + head * qkv_h + e[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    first, second, _ = _normal_rows(row, mask, NORM, E, epsilon)
    q_first, q_second = _turned(first, second, weight_q_ptr, cos, sin, half_mask, NORM, E, e)
    first, second, _ = _normal_rows(row + H * qkv_h, mask, NORM, E, epsilon)
    k_first, k_second = _turned(first, second, weight_k_ptr, cos, sin, half_mask, NORM, E, e)
    v_first, v_second = load_pair(row + 2 * H * qkv_h, mask, E)
    p = _probabilities(q_first, q_second, k_first, k_second, n, N, E, dtype, WIDE)
    y_first = _product(p, v_first, dtype, WIDE)
    y_second = _product(p, v_second, dtype, WIDE)
    store_pair(out_ptr + ((b * N + n[:, None]) * H + head) * E + e[None, :], y_first, y_second, mask, E)


@triton.jit
def _short_attention_backward_kernel(
    qkv_ptr, weight_q_ptr, weight_k_ptr, cos_ptr, sin_ptr, grad_ptr, grad_qkv_ptr, sums_ptr, B, N, H, epsilon,
    qkv_b, qkv_n, qkv_h, grad_b, grad_n,
    NORM: tl.constexpr, E: tl.constexpr, TOKENS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Every so manieth sequence of one head, and the sums of du x̂ over them."""
    programs, head = tl.num_programs(0), tl.program_id(1)
    n, e, mask, half_mask, angle = _tokens(N, E, TOKENS, HALF)
    dtype: tl.constexpr = grad_qkv_ptr.dtype.element_ty
    sum_q_first = tl.zeros([HALF], tl.float32)
    sum_q_second = tl.zeros([HALF], tl.float32)
    sum_k_first = tl.zeros([HALF], tl.float32)
    sum_k_second = tl.zeros([HALF], tl.float32)
    for sequence in range(tl.program_id(0), B, programs):
        b = tl.cast(sequence, tl.int64)
        row = qkv_ptr + b * qkv_b + n[:, None] * qkv_n + head * qkv_h + e[None, :]
        to = grad_qkv_ptr + ((b * N + n[:, None]) * 3 * H + head) * E + e[None, :]
        cos, sin = _cosines_and_sines(cos_ptr, sin_ptr, angle, mask)
        x_first, x_second, inverse = _normal_rows(row, mask, NORM, E, epsilon)
        q_first, q_second = _turned(x_first, x_second, weight_q_ptr, cos, sin, half_mask, NORM, E, e)
        x_first, x_second, inverse = _normal_rows(row + H * qkv_h, mask, NORM, E, epsilon)
        k_first, k_second = _turned(x_first, x_second, weight_k_ptr, cos, sin, half_mask, NORM, E, e)
        v_first, v_second = load_pair(row + 2 * H * qkv_h, mask, E)
        dy_first, dy_second = load_pair(grad_ptr + b * grad_b + n[:, None] * grad_n + head * E + e[None, :], mask, E)
        p = _probabilities(q_first, q_second, k_first, k_second, n, N, E, dtype, WIDE)
        dp = _product(dy_first, tl.trans(v_first), dtype, WIDE)
        dp += _product(dy_second, tl.trans(v_second), dtype, WIDE)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * (1.0 / E**0.5)
        p_transposed = tl.trans(p)
        dv_first = _product(p_transposed, dy_first, dtype, WIDE)
        dv_second = _product(p_transposed, dy_second, dtype, WIDE)
        store_pair(to + 2 * H * E, dv_first, dv_second, mask, E)
        dq_first = _product(ds, k_first, dtype, WIDE)
        dq_second = _product(ds, k_second, dtype, WIDE)
        cos, sin = _cosines_and_sines(cos_ptr, sin_ptr, angle, mask)
        x_first, x_second, inverse = _normal_rows(row, mask, NORM, E, epsilon)
        dx_first, dx_second, dw_first, dw_second = prepare_backward_rows(
            NORM, dq_first, dq_second, cos, sin, x_first, x_second, inverse, weight_q_ptr, e, half_mask, E
        )
        store_pair(to, dx_first, dx_second, mask, E)
        sum_q_first += tl.sum(dw_first, 0)
        sum_q_second += tl.sum(dw_second, 0)
        dk_first = _product(tl.trans(ds), q_first, dtype, WIDE)
        dk_second = _product(tl.trans(ds), q_second, dtype, WIDE)
        cos, sin = _cosines_and_sines(cos_ptr, sin_ptr, angle, mask)
        x_first, x_second, inverse = _normal_rows(row + H * qkv_h, mask, NORM, E, epsilon)
        dx_first, dx_second, dw_first, dw_second = prepare_backward_rows(
            NORM, dk_first, dk_second, cos, sin, x_first, x_second, inverse, weight_k_ptr, e, half_mask, E
        )
        store_pair(to + H * E, dx_first, dx_second, mask, E)
        sum_k_first += tl.sum(dw_first, 0)
        sum_k_second += tl.sum(dw_second, 0)
    if NORM > 0:
        place = sums_ptr + (head * programs + tl.program_id(0)).to(tl.int64) * E + e
        store_pair(place, sum_q_first, sum_q_second, half_mask, E)
        store_pair(place + (programs * H).to(tl.int64) * E, sum_k_first, sum_k_second, half_mask, E)


def _arguments(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> dict:
    """What both kernels take; ``qkv`` is (B, N, 3·H, E)."""
    _, N, _, E = qkv.shape
    strides = dict(zip(("qkv_b", "qkv_n", "qkv_h"), qkv.stride()[:3], strict=True))
    pointers = dict(qkv_ptr=qkv, weight_q_ptr=weight_q, weight_k_ptr=weight_k, cos_ptr=cos, sin_ptr=sin)
    sizes = dict(N=N, H=num_heads, E=E, TOKENS=max(16, triton.next_power_of_2(N)))
    sizes["HALF"] = max(16, triton.next_power_of_2(E // 2))
    options = dict(epsilon=float(epsilon), NORM=NORM_CODES[norm], num_stages=1)
    options["WIDE"] = interpreted() and qkv.dtype == torch.bfloat16
    return dict(**pointers, **sizes, **strides, **options)


def _forward_warps(tokens: int, half: int, item_bytes: int) -> int:
    """So many that a thread owns 128 bits of a block [TOKENS, HALF]."""
    return tokens * half * item_bytes // (16 * 32)


def _backward_warps(tokens: int, half: int, item_bytes: int) -> int:
    return min(MAX_BACKWARD_WARPS, _forward_warps(tokens, half, item_bytes))


def _forward(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> Tensor:
    heads = by_head(qkv, num_heads)
    B, N, _, E = heads.shape
    out = torch.empty((B, N, num_heads * E), dtype=qkv.dtype, device=qkv.device)
    arguments = _arguments(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    num_warps = _forward_warps(arguments["TOKENS"], arguments["HALF"], qkv.element_size())
    _short_attention_kernel[(B * num_heads,)](**arguments, out_ptr=out, num_warps=num_warps)
    return out


def _backward(grad, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon):
    heads, grad = by_head(qkv, num_heads), channels_contiguous(grad)
    B, _, _, E = heads.shape
    programs = min(B, max(1, MAX_SUMS // num_heads))
    arguments = _arguments(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    sums = None
    if weight_q is not None:
        sums = torch.empty((2, num_heads * programs, E), dtype=torch.float32, device=qkv.device)
    strides = dict(grad_b=grad.stride(0), grad_n=grad.stride(1))
    _short_attention_backward_kernel[(programs, num_heads)](
        **arguments,
        **strides,
        B=B,
        grad_ptr=grad,
        grad_qkv_ptr=grad_qkv,
        sums_ptr=sums,
        num_warps=_backward_warps(arguments["TOKENS"], arguments["HALF"], qkv.element_size()),
    )
    return grad_qkv, *((None, None) if sums is None else add_partial_sums(sums, weight_q, weight_k))


PASSES = Passes(_forward, _backward)

_READS, _TABLES = ("qkv_ptr", "weight_q_ptr", "weight_k_ptr"), ("cos_ptr", "sin_ptr")


def _case(name: str, backward: bool, tokens: int = 16, half: int = 32) -> AotCase:
    """A pass over heads of 2·``half`` channels."""
    return AotCase(
        name,
        _short_attention_backward_kernel if backward else _short_attention_kernel,
        (*_READS, "grad_ptr") if backward else _READS,
        ("grad_qkv_ptr",) if backward else ("out_ptr",),
        (*_TABLES, "sums_ptr") if backward else _TABLES,
        dict(NORM=1, E=2 * half, TOKENS=tokens, HALF=half, WIDE=False),
        floats=("epsilon",),
        divisible=("qkv_b", "qkv_n", "qkv_h", "grad_b", "grad_n"),
        num_warps=partial(_backward_warps if backward else _forward_warps, tokens, half),
        num_stages=1,
    )


AOT_CASES = [
    _case("short_attention", backward=False),
    _case("short_attention_backward", backward=True),
    _case("short_attention_backward_32_tokens", backward=True, tokens=32),
    _case("short_attention_backward_32_tokens_128_channels", backward=True, tokens=32, half=64),
]
