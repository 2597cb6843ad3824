"""FLOP formulas against the network itself and torch's counter, on the meta device: nothing runs."""

import itertools
from pathlib import Path

import pytest
import torch
from built_networks import sizes_of
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from dydiff_dist.models import DenoiserConfig, ExecutionConfig, InputSizes, UNetConfig, VideoTransformerConfig
from dydiff_dist.models.transformer import NAMED_SIZES

ROBONET = InputSizes(num_frames=12, num_history_frames=2, num_channels=4, height=32, width=32, num_action_channels=4)
OPTIONS = [
    {"attention": attention, "patch_skip": skip, "action_embedding": embed, "patch_size": patch, "mlp_ratio": ratio}
    for attention, skip, embed, (patch, ratio) in itertools.product(
        ("factorised", "full"), (False, True), (False, True), ((2, 4.0), (1, 2.5))
    )
] + [
    {"patch_size": 1, "action_channels": False},
    {"patch_size": 1, "qk_norm": "rms"},
    {"patch_size": 1, "qk_norm": "none"},
    {"patch_size": 1, "patch_skip": True, "skip_differences": 1},
    {"patch_size": 2, "patch_overlap": 1},
    {"patch_size": 2, "patch_overlap": 1, "periodic": True, "patch_skip": True, "skip_differences": 1},
]


def counted(config: DenoiserConfig, sizes: InputSizes, batch: int = 2) -> tuple[int, float]:
    """(parameters, operations per sample) of the network itself; the reference attention is what the counter sees."""
    with torch.device("meta"):
        network = config.build(sizes, ExecutionConfig(attention_backend="reference"))
        z = torch.empty(batch, sizes.num_frames, sizes.num_channels, sizes.height, sizes.width)
        num_actions = sizes.num_action_channels
        actions = torch.empty(batch, sizes.num_frames, num_actions) if num_actions else None
        counter = FlopCounterMode(display=False)
        with counter:
            network(z, torch.zeros(batch, dtype=torch.int64), history=z[:, : sizes.num_history_frames], actions=actions)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / batch


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("actions", [0, 4])
def test_formulas_equal_the_network_and_the_counter(options, actions):
    config = VideoTransformerConfig(**{"width": 24, "depth": 3, "num_heads": 2, **options})
    sizes = sizes_of(3, actions)
    num_params, flops = counted(config, sizes)
    assert config.parameter_count(sizes) == num_params
    assert config.forward_flops(sizes) == flops


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 20)])
def test_formulas_of_overlapping_patches_hold_for_any_frame(height, width):
    config = VideoTransformerConfig(
        width=24, depth=1, num_heads=2, patch_size=4, patch_overlap=1, patch_skip=True, skip_differences=1
    )
    sizes = InputSizes(num_frames=5, num_history_frames=2, num_channels=3, height=height, width=width)
    assert config.forward_flops(sizes) == counted(config, sizes)[1]


@pytest.mark.parametrize("size", ["S", "XL"])
def test_formulas_at_named_sizes_and_the_robonet_shape(size):
    config = VideoTransformerConfig(size=size, patch_size=2)
    num_params, flops = counted(config, ROBONET, batch=1)
    assert config.parameter_count(ROBONET) == num_params
    assert config.forward_flops(ROBONET) == flops


def test_training_is_three_forward_passes_and_what_is_recomputed():
    config = VideoTransformerConfig(width=16, depth=4, num_heads=2, patch_size=1)
    sizes = InputSizes(num_frames=3, num_history_frames=1, num_channels=2, height=1, width=1)
    forward = config.forward_flops(sizes)
    blocks = forward - config.model_copy(update={"depth": 0}).forward_flops(sizes)
    assert config.training_flops(sizes) == 3 * forward
    assert config.training_flops(sizes, checkpoint_fraction=0.5) == 3 * forward + blocks // 2
    assert config.training_flops(sizes, checkpoint_fraction=1.0) == 3 * forward + blocks


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_what_any_network_counts_is_what_the_transformers_formula_says(fraction):
    config = VideoTransformerConfig(width=16, depth=4, num_heads=2, patch_size=2)
    sizes = sizes_of(3)
    assert DenoiserConfig.forward_flops(config, sizes) == config.forward_flops(sizes)
    assert DenoiserConfig.recomputed_flops(config, sizes, fraction) == config.recomputed_flops(sizes, fraction)


