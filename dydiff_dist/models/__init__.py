"""The denoising networks."""

from dydiff_dist.models.conditioning import assemble_input, drop_history, num_input_channels
from dydiff_dist.models.config import ExecutionConfig, VideoTransformerConfig
from dydiff_dist.models.transformer import VideoTransformer
from dydiff_kernels import Backend

__all__ = [
    "ExecutionConfig",
    "VideoTransformer",
    "VideoTransformerConfig",
    "assemble_input",
    "build_network",
    "drop_history",
    "num_input_channels",
]


def build_network(
    config: VideoTransformerConfig,
    *,
    num_channels: int,
    num_action_channels: int = 0,
    execution: ExecutionConfig | None = None,
    kernels: Backend = "auto",
) -> VideoTransformer:
    """The network that ``config`` describes, for data with these channels; ``execution`` and ``kernels`` say how it
    runs."""
    return VideoTransformer(
        config,
        num_channels=num_channels,
        num_action_channels=num_action_channels,
        execution=execution,
        kernels=kernels,
    )
