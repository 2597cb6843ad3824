"""The network's ops launch one kernel forward and two backward, and nothing of torch's, eager or as custom ops."""

import pytest
import torch
from kernel_cases import random_tensor

pytest.importorskip("triton", reason="triton is not installed")
from launch_counter import count_launches

from dydiff_dist.models.attention import Attention, rotary_angles, sdpa_attention
from dydiff_kernels import attention_inputs, gated_residual, modulated_norm, short_attention

X, BRANCH = random_tensor((1, 2, 3, 16)), random_tensor((1, 3, 2, 16), seed=1).transpose(1, 2)
SHIFT, SCALE, GATE = random_tensor((1, 2, 1, 48), seed=2).chunk(3, -1)
QKV, WEIGHTS = random_tensor((2, 3, 48)), [torch.ones(8), torch.ones(8)]
COS, SIN = random_tensor((3, 4), seed=3), random_tensor((3, 4), seed=4)
OPTIONS = dict(num_heads=2, norm="layer")

CALLS = {
    "modulated_norm": (lambda *t, backend: (modulated_norm(*t, frames_last=True, backend=backend),), [X, SHIFT, SCALE]),
    "gated_residual": (lambda *t, backend: (gated_residual(*t, backend=backend),), [X, GATE, BRANCH]),
    "attention_inputs": (
        lambda *t, backend: attention_inputs(*t, COS, SIN, **OPTIONS, backend=backend),
        [QKV, *WEIGHTS],
    ),
    "short_attention": (
        lambda *t, backend: (short_attention(*t, COS, SIN, **OPTIONS, backend=backend),),
        [QKV, *WEIGHTS],
    ),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: filling new memory would count as launches."""


@pytest.mark.parametrize("name", CALLS)
def test_one_launch_forward_and_two_backward(backend, name):
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    call, tensors = CALLS[name]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with count_launches() as forward:
        out = call(*leaves, backend=backend)
    upstream = [torch.ones_like(tensor) for tensor in out]
    with count_launches() as backward:
        torch.autograd.grad(out, leaves, upstream)
    assert (forward.triton, forward.torch) == ([f"_{name}_kernel"], [])
    assert (backward.triton, backward.torch) == ([f"_{name}_backward_kernel", "_partial_sums_kernel"], [])


def test_a_custom_op_launches_the_same_kernel(backend):
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    with count_launches() as launches:
        torch.ops.dydiff.attention_inputs(QKV, *WEIGHTS, COS, SIN, 2, "layer", 1e-6, "triton")
    assert (launches.triton, launches.torch) == (["_attention_inputs_kernel"], [])


def test_attention_over_few_tokens_is_one_kernel_and_its_projections(backend):
    """Where the attention backend is left to us; what it computes is what torch's attention does."""
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    torch.manual_seed(0)
    layer, angles, results = Attention(32, 2), rotary_angles(torch.arange(5)[:, None], 16), []
    for fuses in (True, False):
        x = random_tensor((3, 5, 32)).requires_grad_()
        with count_launches() as launches:
            y = layer(x, angles, sdpa_attention, "triton", fuses_short=fuses)
        assert launches.triton == (["_short_attention_kernel"] if fuses else ["_attention_inputs_kernel"])
        assert not fuses or sorted(launches.torch) == ["addmm", "mm"]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=2e-5 * plain.abs().max().item())


def test_short_attention_is_a_custom_op(backend):
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    qkv, weights = QKV.clone().requires_grad_(), [weight.clone().requires_grad_() for weight in WEIGHTS]
    arguments = (qkv, *weights, COS, SIN, 2, "layer", 1e-6, "triton")
    torch.library.opcheck(torch.ops.dydiff.short_attention.default, arguments, test_utils=checks)
    out = torch.ops.dydiff.short_attention(*arguments)
    eager = short_attention(qkv, *weights, COS, SIN, **OPTIONS, backend="triton")
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), [qkv, *weights]) for y in (out, eager)), strict=True):
        assert torch.equal(one, other)
