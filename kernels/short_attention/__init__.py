"""``short_attention``: norm, rotation and attention over at most 32 tokens, as over the frames of a video, in one pass.

A flash kernel's tile is 64 or 128 queries, most of it padding here; a program of this one holds all tokens of a head.
Least bytes for B·N·H·E elements of b bytes: forward reads the projection and writes the result (4·b each), backward
reads the projection and the result's gradient and writes that of the projection (7·b each). The projection is kept.

GPUs only; on CPUs torch's attention after `attention_inputs` is what a network takes, and this op its reference.
"""

import torch
from torch import Tensor

from dydiff_kernels.attention_inputs import (
    HeadNorm,
    ProjectionFunction,
    check_projection,
    differentiate_with,
    without_none,
)
from dydiff_kernels.registry import Passes, register_op, runs_as_custom_op
from dydiff_kernels.short_attention.reference import short_attention_reference

MAX_TOKENS, MAX_CHANNELS = 32, 128
"""The most tokens N and the most channels of a head E that the kernels take."""


def short_attention(
    qkv: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    norm: HeadNorm,
    epsilon: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """softmax(q kᵀ / √E) v with q, k, v as `attention_inputs` makes them of the same arguments. Differentiable once.

    Returns:
        (B, N, H·E), like ``qkv`` in type.

    Raises:
        ValueError: as `attention_inputs`; or more than 32 tokens, or heads of more than 128 channels.
    """
    check_projection("short_attention", qkv, weight_q, weight_k, cos, sin, num_heads, norm)
    arguments = (qkv, weight_q, weight_k, cos.contiguous(), sin.contiguous(), num_heads, norm, epsilon)
    if not _fits(qkv, num_heads):
        raise ValueError(
            f"short_attention: {qkv.shape[1]} tokens of heads of {qkv.shape[2] // (3 * num_heads)} channels; expected "
            f"at most {MAX_TOKENS} and {MAX_CHANNELS}; use attention_inputs and an attention of your choice"
        )
    if not qkv.numel():
        return short_attention_reference(*arguments)
    if runs_as_custom_op():
        compiled = _OP.has_kernel(backend, (qkv, weight_q, weight_k))
        return _compiled(*arguments, backend) if compiled else short_attention_reference(*arguments)
    run = _OP.select(backend, (qkv, weight_q, weight_k))
    if not isinstance(run, Passes):
        return run(*arguments)
    return ProjectionFunction.apply(*arguments, run) if torch.is_grad_enabled() else run.forward(*arguments)


def has_short_attention(qkv: Tensor, num_heads: int, backend: str) -> bool:
    """Whether `short_attention` would run a kernel on this projection (B, N, 3·H·E)."""
    fits = qkv.shape[1] > 0 and _fits(qkv, num_heads)
    return fits and backend != "cpp" and _OP.has_kernel(backend, (qkv,))


def _fits(qkv: Tensor, num_heads: int) -> bool:
    return qkv.shape[1] <= MAX_TOKENS and qkv.shape[2] <= 3 * num_heads * MAX_CHANNELS


_OP = register_op(
    "short_attention",
    reference=short_attention_reference,
    triton="dydiff_kernels.short_attention.triton_kernel:PASSES",
    differentiable=True,
    aot_cases="dydiff_kernels.short_attention.triton_kernel:AOT_CASES",
)


# What torch.compile sees of the kernels, as in attention_inputs.


@torch.library.custom_op("dydiff::short_attention", mutates_args=())
def _compiled(
    qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float, backend: str,
) -> Tensor:  # fmt: skip
    return _OP.select(backend, (qkv,)).forward(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)


@torch.library.custom_op("dydiff::short_attention_backward", mutates_args=())
def _compiled_backward(
    grad: Tensor, qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run = _OP.select(backend, (qkv,))
    return without_none(run.backward(grad, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon))


@_compiled.register_fake
def _(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon, backend):
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))


differentiate_with(_compiled, _compiled_backward)
