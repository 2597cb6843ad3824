"""Configuration of the denoising network."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.strict_config import StrictConfig

NAMED_SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""What ``model.size`` stands for (the table of Peebles & Xie 2023)."""


class VideoTransformerConfig(StrictConfig):
    """The latent video transformer, `dydiff_dist.models.VideoTransformer`."""

    size: Literal["S", "B", "L", "XL"] | None = Field(default=None, exclude=True)
    """Stands for width, depth and num_heads; what is stored and printed is those numbers."""
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
    much stands still (robot video in front of a fixed background), and wherever noise must pass through the network
    (prediction v or eps) whose patches hold more numbers than its width (docs/study.md, turbulence)."""
    qk_norm: Literal["layer", "rms", "none"] = "layer"
    """Normalisation of queries and keys per head: layer norm, root mean square, or none."""
    action_channels: bool = True
    """Whether actions, where the data has them, are input channels of their frame, the same on all its pixels."""
    action_embedding: bool = True
    """Whether actions, where the data has them, modulate all layers on their frame. With both false the network ignores
    them."""

    def input_actions(self, num_action_channels: int) -> int:
        """Action channels among the network's input channels, for data with ``num_action_channels``."""
        return num_action_channels if self.action_channels else 0

    def embedded_actions(self, num_action_channels: int) -> int:
        """Action channels that modulate the layers, for data with ``num_action_channels``."""
        return num_action_channels if self.action_embedding else 0

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the MLP."""
        return int(self.width * self.mlp_ratio)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        size = tree.get("size")
        if size is None:
            missing = [key for key in NAMED_SIZES["S"] if key not in tree]
            if missing:
                raise ValueError(f"{', '.join(missing)} not given; give size ({', '.join(NAMED_SIZES)}) or all numbers")
            return tree
        if size not in NAMED_SIZES:
            raise ValueError(f"size is {size!r}; it must be one of {', '.join(NAMED_SIZES)}")
        for key, number in NAMED_SIZES[size].items():
            if tree.get(key, number) != number:
                raise ValueError(f"size {size!r} means {key} {number}, {key} says {tree[key]!r}; remove either")
        return {**tree, **NAMED_SIZES[size]}

    @model_validator(mode="after")
    def _check_heads(self) -> "VideoTransformerConfig":
        if self.width % self.num_heads or self.head_width % 4:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must be a multiple of 4; change either"
            )
        if self.causal_time and self.attention != "factorised":
            raise ValueError("causal_time needs attention 'factorised', it is 'full'; change either")
        return self


class ExecutionConfig(StrictConfig):
    """How a network runs, without changing what it computes or stores: a resumed run may change all of it."""

    attention_backend: Literal[
        "auto", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "xformers", "reference"
    ] = "auto"
    """auto: xformers on a GPU where it is installed, torch's SDPA elsewhere; what was chosen is logged. sdpa leaves the
    kernel to torch, sdpa_… names it."""
    checkpoint_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the blocks whose activations are dropped in the forward pass and recomputed in the backward pass: less
    memory, up to a third more operations, the same gradients."""
    compile_blocks: bool = False
    """Whether torch.compile compiles the blocks: a start of minutes, faster steps."""
    sequence_parallel_size: PositiveInt = 1
    """Ranks that share the frames of each sample, for long video; divides ranks, frames and attention heads. The other
    ranks / this size share the global batch."""
