"""The network's adaLN operations: C++ against the reference, values and every gradient, both against float64."""

import os
from functools import partial

import pytest
import torch
from kernel_cases import DTYPES, random_tensor

from dydiff_kernels import gated_residual, modulated_norm

# B, S, N, D: one token of few channels, ragged channels, more tokens than a stretch of the kernel's sums, the demo's,
# no samples, as many channels as fit.
SHAPES = [(1, 1, 1, 3), (2, 3, 5, 63), (1, 2, 70, 17), (2, 4, 16, 128), (0, 3, 4, 8), (1, 1, 3, 4096)]
if os.environ.get("TRITON_INTERPRET") == "1":
    SHAPES = [(1, 1, 1, 3), (1, 2, 3, 63), (1, 1, 35, 17), (0, 3, 4, 8), (1, 1, 1, 4096)]
# Storage is rounded once; sums of at most 140 terms and a norm amplify float32 rounding by their condition, below 50.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def inputs(shape, per_frame, dtype):
    """x, a second like it, and three conditions as chunks of one tensor, as a linear layer gives them."""
    B, S, _, D = shape
    conditions = random_tensor((B, S if per_frame else 1, 1, 3 * D), dtype, seed=2).chunk(3, -1)
    return random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1), conditions


def with_gradients(op, tensors, upstream, **options):
    """Output, the same where nobody asks for gradients, and gradients of every tensor."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = op(*leaves, **options)
    with torch.no_grad():
        alone = op(*leaves, **options)
    assert torch.equal(alone, out) and alone.stride() == out.stride()
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def assert_close_to_truth(op, tensors, upstream, backend):
    dtype = upstream.dtype
    ours = with_gradients(op, tensors, upstream, backend=backend)
    truth = with_gradients(op, [t.double() for t in tensors], upstream.double(), backend="reference")
    for value, exact in zip(ours, truth, strict=True):
        assert value.dtype == dtype and value.shape == exact.shape
        scale = exact.abs().max().item() if exact.numel() else 1.0
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_frame", [True, False], ids=["per-frame", "per-sample"])
@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, s)) for s in SHAPES])
def test_values_and_gradients_against_float64(backend, shape, per_frame, dtype):
    x, other, (shift, scale, gate) = inputs(shape, per_frame, dtype)
    upstream = random_tensor(shape, dtype, seed=3)
    assert_close_to_truth(modulated_norm, (x, shift, scale), upstream, backend)
    assert_close_to_truth(gated_residual, (x, gate, other), upstream, backend)


def test_non_contiguous_tokens_and_gradients(backend):
    x, other, (shift, scale, gate) = inputs((2, 3, 5, 24), True, torch.float32)
    upstream = random_tensor((2, 3, 24, 5), seed=3).transpose(2, 3)
    x, other = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, other))
    assert_close_to_truth(modulated_norm, (x, shift, scale), upstream, backend)
    assert_close_to_truth(gated_residual, (x, gate, other), upstream, backend)


@pytest.mark.parametrize("per_frame", [True, False], ids=["per-frame", "per-sample"])
def test_frames_side_by_side(backend, per_frame):
    """The memory of y is (B, N, S, D), as is that of the branch, of which the gradient keeps the order."""
    x, other, (shift, scale, gate) = inputs((2, 3, 5, 24), per_frame, torch.float32)
    upstream = random_tensor(x.shape, seed=3)
    y = modulated_norm(x, shift, scale, frames_last=True, backend=backend)
    assert y.shape == x.shape and y.transpose(1, 2).is_contiguous()
    assert_close_to_truth(partial(modulated_norm, frames_last=True), (x, shift, scale), upstream, backend)
    branch = other.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    gated_residual(x, gate, branch, backend=backend).backward(upstream)
    assert branch.grad.transpose(1, 2).is_contiguous()


def test_one_channel_has_no_deviation(backend):
    """x̂ is 0, so y is the shift and x has no gradient, up to rounding times 1/√ε = 1000."""
    x, _, (shift, scale, _) = inputs((1, 2, 3, 1), True, torch.float32)
    y, grad_x, *_ = with_gradients(modulated_norm, (x, shift, scale), torch.ones_like(x), backend=backend)
    torch.testing.assert_close(y, shift.expand_as(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(grad_x, torch.zeros_like(x), rtol=0, atol=1e-3)


def test_a_large_mean_costs_no_digits(backend):
    """The variance is that of x - mean, not a difference of two large numbers."""
    x, _, (shift, scale, _) = inputs((1, 2, 3, 128), True, torch.float32)
    exact = modulated_norm(x.double() + 4096, shift.double(), scale.double())
    ours = modulated_norm(x + 4096, shift, scale, backend=backend)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4096 * 2**-23 * 8)  # the input itself is rounded


def test_sums_do_not_depend_on_threads(backend):
    if backend == "triton":
        pytest.skip("threads are the C++ kernels'")
    x, other, (shift, scale, gate) = inputs((2, 5, 100, 96), False, torch.float32)
    upstream = random_tensor(x.shape, seed=3)

    def run(threads):
        torch.set_num_threads(threads)
        norm = with_gradients(modulated_norm, (x, shift, scale), upstream, backend=backend)
        return norm + with_gradients(gated_residual, (x, gate, other), upstream, backend=backend)

    assert all(torch.equal(one, two) for one, two in zip(run(1), run(2), strict=True))


def test_gradcheck_of_the_reference():
    x, _, conditions = inputs((2, 2, 3, 4), True, torch.float64)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *conditions[:2])]
    assert torch.autograd.gradcheck(modulated_norm, leaves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, c: modulated_norm(x[0], c, c), "expected \\(B, S, N, D\\)"),
        (lambda x, c: modulated_norm(x, c[..., :3], c), "shift has shape \\(2, 3, 1, 3\\); expected \\(2, 3, 1, 8\\)"),
        (lambda x, c: modulated_norm(x, c, c[:1]), "scale has shape"),
        (lambda x, c: gated_residual(x, c, x[:, :2]), "branch has shape \\(2, 2, 4, 8\\)"),
        (lambda x, c: modulated_norm(x, c, c.to("meta")), "scale is on meta; expected cpu, where x is"),
        (lambda x, c: gated_residual(x, c, x.to("meta")), "branch is on meta; expected cpu, where x is"),
        (lambda x, c: gated_residual(x.int(), c.int(), x.int()), "x has dtype torch.int32; expected one of float32"),
        (lambda x, c: gated_residual(x, c.half(), x, backend="cpp"), "needs one dtype"),
        (lambda x, c: modulated_norm(x, c.half(), c, backend="triton"), "backend='triton' needs one dtype"),
    ],
)
def test_errors_name_expected_and_actual(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 1, 8))
