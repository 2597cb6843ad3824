"""Attention over few tokens from the projection of them, in plain torch: the specification."""

import math

from torch import Tensor

from dydiff_kernels.attention_inputs.reference import attention_inputs_reference
from dydiff_kernels.dtypes import compute_dtype


def short_attention_reference(
    qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float,
) -> Tensor:  # fmt: skip
    """(B, N, 3·H·E) -> (B, N, H·E): softmax(q kᵀ / √E) v of each head, of what `attention_inputs_reference` makes."""
    dtype = compute_dtype(qkv)
    q, k, v = (
        t.to(dtype) for t in attention_inputs_reference(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    )
    y = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return y.transpose(1, 2).flatten(2).to(qkv.dtype)
