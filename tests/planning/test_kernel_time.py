"""The planner's launches and times against what was measured on one H100 (docs/launch.md; commit 6b69872)."""

from collections import Counter

import pytest
import torch
from measured_network import FRAMES, TOKENS, WIDTH, MeasuredNetwork
from torch._subclasses.fake_tensor import FakeTensorMode

from dydiff_dist.hardware import gpu_model
from dydiff_dist.planning.fusion import fuse
from dydiff_dist.planning.kernel_time import by_kind, by_operation
from dydiff_dist.planning.launches import LaunchCounter, NetworkTrace
from dydiff_dist.planning.step_time import Assumptions
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference
from dydiff_kernels.frame_mix.reference import frame_mix_reference
from dydiff_kernels.modulation.reference import gated_residual_reference, modulated_norm_reference

RATES = Assumptions().rates(gpu_model("h100"), "bf16")
NETWORK_MS = 561.0
PROFILE = {
    # operations: calls, milliseconds
    ("norms: native_layer_norm",): (197, 54.8),
    ("norms: native_layer_norm_backward",): (197, 41.0),
    ("copies: clone",): (427, 43.8),
    ("copies: stack",): (56, 17.5),
    ("elementwise: roll",): (224, 32.2),
    ("elementwise: addcmul",): (281, 15.7 + 14.2),
    ("attention: scaled_dot_product_flash_attention",): (56, 22.8),
    ("attention: scaled_dot_product_flash_attention_backward",): (56, 43.8),
}
"""What the profiler names unambiguously. The head adds a layer norm, an addcmul and a few copies to the blocks."""


def milliseconds(launches) -> float:
    return 1e3 * sum(RATES.seconds(launch) for launch in launches)


def traced(forward, tensors, gradient=None) -> NetworkTrace:
    """Forward and backward pass of a function of nothing."""
    with LaunchCounter(tensors) as count:
        out = forward()
        num_forward = len(count.launches)
        if out.requires_grad:
            torch.autograd.backward(out, gradient)
    return NetworkTrace(count.launches, num_forward, count.peak)


@pytest.fixture(scope="module")
def network() -> NetworkTrace:
    with FakeTensorMode():
        blocks = MeasuredNetwork().requires_grad_(False)
        for parameter in blocks.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
            parameter.requires_grad_()
        x = torch.empty(8, FRAMES, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        condition = torch.empty(8, FRAMES, 1, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        return traced(lambda: blocks(x, condition), [*blocks.parameters(), x, condition], torch.empty_like(x))


def test_the_measured_step_is_foretold(network):
    """Without a rate of its own for any case; the step was measured once. The project asks for 15 %."""
    assert milliseconds(network.launches) == pytest.approx(NETWORK_MS, rel=0.15)


def test_kernels_are_those_of_the_profile(network):
    calls = Counter(f"{launch.kind}: {launch.op}" for launch in network.launches)
    for names, (expected, _) in PROFILE.items():
        # the network around the blocks makes at most 35 more
        assert expected - 35 <= sum(calls[name] for name in names) <= expected, names


def test_times_are_those_of_the_profile(network):
    """Each within 35 %: a kind of kernel has one rate, whatever its shape. Roll divides more than others do."""
    totals = by_operation(network.launches, RATES)
    for names, (_, measured) in PROFILE.items():
        assert 1e3 * sum(totals[name].seconds for name in names) == pytest.approx(measured, rel=0.35), names
    assert 1e3 * by_kind(network.launches, RATES)["norms"].seconds == pytest.approx(54.8 + 41.0, rel=0.1)


def tokens(dtype):
    """Tokens, upstream gradient, branch and the three conditions of the kernels' benchmark."""
    x, grad, branch = (torch.empty(8, 32, 128, 1024, dtype=dtype) for _ in range(3))
    return x, grad, branch, torch.empty(8, 32, 1, 3 * 1024, dtype=dtype).chunk(3, dim=-1)


def modulated(dtype):
    x, grad, _, (shift, scale, _) = tokens(dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, shift, scale)]
    return traced(lambda: modulated_norm_reference(*leaves, 1e-6, False), [x, grad, shift, scale], grad)


def gated(dtype):
    x, grad, branch, (_, _, gate) = tokens(dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, gate, branch)]
    return traced(lambda: gated_residual_reference(*leaves), [x, grad, branch, gate], grad)


def loss(dtype):
    output, target = (torch.empty(16, 32, 4, 128, 128, dtype=dtype) for _ in range(2))
    output.requires_grad_()
    weights = torch.empty(16, 32)
    return traced(lambda: denoising_loss_reference(output, target, weights).mean(), [output, target, weights])


def frame_mix(dtype):
    x, gamma_bar = torch.empty(16, 32, 4, 128, 128, dtype=dtype), torch.empty(16, dtype=torch.float64)
    return traced(lambda: frame_mix_reference(x, gamma_bar), [x, gamma_bar])


@pytest.mark.parametrize(
    ("case", "dtype", "eager_ms"),
    [
        (modulated, torch.float32, 0.834),
        (modulated, torch.bfloat16, 0.527),
        (gated, torch.float32, 0.638),
        (gated, torch.bfloat16, 0.402),
        (loss, torch.float32, 0.985),
        (loss, torch.bfloat16, 1.266),
        (frame_mix, torch.float32, 0.530),
        (frame_mix, torch.bfloat16, 0.700),
    ],
)
def test_operations_that_gave_no_rate_are_foretold(case, dtype, eager_ms):
    """Other shapes, other operations and float32, measured on the device in the same run; each within a quarter."""
    with FakeTensorMode():
        assert milliseconds(case(dtype).launches) == pytest.approx(eager_ms, rel=0.25)


@pytest.mark.parametrize(("case", "compiled_ms"), [(modulated, 0.346), (gated, 0.361), (loss, 0.234)])
def test_fused_operations_are_foretold(case, compiled_ms):
    """What torch.compile made of them, float32; within a quarter."""
    with FakeTensorMode():
        assert milliseconds(fuse(case(torch.float32))) == pytest.approx(compiled_ms, rel=0.25)


def test_fusing_leaves_products_and_attention_alone(network):
    before, after = (by_kind(launches, RATES) for launches in (network.launches, fuse(network)))
    assert set(after) == {"products", "attention", "fused"}
    assert all(before[kind] == after[kind] for kind in ("products", "attention"))
    elsewhere = sum(total.bytes for kind, total in before.items() if kind not in after)
    # every branch reads and writes its tokens at least once each way, and a good deal more where nothing is fused
    once = 2 * 3 * 28 * 2 * 8 * FRAMES * TOKENS * WIDTH * 2
    assert once < after["fused"].bytes < elsewhere / 2
