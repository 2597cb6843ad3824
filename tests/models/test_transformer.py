"""The video transformer: initialisation, shapes, conditioning, attention backends."""

import pytest
import torch
from built_networks import build_network, sizes_of
from pydantic import ValidationError

from dydiff_dist.models import ExecutionConfig, InputSizes, VideoTransformerConfig, assemble_input, drop_history


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


@pytest.mark.parametrize("actions", [0, 4])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "full"},
        {"qk_norm": "rms"},
        {"qk_norm": "none"},
        {"action_embedding": False},
        {"action_channels": False},
        {"patch_size": 1, "mlp_ratio": 2.0},
        {"patch_overlap": 1},
        {"patch_overlap": 1, "periodic": True},
    ],
    ids=str,
)
def test_first_prediction_is_exactly_zero(options, actions, skip):
    network = build_network(small_config(**options, patch_skip=skip), num_channels=3, num_action_channels=actions)
    z, t, history, moves = inputs(actions=actions)
    out = network(z, t, history=history, actions=moves)
    assert out.shape == z.shape
    assert torch.equal(out, torch.zeros_like(z))


def test_blocks_start_as_the_identity_and_all_weights_learn():
    """adaLN-Zero: a block is the identity at the start; the head moves first, then what stands before it."""
    network = build_network(small_config(), num_channels=3, num_action_channels=4)
    x = torch.randn(2, 5, 6, 16)
    context = network._context(5, 2, 3, x)
    assert torch.equal(network.blocks[0](x, torch.randn(2, 1, 1, 16), context), x)
    z, t, history, moves = inputs(actions=4)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (network(z, t, history=history, actions=moves) - z).square().mean().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name])] == []


