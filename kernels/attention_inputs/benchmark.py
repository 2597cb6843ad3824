"""``attention_inputs`` in the benchmark, forward and backward, new memory in every variant as autograd has it."""

import torch
from torch import Tensor

from dydiff_kernels.attention_inputs import attention_inputs
from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs
from dydiff_kernels.modulation.benchmark import TOKEN_SIZES

HEAD_WIDTH = {128: 32}
"""E by the tokens' channels D; 64 where not named, and no more than D."""

Parameters = tuple[Tensor, list[Tensor], list[Tensor], int]
"""qkv, the norms' weights, cosines and sines, heads."""


def _parameters(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Parameters:
    """For the attention within each frame: samples and frames are the batch."""
    B, S, N, D = shape
    generator, E = torch.Generator(device).manual_seed(0), HEAD_WIDTH.get(D, min(D, 64))
    qkv = torch.randn(B * S, N, 3 * D, generator=generator, device=device).to(dtype)
    weights = [torch.ones(E, device=device, dtype=dtype) for _ in range(2)]
    angles = torch.randn(N, E // 2, generator=generator, device=device)
    return qkv, weights, [angles.cos(), angles.sin()], D // E


def _run(i: Inputs, parameters: Parameters, backend: str) -> tuple[Tensor | None, ...]:
    """Queries, and the gradient of the projection."""
    qkv, weights, angles, num_heads = parameters
    leaves = [t.detach().requires_grad_() for t in (qkv, *weights)]
    out = attention_inputs(*leaves, *angles, num_heads=num_heads, norm="layer", backend=backend)
    upstream = [t.view(*qkv.shape[:2], num_heads, -1).transpose(1, 2) for t in (i.x, i.y, i.out)]
    torch.autograd.backward(out, upstream)
    return out[0], leaves[0].grad


BENCHMARKS = [
    BenchmarkCase("attention_inputs", 12, _parameters, lambda i, k: _run(i, k, "reference"), _run, sizes=TOKEN_SIZES)
]
