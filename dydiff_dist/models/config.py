"""Configuration of the denoising network."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.strict_config import StrictConfig


class VideoTransformerConfig(StrictConfig):
    """The latent video transformer, `dydiff_dist.models.VideoTransformer`."""

    width: PositiveInt
    """Channels per token, D."""
    depth: PositiveInt
    """Number of blocks."""
    num_heads: PositiveInt
    """Attention heads; width / num_heads must be a multiple of 4 (two rotary axes of cosine-sine pairs)."""
    patch_size: PositiveInt
    """Edge of a token's square patch, in latent pixels; must divide the latent height and width."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLP over width."""
    attention: Literal["factorised", "full"] = "factorised"
    """factorised: over the tokens of a frame, then over the frames of a token; full: over all tokens of all frames."""
    causal_time: bool = False
    """Whether a frame sees only itself and earlier frames (factorised attention only)."""
    patch_skip: bool = False
    """Whether each token also scales its own patches of z and of the last history frame into the output. It helps where
    much stands still (robot video in front of a fixed background); it hurt where everything moves (turbulence)."""
    attention_backend: Literal["auto", "sdpa", "xformers", "reference"] = "auto"
    """auto: xformers on a GPU where it is installed, torch's SDPA elsewhere; what was chosen is logged."""
    action_embedding: bool = True
    """Whether actions, where the data has them, also modulate their frame; they are input channels in any case."""

    @model_validator(mode="after")
    def _check_heads(self) -> "VideoTransformerConfig":
        if self.width % self.num_heads or (self.width // self.num_heads) % 4:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must be a multiple of 4; change either"
            )
        if self.causal_time and self.attention != "factorised":
            raise ValueError("causal_time needs attention 'factorised', it is 'full'; change either")
        return self
