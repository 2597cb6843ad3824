"""Queries, keys and values of attention: kernels against float64, values and every gradient, and their conventions."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DTYPES, random_tensor

from dydiff_kernels import attention_inputs

NORMS = ["layer", "rms", "none"]
# B, N, H, E: one token of one pair, odd numbers of everything, the demo's attention over frames, more tokens than a
# stretch of the sums, heads that are no power of two, no samples.
SHAPES = [(1, 1, 1, 2), (2, 3, 5, 14), (2, 15, 4, 32), (3, 41, 2, 10), (1, 6, 2, 72), (0, 3, 2, 8)]
if os.environ.get("TRITON_INTERPRET") == "1":
    SHAPES = [(1, 1, 1, 2), (2, 3, 5, 14), (1, 5, 2, 72), (0, 3, 2, 8)]
# Storage is rounded once; a norm and sums of at most 250 terms amplify float32 rounding by their condition, below 50.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def inputs(shape, norm, dtype):
    """qkv, the norm's weights, and cosines and sines of angles of any size."""
    B, N, H, E = shape
    weights = [None if norm == "none" else random_tensor((E,), dtype, seed=seed) for seed in (1, 2)]
    angles = 100 * random_tensor((N, E // 2), seed=3)
    return random_tensor((B, N, 3 * H * E), dtype), weights, (angles.cos(), angles.sin())


def with_gradients(qkv, weights, angles, upstream, **options):
    """q, k, v, the same where nobody asks for gradients, and the gradients of qkv and the weights."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in (qkv, *weights)]
    out = attention_inputs(*leaves, *angles, **options)
    with torch.no_grad():
        alone = attention_inputs(*leaves, *angles, **options)
    assert all(torch.equal(one, other) for one, other in zip(alone, out, strict=True))
    return *(t.detach() for t in out), *torch.autograd.grad(out, [t for t in leaves if t is not None], upstream)


def assert_close_to_truth(qkv, weights, angles, upstream, backend, **options):
    doubles = [t if t is None else t.double() for t in (qkv, *weights)]
    ours = with_gradients(qkv, weights, angles, upstream, backend=backend, **options)
    exact_upstream = [t.double() for t in upstream]
    truth = with_gradients(doubles[0], doubles[1:], angles, exact_upstream, backend="reference", **options)
    for value, exact in zip(ours, truth, strict=True):
        assert value.dtype == qkv.dtype and value.shape == exact.shape
        scale = exact.abs().max().item() if exact.numel() else 1.0
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=TOLERANCE[qkv.dtype] * max(scale, 1.0))


def upstream_of(shape, dtype):
    """Gradients of q, k and v: in the order that attention gives, in another one, and with strided channels."""
    B, N, H, E = shape
    one, two, three = (random_tensor((B, N, H, E), dtype, seed=seed) for seed in (4, 5, 6))
    strided = three.transpose(2, 3).contiguous().transpose(2, 3)
    return [one.transpose(1, 2), two.transpose(1, 2).contiguous(), strided.transpose(1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, s)) for s in SHAPES])
def test_values_and_gradients_against_float64(backend, shape, norm, dtype):
    qkv, weights, angles = inputs(shape, norm, dtype)
    options = dict(num_heads=shape[2], norm=norm)
    assert_close_to_truth(qkv, weights, angles, upstream_of(shape, dtype), backend, **options)


def test_projections_of_any_strides(backend):
    """A slice of a wider projection, samples and tokens exchanged, and channels that are not contiguous."""
    shape, options = (2, 3, 2, 6), dict(num_heads=2, norm="layer")
    qkv, weights, angles = inputs(shape, "layer", torch.float32)
    upstream = upstream_of(shape, torch.float32)
    wider, exchanged = torch.cat((qkv, qkv), 2)[..., : qkv.shape[2]], qkv.transpose(0, 1).contiguous().transpose(0, 1)
    for strided in (wider, exchanged, qkv.transpose(1, 2).contiguous().transpose(1, 2)):
        assert not strided.is_contiguous()
        assert_close_to_truth(strided, weights, angles, upstream, backend, **options)


def test_weights_may_be_stored_otherwise(backend):
    """As where norms stay in float32."""
    qkv, weights, angles = inputs((1, 3, 2, 8), "layer", torch.bfloat16)
    q, _, _ = attention_inputs(qkv, *weights, *angles, num_heads=2, norm="layer", backend=backend)
    wide = [weight.float() for weight in weights]
    assert torch.equal(q, attention_inputs(qkv, *wide, *angles, num_heads=2, norm="layer", backend=backend)[0])


def test_the_reference_is_torchs_norms_and_a_rotation_of_complex_numbers():
    qkv, weights, (cos, sin) = inputs((2, 3, 2, 8), "layer", torch.float64)
    turns = torch.complex(cos.double(), sin.double())
    for norm, normed in (("layer", F.layer_norm), ("rms", F.rms_norm)):
        q, k, v = attention_inputs(qkv, *weights, cos, sin, num_heads=2, norm=norm)
        for part, (out, weight) in enumerate(zip((q, k), weights, strict=True)):
            x = normed(qkv.view(2, 3, 3, 2, 8)[:, :, part], (8,), weight, eps=1e-6).transpose(1, 2)
            turned = torch.complex(x[..., :4], x[..., 4:]) * turns
            torch.testing.assert_close(out, torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-12)
        assert torch.equal(v, qkv.view(2, 3, 3, 2, 8)[:, :, 2].transpose(1, 2))


def test_gradcheck_of_the_reference():
    qkv, weights, angles = inputs((1, 2, 2, 4), "layer", torch.float64)
    leaves = [t.detach().clone().requires_grad_() for t in (qkv, *weights)]
    assert torch.autograd.gradcheck(lambda *t: attention_inputs(*t, *angles, num_heads=2, norm="layer"), leaves)


def test_values_are_a_view_and_queries_lie_by_token(backend):
    qkv, weights, angles = inputs((2, 3, 2, 8), "rms", torch.float32)
    q, k, v = attention_inputs(qkv, *weights, *angles, num_heads=2, norm="rms", backend=backend)
    assert v.data_ptr() == qkv[..., 32:].data_ptr()
    assert q.transpose(1, 2).is_contiguous() and k.transpose(1, 2).is_contiguous()


def test_a_large_mean_costs_no_digits(backend):
    """The variance is that of x - mean, not a difference of two large numbers."""
    qkv, weights, angles = inputs((1, 3, 2, 64), "layer", torch.float32)
    options = dict(num_heads=2, norm="layer")
    exact = attention_inputs(qkv.double() + 4096, *(w.double() for w in weights), *angles, **options)[0]
    ours = attention_inputs(qkv + 4096, *weights, *angles, **options, backend=backend)[0]
    # the input itself is rounded; weights and rotation amplify that by up to 3 √2
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4096 * 2**-23 * 8 * 3 * math.sqrt(2))


def test_a_program_walks_several_tiles(backend, monkeypatch):
    """Backward, where there are more tiles than partial sums are wanted."""
    if backend != "triton":
        pytest.skip("tiles are the Triton kernels'")
    from dydiff_kernels.attention_inputs import triton_kernel

    monkeypatch.setattr(triton_kernel, "MAX_SUMS", 2)
    monkeypatch.setattr(triton_kernel, "ELEMENTS", 64)
    shape = (1, 9, 3, 10)  # 27 rows in tiles of 4
    qkv, weights, angles = inputs(shape, "layer", torch.float32)
    upstream = upstream_of(shape, torch.float32)
    assert_close_to_truth(qkv, weights, angles, upstream, backend, num_heads=3, norm="layer")


@pytest.mark.parametrize("threads", [2])
def test_sums_do_not_depend_on_threads(backend, threads):
    if backend == "triton":
        pytest.skip("threads are the C++ kernels'")
    shape = (4, 100, 2, 32)
    qkv, weights, angles = inputs(shape, "layer", torch.float32)
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        upstream, options = upstream_of(shape, torch.float32), dict(num_heads=2, norm="layer", backend=backend)
        results.append(with_gradients(qkv, weights, angles, upstream, **options))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(qkv=torch.zeros(2, 3, 4, 6)), r"qkv has shape \(2, 3, 4, 6\); expected \(B, N, 3·H·E\) of H = 2 heads"),
        (dict(qkv=torch.zeros(2, 3, 24).int()), "qkv has dtype torch.int32; expected one of float32, bfloat16"),
        (dict(qkv=torch.zeros(2, 3, 18)), r"qkv has shape \(2, 3, 18\)"),
        (dict(num_heads=5), r"qkv has shape \(2, 3, 24\)"),
        (dict(norm="batch"), "norm is 'batch'; expected one of none, layer, rms"),
        (dict(norm="none"), "weight_q is given for norm 'none'"),
        (dict(weight_k=None), "weight_k is missing for norm 'layer'"),
        (dict(weight_q=torch.ones(3)), r"weight_q has shape \(3,\); expected \(4,\)"),
        (dict(cos=torch.ones(2, 2)), r"cos has shape \(2, 2\); expected \(3, 2\)"),
        (dict(cos=torch.ones(3, 2).double()), "cos has dtype torch.float64; expected torch.float32"),
        (dict(sin=torch.ones(3, 2, device="meta")), "sin is on meta; expected cpu, where qkv is"),
    ],
)
def test_errors_name_expected_and_actual(changes, message):
    arguments = dict(qkv=torch.zeros(2, 3, 24), weight_q=torch.ones(4), weight_k=torch.ones(4), num_heads=2)
    arguments |= dict(cos=torch.ones(3, 2), sin=torch.zeros(3, 2), norm="layer") | changes
    with pytest.raises(ValueError, match=message):
        attention_inputs(**arguments)
