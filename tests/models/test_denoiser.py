"""The registry of networks, with one from outside the package; and what any network's configuration offers."""

from typing import Literal

import pytest
import torch
from built_networks import sizes_of
from torch import nn

from dydiff_dist.models import DenoiserConfig, ExecutionConfig, UNetConfig, VideoTransformerConfig, register_network
from dydiff_dist.models.denoiser import _NETWORKS
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import parse_config

TREE = {
    "output_dir": "runs/x",
    "data": {"train": "shards/x/train"},
    "training": {"steps": 10, "global_batch_size": 4, "micro_batch_per_gpu": 2, "learning_rate": 1e-3},
}
TRANSFORMER = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4}


class ScaleConfig(DenoiserConfig):
    """The least that a network needs."""

    network: Literal["scale"] = "scale"
    factor: float = 1.0

    def build(self, sizes, execution=None, kernels="auto"):
        return Scale(sizes.num_channels, self.factor)

    def describe(self) -> str:
        return f"scale from {self.factor}"


class Scale(nn.Module):
    """z times a learned factor per channel, by a matrix product."""

    def __init__(self, num_channels: int, factor: float):
        super().__init__()
        self.matrix = nn.Parameter(factor * torch.eye(num_channels))

    def forward(self, z, timesteps, *, history, actions=None):
        return torch.einsum("bschw,cd->bsdhw", z, self.matrix)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("dydiff_dist.models.denoiser._NETWORKS", {**_NETWORKS})
    register_network("scale", ScaleConfig)


def config_of(**model) -> RunConfig:
    return parse_config({**TREE, "model": model}, "x.json", RunConfig)


def test_a_network_from_outside_is_configured_by_its_name(registered):
    config = config_of(network="scale", factor=2.0)
    assert isinstance(config.model, ScaleConfig)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again.model == config.model and again.model.network == "scale"


def test_any_network_is_counted_checked_and_described(registered):
    config, sizes = ScaleConfig(), sizes_of(3)
    assert config.parameter_count(sizes) == 9 and config.num_blocks == 1
    assert config.forward_flops(sizes) == 2 * 5 * 4 * 6 * 9 and config.training_flops(sizes) == 6 * 5 * 4 * 6 * 9
    assert config.num_tokens(sizes) == 5 * 4 * 6
    config.check(sizes, ExecutionConfig(), "cpu", torch.float32)
    with pytest.raises(ValueError, match="network 'scale' can't share frames between ranks; set it to 1"):
        config.check(sizes, ExecutionConfig(sequence_parallel_size=2), "cpu", torch.float32)


def test_the_transformer_is_meant_where_no_network_is_named():
    config = config_of(**TRANSFORMER)
    assert type(config.model) is VideoTransformerConfig
    assert config.model_dump(mode="json")["model"]["network"] == "video_transformer"
    assert type(config_of(network="unet", width=16, channel_multipliers=[1, 2]).model) is UNetConfig


def test_a_model_from_before_a_key_went_is_read_where_it_did_not_matter():
    assert config_of(**TRANSFORMER, causal_time=False) == config_of(**TRANSFORMER)
    with pytest.raises(ValueError, match=r"model\.causal_time is True: this key is gone"):
        config_of(**TRANSFORMER, causal_time=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"network": "unett"}, "model: unknown network 'unett'; did you mean 'unet'. registered are unet, video_tr"),
        ({"network": "unet"}, "key 'model.width' is required"),
        ({"network": "unet", "width": 16, "widht": 1}, "unknown key 'model.widht'; did you mean 'model.width'"),
        ({"network": "unet", "width": 16, "zzz": 1}, "unknown key 'model.zzz'; valid keys: network, width, ch"),
        ({**TRANSFORMER, "multipliers": [1]}, "unknown key 'model.multipliers'; valid keys: network, size, width"),
        ({"network": "unet", "width": "w"}, "model.width is 'w': input should be a valid integer"),
    ],
)
def test_mistakes_name_the_keys_of_the_network_that_is_meant(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        config_of(**model)
    assert "\n" not in str(caught.value)


def test_a_name_stands_for_one_class(registered):
    register_network("scale", ScaleConfig)  # again is nothing new
    with pytest.raises(ValueError, match=r"network 'scale' is ScaleConfig already; choose another name"):
        register_network("scale", type("Other", (ScaleConfig,), {}))
    with pytest.raises(ValueError, match=r"ScaleConfig\.network is 'scale' by default; make it 'other'"):
        register_network("other", ScaleConfig)
