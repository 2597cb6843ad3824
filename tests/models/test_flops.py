"""Parameter and FLOP formulas against the network itself and torch's counter, on the meta device: nothing runs."""

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from dydiff_dist.models import ExecutionConfig, VideoTransformerConfig, build_network
from dydiff_dist.models.config import NAMED_SIZES
from dydiff_dist.models.flops import forward_flops, parameter_count, training_flops

ROBONET = {"num_frames": 12, "height": 32, "width": 32, "num_channels": 4, "num_action_channels": 4}
OPTIONS = [
    {"attention": attention, "patch_skip": skip, "action_embedding": embed, "patch_size": patch, "mlp_ratio": ratio}
    for attention, skip, embed, (patch, ratio) in itertools.product(
        ("factorised", "full"), (False, True), (False, True), ((2, 4.0), (1, 2.5))
    )
] + [
    {"patch_size": 1, "action_channels": False},
    {"patch_size": 1, "qk_norm": "rms"},
    {"patch_size": 1, "qk_norm": "none"},
]


def counted(config: VideoTransformerConfig, *, batch=2, num_frames, height, width, num_channels, num_action_channels):
    """(parameters, operations per sample) of the network itself; the reference attention is what the counter sees."""
    sizes = {"num_channels": num_channels, "num_action_channels": num_action_channels}
    sizes["execution"] = ExecutionConfig(attention_backend="reference")
    with torch.device("meta"):
        network = build_network(config, **sizes)
        z = torch.empty(batch, num_frames, num_channels, height, width)
        actions = torch.empty(batch, num_frames, num_action_channels) if num_action_channels else None
        counter = FlopCounterMode(display=False)
        with counter:
            network(z, torch.zeros(batch, dtype=torch.int64), history=z[:, :1], actions=actions)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / batch


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("actions", [0, 4])
def test_formulas_equal_the_network_and_the_counter(options, actions):
    config = VideoTransformerConfig(**{"width": 24, "depth": 3, "num_heads": 2, **options})
    shape = {"num_frames": 5, "height": 4, "width": 6, "num_channels": 3, "num_action_channels": actions}
    num_params, flops = counted(config, **shape)
    assert parameter_count(config, num_channels=3, num_action_channels=actions) == num_params
    assert forward_flops(config, **shape) == flops


@pytest.mark.parametrize("size", ["S", "XL"])
def test_formulas_at_named_sizes_and_the_robonet_shape(size):
    config = VideoTransformerConfig(size=size, patch_size=2)
    num_params, flops = counted(config, batch=1, **ROBONET)
    assert parameter_count(config, num_channels=4, num_action_channels=4) == num_params
    assert forward_flops(config, **ROBONET) == flops


def test_training_is_three_forward_passes_and_what_is_recomputed():
    config = VideoTransformerConfig(width=16, depth=4, num_heads=2, patch_size=1)
    shape = {"num_frames": 3, "height": 1, "width": 1, "num_channels": 2}
    forward = forward_flops(config, **shape)
    blocks = forward - forward_flops(config.model_copy(update={"depth": 0}), **shape)
    assert training_flops(config, **shape) == 3 * forward
    assert training_flops(config, **shape, checkpoint_fraction=0.5) == 3 * forward + blocks // 2
    assert training_flops(config, **shape, checkpoint_fraction=1.0) == 3 * forward + blocks


def test_named_sizes_stand_for_numbers():
    config = VideoTransformerConfig(size="XL", patch_size=2)
    assert (config.width, config.depth, config.num_heads) == (1152, 28, 16)
    stored = config.model_dump(mode="json")
    assert "size" not in stored and stored["depth"] == 28
    assert VideoTransformerConfig(**stored).model_dump() == config.model_dump()
    assert VideoTransformerConfig(size="B", depth=12, patch_size=2).width == 768


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
        assert f"{parameter_count(config, num_channels=4, num_action_channels=4) / 1e6:.1f}" == num_params
        assert f"{forward_flops(config, **ROBONET) / 1e12:.3f}" == flops
