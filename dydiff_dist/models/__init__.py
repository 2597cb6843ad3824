"""The denoising networks, and the registry in which ``model.network`` of a run configuration finds them."""

from dydiff_dist.models.conditioning import assemble_input, drop_history, num_input_channels
from dydiff_dist.models.denoiser import (
    AnyDenoiserConfig,
    Denoiser,
    DenoiserConfig,
    ExecutionConfig,
    InputSizes,
    SharesFrames,
    register_network,
)
from dydiff_dist.models.transformer import VideoTransformer, VideoTransformerConfig
from dydiff_dist.models.unet import UNet, UNetConfig

__all__ = [
    "AnyDenoiserConfig",
    "Denoiser",
    "DenoiserConfig",
    "ExecutionConfig",
    "InputSizes",
    "SharesFrames",
    "UNet",
    "UNetConfig",
    "VideoTransformer",
    "VideoTransformerConfig",
    "assemble_input",
    "drop_history",
    "num_input_channels",
    "register_network",
]

register_network("video_transformer", VideoTransformerConfig)
register_network("unet", UNetConfig)
