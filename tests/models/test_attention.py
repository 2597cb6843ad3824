"""Attention: every backend against the reference, what is refused where, positions, and arithmetic in bfloat16."""

import logging
import sys
import types

import pytest
import torch

from dydiff_dist.models import attention
from dydiff_dist.models.attention import (
    Attention,
    reference_attention,
    resolve_attention,
    rotary_angles,
    sdpa_attention,
    xformers_attention,
    xformers_failure,
)
from dydiff_kernels.attention_inputs.reference import rotate


def random_qkv(dtype=torch.float64, tokens=7):
    return torch.randn(3, 2, 4, tokens, 8, generator=torch.Generator().manual_seed(0), dtype=dtype).unbind(0)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_flash", "sdpa_math"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_sdpa_equals_reference_with_gradients(name, tokens):
    expected, actual = ([tensor.clone().requires_grad_() for tensor in random_qkv(tokens=tokens)] for _ in range(2))
    out = resolve_attention(name, "cpu", torch.float64)(*actual)
    truth = reference_attention(*expected)
    torch.testing.assert_close(out, truth, atol=1e-12, rtol=1e-12)
    for tensor in (out, truth):
        tensor.square().sum().backward()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)


def test_reference_is_softmax_written_out():
    q, k, v = random_qkv()
    out = reference_attention(q, k, v)
    for row in range(7):
        weights = torch.exp(k[0, 1] @ q[0, 1, row] / 8**0.5)
        torch.testing.assert_close(out[0, 1, row], weights @ v[0, 1] / weights.sum(), atol=1e-12, rtol=0)


def stand_in_for_xformers(q, k, v):
    """xformers 0.0.35's documented contract: (B, M, H, K) in and out, the last axis contiguous."""
    assert all(tensor.stride(-1) == 1 for tensor in (q, k, v))
    swapped = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return sdpa_attention(*swapped).transpose(1, 2).contiguous()


@pytest.fixture
def fresh_choice():
    """Nothing has been chosen before, nor is anything that the test makes remembered."""
    for remembered in (resolve_attention, xformers_failure):
        remembered.cache_clear()
    yield
    for remembered in (resolve_attention, xformers_failure):
        remembered.cache_clear()


@pytest.fixture
def install_xformers(monkeypatch, fresh_choice):
    """Installs a stand-in whose attention is the function given; GPUs' small trial passes run on the CPU."""

    def install(memory_efficient_attention):
        ops = types.ModuleType("xformers.ops")
        ops.memory_efficient_attention = memory_efficient_attention
        monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)

    inputs = attention._probe_inputs
    monkeypatch.setattr(attention, "_probe_inputs", lambda device, *others: inputs("cpu", *others))
    return install


def without_operators(q, k, v):
    """What xformers 0.0.35, built for torch 2.10, does beside torch 2.11."""
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:\n  query: ...")


def test_xformers_is_called_by_its_contract(install_xformers):
    install_xformers(stand_in_for_xformers)
    q, k, v = random_qkv()
    torch.testing.assert_close(xformers_attention(q, k, v), reference_attention(q, k, v), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "head_width", "reason"),
    [
        ("xformers", "cpu", torch.float32, 64, "needs a GPU, the device is cpu; choose 'auto' or 'sdpa'"),
        ("sdpa_efficient", "cpu", torch.float32, 64, "needs a GPU"),
        ("xformers", "cuda", torch.bfloat16, 12, "takes heads of a multiple of 8 channels in torch.bfloat16"),
        ("xformers", "cuda", torch.float32, 64, "has no float32 kernel for this GPU"),
        ("sdpa_flash", "cuda", torch.float32, 64, "takes bfloat16 or float16, the network is torch.float32"),
    ],
)
def test_a_backend_that_cannot_run_says_why(monkeypatch, install_xformers, name, device, dtype, head_width, reason):
    install_xformers(stand_in_for_xformers)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    with pytest.raises(ValueError, match=f"execution.attention_backend '{name}' {reason}"):
        resolve_attention.__wrapped__(name, device, dtype, head_width)


def test_xformers_that_is_not_installed_is_named(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "xformers", None)  # as import sees a package that is not there
    assert resolve_attention("auto", "cuda", torch.bfloat16) is sdpa_attention
    with pytest.raises(ValueError, match=r"is not installed \(pip install 'dydiff_dist\[gpu\]'\)"):
        resolve_attention.__wrapped__("xformers", "cuda", torch.bfloat16, 64)


def test_auto_chooses_and_says_so_once(install_xformers, caplog):
    install_xformers(stand_in_for_xformers)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert resolve_attention("auto", "cpu") is sdpa_attention
            assert resolve_attention("auto", "cuda", torch.bfloat16, 72) is xformers_attention
            assert resolve_attention("auto", "cuda", torch.bfloat16, 36) is sdpa_attention
    assert [record.getMessage() for record in caplog.records] == [
        "attention: sdpa, chosen for cpu in float32",
        "attention: xformers, chosen for cuda in bfloat16",
        "attention: sdpa, chosen for cuda in bfloat16",
    ]


@pytest.mark.parametrize("breaks", ["import", "forward", "backward"])
def test_an_xformers_that_does_not_run_is_one_line_and_not_chosen(install_xformers, monkeypatch, caplog, breaks):
    if breaks == "backward":
        install_xformers(lambda q, k, v: stand_in_for_xformers(q, k, v).detach())
    else:
        install_xformers(without_operators)
    if breaks == "import":
        monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert resolve_attention("auto", "cuda", torch.bfloat16) is sdpa_attention
    (line,) = [record.getMessage() for record in caplog.records]
    assert "sdpa, chosen for cuda in bfloat16; xformers is installed but does not run beside torch" in line
    assert "\n" not in line and (breaks != "forward" or "No operator found" in line)
    with pytest.raises(ValueError, match=r"'xformers' is installed but does not run .* choose 'auto' or 'sdpa'"):
        resolve_attention("xformers", "cuda", torch.bfloat16)


def test_rotation_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 6, 8)
    angles = rotary_angles(torch.arange(6)[:, None], 8)
    scores = rotate(q, *angles) @ rotate(k, *angles).transpose(-1, -2)
    # float32 angles
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_float64_truth(qk_norm, dtype):
    torch.manual_seed(0)
    layer = Attention(64, 4, qk_norm=qk_norm).to(dtype)
    # far positions: an angle rounded to bfloat16 before its cosine would be off by a radian
    angles = rotary_angles(torch.arange(1000, 1040)[:, None], 16)
    x = torch.randn(2, 40, 64).to(dtype)
    out = layer(x, angles, sdpa_attention)
    truth = layer.double()(x.double(), angles, reference_attention)
    # five roundings in a row (qkv, norm, rotation, attention, projection) of relative size eps each
    atol = 5 * torch.finfo(dtype).eps * truth.abs().max().item()
    torch.testing.assert_close(out.double(), truth, atol=atol, rtol=0)


@pytest.mark.parametrize("qk_norm", ["layer", "rms"])
def test_norm_bounds_scores_whatever_the_scale_of_the_input(qk_norm):
    layer = Attention(32, 2, qk_norm=qk_norm)
    angles = rotary_angles(torch.arange(5)[:, None], 16)
    seen = []
    for scale in (1.0, 1e4):
        layer(scale * torch.ones(1, 5, 32), angles, lambda q, k, v: seen.append((q, k)) or v)
    for small, large in zip(*seen, strict=True):
        assert small.norm(dim=-1).max() <= 16**0.5 + 1e-4
        torch.testing.assert_close(small, large, atol=1e-4, rtol=0)
