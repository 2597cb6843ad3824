"""The video transformer: initialisation, shapes, conditioning, attention backends."""

import pytest
import torch
from pydantic import ValidationError

from dydiff_dist.models import VideoTransformerConfig, assemble_input, build_network, drop_history
from dydiff_dist.models.attention import reference_attention, resolve_attention, rotary_angles, rotate, sdpa_attention


def small_config(**changes) -> VideoTransformerConfig:
    return VideoTransformerConfig(**{"width": 16, "depth": 2, "num_heads": 2, "patch_size": 2, **changes})


def awake(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights in every layer, so that no gate is closed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(channels=3, actions=0, size=(4, 6), frames=5, batch=2):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, frames, channels, *size, generator=generator)
    history = torch.randn(batch, 2, channels, *size, generator=generator)
    moves = torch.randn(batch, frames, actions, generator=generator) if actions else None
    return z, torch.tensor([3, 900]), history, moves


@pytest.mark.parametrize("attention", ["factorised", "full"])
@pytest.mark.parametrize("actions", [0, 4])
@pytest.mark.parametrize("skip", [False, True])
def test_first_prediction_is_exactly_zero(attention, actions, skip):
    config = small_config(attention=attention, patch_skip=skip)
    network = build_network(config, num_channels=3, num_action_channels=actions)
    z, t, history, moves = inputs(actions=actions)
    out = network(z, t, history=history, actions=moves)
    assert out.shape == z.shape
    assert torch.equal(out, torch.zeros_like(z))


@pytest.mark.parametrize("attention", ["factorised", "full"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_input_and_parameter_matters(attention, skip):
    config = small_config(attention=attention, patch_skip=skip)
    network = awake(build_network(config, num_channels=3, num_action_channels=4))
    z, t, history, moves = inputs(actions=4)
    tensors = [x.requires_grad_() for x in (z, history, moves)]
    out = network(z, t, history=history, actions=moves)
    out.square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors)
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not torch.allclose(out, network(z, t.flip(0), history=history, actions=moves))


def test_one_frame_reaches_another_but_not_backwards_in_causal_time():
    z, t, history, _ = inputs()
    late = z.clone()
    late[:, -1] += 1
    for causal in (False, True):
        network = awake(build_network(small_config(causal_time=causal), num_channels=3))
        change = (network(z, t, history=history) - network(late, t, history=history)).abs().amax(dim=(0, 2, 3, 4))
        assert change[-1] > 1e-4
        assert (change[:-1] == 0).all() if causal else (change[:-1] > 1e-6).all()


def test_runs_on_other_lengths_and_sizes_than_built_for():
    network = awake(build_network(small_config(), num_channels=3))
    z, t, history, _ = inputs(size=(8, 2), frames=9)
    assert network(z, t, history=history).isfinite().all()


def test_skip_scales_patches_of_noise_and_last_history():
    network = build_network(small_config(patch_skip=True), num_channels=3)
    with torch.no_grad():  # factors 2 for z and 3 for the last history frame, whatever the token
        network.skip_scale.bias.copy_(torch.tensor([2.0, 2, 2, 3, 3, 3]))
    z, t, history, _ = inputs()
    torch.testing.assert_close(network(z, t, history=history), 2 * z + 3 * history[:, -1:], atol=1e-6, rtol=0)


def test_input_channels_follow_the_authors_layout():
    z, _, history, moves = inputs(channels=2, actions=1, size=(2, 2), frames=4)
    x = assemble_input(z, history, moves)
    assert torch.equal(x[:, :, :2], z)
    assert torch.equal(x[:, :2, 2:4], history) and (x[:, 2:, 2:4] == 0).all()
    assert (x[:, :, 4] == torch.tensor([1.0, 1, 0, 0])[None, :, None, None]).all()
    assert (x[:, :, 5] == torch.tensor([0.0, 0, 1, 0])[None, :, None, None]).all()
    assert (x[:, :, 6] == moves[:, :, 0, None, None]).all()


def test_dropped_history_is_noise_in_those_samples_only():
    _, _, history, _ = inputs()
    noise = torch.ones_like(history)
    out = drop_history(history, noise, torch.tensor([True, False]))
    assert torch.equal(out[0], noise[0]) and torch.equal(out[1], history[1])


@pytest.mark.parametrize("causal", [False, True])
def test_sdpa_equals_reference(causal):
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64).unbind(0)
    expected = reference_attention(q, k, v, causal)
    torch.testing.assert_close(sdpa_attention(q, k, v, causal), expected, atol=1e-12, rtol=1e-12)


def test_rotation_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 6, 8)
    cos, sin = rotary_angles(torch.arange(6)[:, None], 8)
    angles = (cos.double(), sin.double())
    scores = rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)
    # float32 angles
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], atol=1e-5, rtol=0)


def test_wrong_use_is_named():
    network = build_network(small_config(), num_channels=3, num_action_channels=4)
    z, t, history, moves = inputs(actions=4)
    with pytest.raises(ValueError, match="takes 4 action channels, the batch has 0"):
        network(z, t, history=history)
    with pytest.raises(ValueError, match=r"5x6 are not divisible into patches of 2"):
        network(torch.randn(2, 5, 3, 5, 6), t, history=history, actions=moves)
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve_attention("xformers", "cpu")
    with pytest.raises(ValidationError, match="must be a multiple of 4"):
        small_config(width=18)
