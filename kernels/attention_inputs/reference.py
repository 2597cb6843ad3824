"""Queries, keys and values of attention from one projection, in plain torch: the specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dydiff_kernels.dtypes import compute_dtype


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs (e, e + E/2) of ``x`` (..., N, E) turned by their angles, ``cos`` and ``sin`` (N, E/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_inputs_reference(
    qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(B, N, 3·H·E) -> queries and keys, normalised and rotated, and values, each (B, H, N, E); stored like ``qkv``."""
    dtype = compute_dtype(qkv)
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    width = (q.shape[-1],)

    def prepared(x: Tensor, weight: Tensor | None) -> Tensor:
        x = x.to(dtype)
        if weight is not None:
            weight = weight.to(dtype)
            x = (
                F.layer_norm(x, width, weight, eps=epsilon)
                if norm == "layer"
                else F.rms_norm(x, width, weight, epsilon)
            )
        return rotate(x, cos.to(dtype), sin.to(dtype)).to(qkv.dtype)

    return prepared(q, weight_q), prepared(k, weight_k), v