@pytest.mark.parametrize("attention", ["factorised", "full"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("overlap", [0, 1])
def test_every_input_and_parameter_matters(attention, skip, overlap):
    config = small_config(attention=attention, patch_skip=skip, patch_overlap=overlap)
    network = awake(build_network(config, num_channels=3, num_action_channels=4))
    z, t, history, moves = inputs(actions=4)
    tensors = [x.requires_grad_() for x in (z, history, moves)]
    out = network(z, t, history=history, actions=moves)
    out.square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors)
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not torch.allclose(out, network(z, t.flip(0), history=history, actions=moves))


@pytest.mark.parametrize("skip", [False, True])
def test_every_frame_sees_all_frames(skip):
    network = awake(build_network(small_config(patch_skip=skip), num_channels=3))
    z, t, history, _ = inputs()
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(network(z, t, history=history)[:, 0].square().sum(), z)
    assert (gradient.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("attention", ["factorised", "full"])
def test_runs_on_other_lengths_and_sizes_than_trained(attention):
    """Positions are relative: a network built for nothing in particular runs at any size."""
    network = awake(build_network(small_config(attention=attention), num_channels=3))
    for frames, size in ((9, (8, 2)), (3, (2, 2)), (40, (4, 6))):
        z, t, history, _ = inputs(size=size, frames=frames)
        assert network(z, t, history=history).isfinite().all()


@pytest.mark.parametrize("attention", ["factorised", "full"])
@pytest.mark.parametrize("skip", [False, True])
def test_series_are_videos_of_one_pixel(attention, skip):
    network = awake(build_network(small_config(attention=attention, patch_size=1, patch_skip=skip), num_channels=8))
    z, t, history, _ = inputs(channels=8, size=(1, 1), frames=30)
    z.requires_grad_()
    out = network(z, t, history=history)
    assert out.shape == z.shape and out.isfinite().all()
    (gradient,) = torch.autograd.grad(out[:, 4].square().sum(), z)
    assert (gradient.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    ("channels", "embedding"), [(True, True), (True, False), (False, True), (False, False)], ids=str
)
def test_actions_enter_as_configured(channels, embedding):
    config = small_config(action_channels=channels, action_embedding=embedding)
    network = awake(build_network(config, num_channels=3, num_action_channels=4))
    assert network.embed_patch.in_features == (2 * 3 + 2 + 4 * channels) * 4
    assert (network.embed_action is not None) == embedding
    z, t, history, moves = inputs(actions=4)
    changed = network(z, t, history=history, actions=moves) != network(z, t, history=history, actions=moves + 1)
    assert changed.any() == (channels or embedding)


@pytest.mark.parametrize("attention", ["factorised", "full"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(attention, fraction):
    z, t, history, moves = inputs(actions=4)
    results = []
    for part in (0.0, fraction):
        execution = ExecutionConfig(checkpoint_fraction=part)
        network = awake(
            build_network(small_config(attention=attention), num_channels=3, num_action_channels=4, execution=execution)
        )
        calls = []
        for block in network.blocks:
            block.mlp.layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        leaf = z.clone().requires_grad_()
        out = network(leaf, t, history=history, actions=moves)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in network.parameters())])
        assert len(calls) == 2 + round(2 * part)
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_keeps_less_for_the_backward_pass():
    z, t, history, _ = inputs(size=(16, 16))
    kept = []
    for fraction in (0.0, 0.5, 1.0):
        execution = ExecutionConfig(checkpoint_fraction=fraction)
        network = awake(build_network(small_config(depth=4), num_channels=3, execution=execution))
        weights, num_bytes = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

        def note(tensor, weights=weights, num_bytes=num_bytes):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                num_bytes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(z, t, history=history)
        kept.append(sum(num_bytes.values()))
    assert kept[0] > 1.5 * kept[1] > 3 * kept[2]


@pytest.mark.parametrize("attention", ["factorised", "full"])
def test_a_block_compiles_into_one_graph(attention):
    """Attention's inputs, norms and gates are operations of ours in it, not a break; gradients are those of eager."""
    torch.compiler.reset()
    network = awake(build_network(small_config(attention=attention), num_channels=3))
    block, x, condition = network.blocks[0], torch.randn(2, 5, 6, 16), torch.randn(2, 1, 1, 16)
    context, results = network._context(5, 2, 3, x), []
    for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        out = run(x, condition, context)
        results.append([out, *torch.autograd.grad(out.square().sum(), block.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-5 * plain.abs().max().item(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_compiled_blocks_compute_the_same(fraction):
    z, t, history, _ = inputs()
    results = []
    for compiled in (False, True):
        execution = ExecutionConfig(compile_blocks=compiled, checkpoint_fraction=fraction)
        network = awake(build_network(small_config(width=32), num_channels=3, execution=execution))
        out = network(z, t, history=history)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in network.parameters())])
        assert all("_orig_mod" not in name for name in network.state_dict())
    for plain, other in zip(*results, strict=True):
        # float32 sums in another order
        torch.testing.assert_close(other, plain, atol=1e-4 * plain.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("attention", ["factorised", "full"])
def test_bfloat16_is_near_float64(attention):
    torch.manual_seed(0)
    network = build_network(small_config(width=64, num_heads=4, attention=attention), num_channels=3)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    network = network.to(torch.bfloat16)
    z, t, history, _ = inputs()
    z, history = z.bfloat16(), history.bfloat16()
    out = network(z, t, history=history)
    truth = network.double()(z.double(), t, history=history.double())
    # some ten roundings of 2^-9 on the way, each carried on by two blocks of gain near one
    error = (out.double() - truth).norm() / truth.norm()
    assert out.dtype == torch.bfloat16 and error < 10 * 2**-8, error


def test_skip_scales_patches_of_noise_and_last_history():
    network = build_network(small_config(patch_skip=True), num_channels=3)
    with torch.no_grad():  # factors 2 for z and 3 for the last history frame, whatever the token
        network.skip_scale.bias.copy_(torch.tensor([2.0, 2, 2, 3, 3, 3]))
    z, t, history, _ = inputs()
    torch.testing.assert_close(network(z, t, history=history), 2 * z + 3 * history[:, -1:], atol=1e-6, rtol=0)


def test_skip_differences_continue_the_history():
    """With factors 1 a linear and a quadratic course go on for one frame, in every pixel."""
    network = VideoTransformerConfig(width=16, depth=1, num_heads=2, patch_size=2, patch_skip=True, skip_differences=2)
    sizes = InputSizes(num_frames=5, num_history_frames=3, num_channels=1, height=4, width=4)
    network.check(sizes, ExecutionConfig(), "cpu", torch.float32)
    network = network.build(sizes)
    with torch.no_grad():
        network.skip_scale.bias.copy_(torch.tensor([0.0, 1, 1, 1]))
    course = torch.rand(2, 1, 1, 4, 4) * torch.arange(4.0)[None, :, None, None, None] ** 2 + torch.rand(2, 1, 1, 4, 4)
    out = network(torch.randn(2, 5, 1, 4, 4), torch.tensor([3, 900]), history=course[:, :3])
    torch.testing.assert_close(out, course[:, 3:].expand_as(out), atol=1e-5, rtol=0)


def test_overlaps_that_can_not_be_are_refused():
    with pytest.raises(ValidationError, match="patch_overlap is 2; it may be at most half of patch_size 2"):
        small_config(patch_overlap=2)
    with pytest.raises(ValidationError, match="periodic is on and patch_overlap 0"):
        small_config(periodic=True)


@pytest.mark.parametrize("periodic", [False, True])
def test_patches_that_overlap_see_and_change_their_neighbours(periodic):
    """The pixel beside an edge is seen by both tokens, around the border where the frames are periodic."""
    config = small_config(patch_size=4, patch_overlap=1, periodic=periodic, patch_skip=True)
    network = awake(build_network(config, num_channels=3))
    z, t, history, _ = inputs(size=(8, 12))
    x = network.embed_patch(config.patches.split(assemble_input(z, history, None))).unflatten(2, (2, 3))
    z[..., 0, 4] += 1
    changed = network.embed_patch(config.patches.split(assemble_input(z, history, None))).unflatten(2, (2, 3)) != x
    tokens = {(int(row), int(column)) for *_, row, column, _ in changed.nonzero()}
    assert tokens == {(0, 0), (0, 1)} | ({(1, 0), (1, 1)} if periodic else set())
    assert network(z, t, history=history).isfinite().all()


def test_skip_differences_that_can_not_be_are_refused():
    with pytest.raises(ValidationError, match="skip_differences is 1, and patch_skip is off"):
        small_config(skip_differences=1)
    config = small_config(patch_skip=True, skip_differences=2)
    with pytest.raises(ValueError, match="skip_differences is 2; 2 history frames have 1 differences, give at most"):
        config.check(sizes_of(3), ExecutionConfig(), "cpu", torch.float32)


def test_input_channels_follow_the_authors_layout():
    z, _, history, moves = inputs(channels=2, actions=1, size=(2, 2), frames=4)
    x = assemble_input(z, history, moves)
    assert torch.equal(x[:, :, :2], z)
    assert torch.equal(x[:, :2, 2:4], history) and (x[:, 2:, 2:4] == 0).all()
    assert (x[:, :, 4] == torch.tensor([1.0, 1, 0, 0])[None, :, None, None]).all()
    assert (x[:, :, 5] == torch.tensor([0.0, 0, 1, 0])[None, :, None, None]).all()
    assert (x[:, :, 6] == moves[:, :, 0, None, None]).all()
    with pytest.raises(ValueError, match="history has 2 frames, z has 2 with them"):
        assemble_input(z[:, :2], z[:, :2], None)


def test_dropped_history_is_zero_in_those_samples_only():
    _, _, history, _ = inputs()
    out = drop_history(history, torch.tensor([True, False]))
    assert not out[0].any() and torch.equal(out[1], history[1])


def test_wrong_use_is_named():
    network = build_network(small_config(), num_channels=3, num_action_channels=4)
    z, t, history, moves = inputs(actions=4)
    with pytest.raises(ValueError, match="takes 4 action channels, the batch has 0"):
        network(z, t, history=history)
    with pytest.raises(ValueError, match=r"model.patch_size 2 does not divide frames of 5x6; change it or data"):
        network(torch.randn(2, 5, 3, 5, 6), t, history=history, actions=moves)
    with pytest.raises(ValidationError, match="must be a multiple of 4"):
        small_config(width=18)
