"""Networks for tests that care for channels alone."""

from torch import nn

from dydiff_dist.models import DenoiserConfig, ExecutionConfig, InputSizes


def sizes_of(num_channels: int, num_action_channels: int = 0) -> InputSizes:
    """Small frames, two of five given."""
    return InputSizes(
        num_frames=5,
        num_history_frames=2,
        num_channels=num_channels,
        height=4,
        width=6,
        num_action_channels=num_action_channels,
    )


def build_network(
    config: DenoiserConfig,
    *,
    num_channels: int,
    num_action_channels: int = 0,
    execution: ExecutionConfig | None = None,
) -> nn.Module:
    """The network for such channels."""
    return config.build(sizes_of(num_channels, num_action_channels), execution)
