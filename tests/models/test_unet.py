"""The U-Net: shapes, first prediction, what every frame sees, sizes it refuses, and the options of execution."""

import pytest
import torch
from built_networks import build_network, sizes_of
from pydantic import ValidationError

from dydiff_dist.models import ExecutionConfig, UNetConfig


def small_config(**changes) -> UNetConfig:
    return UNetConfig(
        **{"width": 8, "channel_multipliers": (1, 2), "num_blocks_per_level": 1, "num_heads": 2, **changes}
    )


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights in every layer, so that nothing is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(actions=0, size=(4, 6), frames=5):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, frames, 3, *size, generator=generator)
    history = torch.randn(2, 2, 3, *size, generator=generator)
    moves = torch.randn(2, frames, actions, generator=generator) if actions else None
    return z, torch.tensor([3, 900]), history, moves


@pytest.mark.parametrize("actions", [0, 4])
@pytest.mark.parametrize(
    "options", [{}, {"channel_multipliers": (1,)}, {"channel_multipliers": (2, 1, 4)}, {"periodic": True}], ids=str
)
def test_first_prediction_is_exactly_zero(options, actions):
    network = build_network(small_config(**options), num_channels=3, num_action_channels=actions)
    z, t, history, moves = inputs(actions, size=(8, 12))
    out = network(z, t, history=history, actions=moves)
    assert out.shape == z.shape and torch.equal(out, torch.zeros_like(z))


def test_every_input_and_parameter_matters():
    network = awake(build_network(small_config(), num_channels=3, num_action_channels=4))
    z, t, history, moves = inputs(actions=4)
    tensors = [x.requires_grad_() for x in (z, history, moves)]
    out = network(z, t, history=history, actions=moves)
    (seen,) = torch.autograd.grad(out[:, 0].square().sum(), z, retain_graph=True)
    assert (seen.abs().amax(dim=(0, 2, 3, 4)) > 0).all(), "a frame sees all frames"
    out.square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors)
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not torch.allclose(out, network(z, t.flip(0), history=history, actions=moves))


def test_all_weights_learn_from_the_start():
    network = build_network(small_config(), num_channels=3)
    z, t, history, _ = inputs()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (network(z, t, history=history) - z).square().mean().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name])] == []


def test_samples_do_not_see_each_other():
    network = awake(build_network(small_config(), num_channels=3))
    z, t, history, _ = inputs()
    alone = network(z[1:], t[1:], history=history[1:])
    # float32 sums in another order, of values up to some hundreds
    torch.testing.assert_close(network(z, t, history=history)[1:], alone, rtol=1e-4, atol=1e-3)


def test_a_periodic_network_follows_shifts_by_whole_pixels_of_its_coarsest_level():
    network = awake(build_network(small_config(periodic=True), num_channels=3)).double()
    z, t, history, _ = (x.double() if x is not None and x.is_floating_point() else x for x in inputs(size=(8, 12)))
    shift = {"shifts": (2, -4), "dims": (-2, -1)}
    shifted = network(z.roll(**shift), t, history=history.roll(**shift))
    # the timestep's features are float32, the same on both sides
    torch.testing.assert_close(shifted, network(z, t, history=history).roll(**shift), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(fraction):
    z, t, history, _ = inputs()
    results = []
    for part in (0.0, fraction):
        network = awake(
            build_network(small_config(), num_channels=3, execution=ExecutionConfig(checkpoint_fraction=part))
        )
        network(z, t, history=history).square().sum().backward()
        results.append([p.grad for p in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


def test_wrong_use_is_named():
    network, (z, t, history, _) = build_network(small_config(), num_channels=3, num_action_channels=4), inputs()
    with pytest.raises(ValueError, match="takes 4 action channels, the batch has 0"):
        network(z, t, history=history)
    odd = r"frames of 5x6 are no multiple of 2, to which model.channel_multipliers of 2 levels halve them"
    with pytest.raises(ValueError, match=odd):
        network(z[..., :1, :].expand(-1, -1, -1, 5, -1), t, history=history)
    with pytest.raises(ValueError, match="sequence_parallel_size 2 does not divide the 5 frames"):
        small_config().check(sizes_of(3), ExecutionConfig(sequence_parallel_size=2), "cpu", torch.float32)
    with pytest.raises(ValidationError, match="levels have 12 channels; width times each of channel_multipliers"):
        small_config(width=12)
    with pytest.raises(ValidationError, match="channel_multipliers must have at least one level"):
        small_config(channel_multipliers=())