def test_a_networks_operations_are_counted_where_there_is_no_formula():
    """A U-Net of one level and one block a way: 3x3 convolutions and the attention over time, by hand."""
    config = UNetConfig(width=8, channel_multipliers=(1,), num_blocks_per_level=1, num_heads=2)
    sizes, D, S, pixels = sizes_of(3), 8, 5, 4 * 6
    convolutions = 9 * (8 * D + 4 * (D * D + D * D) + D * D + D * 3) + 2 * D * D  # up takes 2 D, and skips by 1x1
    timestep = 256 * 4 * D + 4 * D * 4 * D + S * 4 * (4 * D * 2 * D)
    attention = 3 * pixels * S * (4 * D * D + 2 * S * D)
    assert config.forward_flops(sizes) == 2 * (convolutions * S * pixels + timestep + attention)
    assert config.forward_flops(sizes) == counted(config, sizes)[1]
    deeper = config.model_copy(update={"num_blocks_per_level": 2})
    assert 0 < deeper.recomputed_flops(sizes, 0.5) < deeper.recomputed_flops(sizes, 1.0) < deeper.forward_flops(sizes)


def test_named_sizes_stand_for_numbers():
    config = VideoTransformerConfig(size="XL", patch_size=2)
    assert (config.width, config.depth, config.num_heads) == (1152, 28, 18)
    stored = config.model_dump(mode="json")
    assert "size" not in stored and stored["depth"] == 28
    assert VideoTransformerConfig(**stored).model_dump() == config.model_dump()
    assert VideoTransformerConfig(size="B", depth=12, patch_size=2).width == 768


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_heads_of_named_sizes_are_what_attention_kernels_need_not_pad(size):
    assert VideoTransformerConfig(size=size, patch_size=2).head_width in (64, 128)


def test_sizes_of_before_still_build_from_their_numbers():
    """XL had 16 heads; models and checkpoints keep the numbers."""
    config = VideoTransformerConfig(width=1152, depth=28, num_heads=16, patch_size=2)
    assert config.head_width == 72 and config.forward_flops(ROBONET) == VideoTransformerConfig(
        size="XL", patch_size=2
    ).forward_flops(ROBONET)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"size": "B", "depth": 3}, "size 'B' means depth 12, depth says 3; remove either"),
        ({"width": 16, "depth": 2}, "num_heads not given; give size"),
        ({}, "width, depth, num_heads not given"),
        ({"size": "XXL", "width": 16, "depth": 2, "num_heads": 2}, "size is 'XXL'; it must be one of S, B, L, XL"),
    ],
)
def test_sizes_that_conflict_or_lack_numbers(tree, message):
    with pytest.raises(ValidationError, match=message):
        VideoTransformerConfig(**tree, patch_size=2)


def test_the_table_in_the_documentation_is_what_the_formulas_say():
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    sizes = [row for row in rows if row[0] in NAMED_SIZES]
    assert len(sizes) == 2 * len(NAMED_SIZES)
    for size, width, depth, heads, attention, num_params, flops in sizes:
        config = VideoTransformerConfig(size=size, patch_size=2, attention=attention)
        assert (config.width, config.depth, config.num_heads) == (int(width), int(depth), int(heads))
        assert f"{config.parameter_count(ROBONET) / 1e6:.1f}" == num_params
        assert f"{config.forward_flops(ROBONET) / 1e12:.3f}" == flops
