"""Attention over few tokens: the kernels against float64, values and every gradient, and against their parts."""

import os

import pytest
import torch
from kernel_cases import DTYPES, random_tensor

from dydiff_kernels import attention_inputs, has_short_attention, short_attention

NORMS = ["layer", "rms", "none"]
# B, N, H, E: one token, odd numbers, more sequences than programs, as many tokens as fit, no samples.
SHAPES = [(1, 1, 1, 2), (3, 5, 2, 14), (5, 12, 1, 32), (1, 32, 2, 20), (0, 3, 2, 8)]
# Queries and keys, probabilities, gradients of scores and results are rounded to storage, four times in a row; to
# bfloat16 the interpreter truncates, which is twice as far. Sums are in float32.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4 * 2**-7, torch.float16: 4 * 2**-11}
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the Triton backend")


def inputs(shape, norm, dtype):
    """qkv, the norm's weights, angles, and an upstream gradient with strided tokens."""
    B, N, H, E = shape
    weights = [] if norm == "none" else [random_tensor((E,), dtype, seed=seed) for seed in (1, 2)]
    angles = 100 * random_tensor((N, E // 2), seed=3)
    upstream = random_tensor((N, B, H * E), dtype, seed=4).transpose(0, 1)
    return random_tensor((B, N, 3 * H * E), dtype), weights, (angles.cos(), angles.sin()), upstream


def with_gradients(op, tensors, upstream):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = op(*leaves)
    with torch.no_grad():
        assert torch.equal(op(*leaves), out)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, s)) for s in SHAPES])
def test_values_and_gradients_against_float64(monkeypatch, shape, norm, dtype):
    if shape[0]:
        from dydiff_kernels.short_attention import triton_kernel

        monkeypatch.setattr(triton_kernel, "MAX_SUMS", 2 * shape[2])
    qkv, weights, angles, upstream = inputs(shape, norm, dtype)

    def op(qkv, *weights):
        backend = "reference" if qkv.dtype == torch.float64 else "triton"
        weights = weights or (None, None)
        return short_attention(qkv, *weights, *angles, num_heads=shape[2], norm=norm, backend=backend)

    ours = with_gradients(op, (qkv, *weights), upstream)
    truth = with_gradients(op, [t.double() for t in (qkv, *weights)], upstream.double())
    for value, exact in zip(ours, truth, strict=True):
        assert value.dtype == dtype and value.shape == exact.shape
        scale = exact.abs().max().item() if exact.numel() else 1.0
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_the_reference_is_attention_of_attention_inputs(norm):
    qkv, weights, angles, _ = inputs((3, 5, 2, 14), norm, torch.float64)
    arguments, options = (qkv, *(weights or (None, None)), *angles), dict(num_heads=2, norm=norm)
    y = torch.nn.functional.scaled_dot_product_attention(*attention_inputs(*arguments, **options))
    torch.testing.assert_close(short_attention(*arguments, **options), y.transpose(1, 2).flatten(2), rtol=0, atol=1e-12)


def test_what_it_does_not_take_is_named():
    def call(tokens, channels):
        zeros = torch.zeros(tokens, channels // 2)
        return short_attention(torch.zeros(1, tokens, 3 * channels), None, None, zeros, zeros, num_heads=1, norm="none")

    with pytest.raises(ValueError, match="33 tokens of heads of 8 channels; expected at most 32 and 128"):
        call(33, 8)
    with pytest.raises(ValueError, match="short_attention: 4 tokens of heads of 130 channels"):
        call(4, 130)
    with pytest.raises(ValueError, match="short_attention: norm is 'batch'"):
        short_attention(torch.zeros(1, 2, 6), None, None, *torch.zeros(2, 2, 1), num_heads=1, norm="batch")


def test_where_there_is_a_kernel():
    qkv, here = torch.zeros(2, 5, 48), os.environ.get("TRITON_INTERPRET") == "1"
    assert has_short_attention(qkv, 2, "triton") if here else not has_short_attention(qkv, 2, "auto")
    for refused in (qkv.double(), torch.zeros(2, 33, 48), torch.zeros(2, 5, 6 * 129), qkv[:, :0]):
        assert not has_short_attention(refused, 2, "auto")
    assert not has_short_attention(qkv, 2, "reference") and not has_short_attention(qkv, 2, "cpp")
