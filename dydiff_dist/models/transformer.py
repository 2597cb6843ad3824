"""The video transformer: patches of (1, p, p), adaLN-Zero (Peebles & Xie 2023), rotary positions.

Letters: B batch, S frames, C channels, H W height and width, N tokens per frame, T = S N tokens, D width, A action
channels.
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dydiff_dist.models.attention import resolve_attention, rotary_angles, share_tokens
from dydiff_dist.models.blocks import NUM_TIMESTEP_FEATURES, Block, TokenContext, timestep_embedding, timestep_features
from dydiff_dist.models.conditioning import assemble_input, check_actions, num_input_channels
from dydiff_dist.models.denoiser import DenoiserConfig, ExecutionConfig, InputSizes
from dydiff_dist.models.patches import Patches
from dydiff_dist.models.sequence_parallel import SequenceGroup, check_sequence_parallel
from dydiff_kernels import Backend, modulated_norm

NAMED_SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 18},
}
"""What ``model.size`` stands for: the table of Peebles & Xie 2023, but for XL's heads, 18 of 64 channels where theirs
are 16 of 72, which attention kernels of GPUs pad to 128."""


class VideoTransformerConfig(DenoiserConfig):
    """Configuration of `VideoTransformer`.

    Examples:
        >>> sizes = InputSizes(num_frames=6, num_history_frames=2, num_channels=1, height=16, width=16)
        >>> network = VideoTransformerConfig(width=32, depth=1, num_heads=2, patch_size=4).build(sizes)
        >>> z, history = torch.zeros(1, 6, 1, 16, 16), torch.zeros(1, 2, 1, 16, 16)
        >>> network(z, torch.tensor([10]), history=history).shape
        torch.Size([1, 6, 1, 16, 16])
    """

    retired = {"causal_time": False}

    network: Literal["video_transformer"] = "video_transformer"
    size: Literal["S", "B", "L", "XL"] | None = Field(default=None, exclude=True)
    """Stands for width, depth and num_heads; what is stored and printed is those numbers."""
    width: int = Field(gt=0, le=2**16)
    """Channels per token, D."""
    depth: int = Field(gt=0, le=1000)
    """Number of blocks."""
    num_heads: int = Field(gt=0, le=2**16)
    """Attention heads; width / num_heads must be a multiple of 4 (two rotary axes of cosine-sine pairs)."""
    patch_size: int = Field(gt=0, le=2**16)
    """Edge of a token's square patch, in pixels of the frames that the network sees; must divide height and width."""
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    """Hidden width of the MLP over width."""
    attention: Literal["factorised", "full"] = "factorised"
    """factorised: over the tokens of a frame, then over the frames of a token; full: over all tokens of all frames."""
    patch_skip: bool = False
    """Whether each token also scales its own patches of z and of the last history frame into the output. It helps where
    much stands still (robot video in front of a fixed background), and wherever noise must pass through the network
    (prediction v or eps) whose patches hold more numbers than its width (docs/study.md, turbulence)."""
    skip_differences: int = Field(default=0, ge=0)
    """With patch_skip: so many backward differences of the last history frames go into the output too, each scaled by
    the token: 1 is the last change, 2 also its change. A token may then continue a motion pixel by pixel."""
    patch_overlap: int = Field(default=0, ge=0)
    """Pixels by which the patches reach over each of their edges, in the input and in the output, where neighbours pass
    over into each other instead of meeting at an edge that can be seen; at most half of ``patch_size``."""
    periodic: bool = False
    """Whether patches that overlap reach around the frames' borders, for fields that do."""
    qk_norm: Literal["layer", "rms", "none"] = "layer"
    """Normalisation of queries and keys per head: layer norm, root mean square, or none."""
    action_channels: bool = True
    """Whether actions, where the data has them, are input channels of their frame, the same on all its pixels."""
    action_embedding: bool = True
    """Whether actions, where the data has them, modulate all layers on their frame. With both false the network ignores
    them."""

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def patches(self) -> Patches:
        """How frames become tokens."""
        return Patches(self.patch_size, self.patch_overlap, self.periodic)

    @property
    def num_skipped(self) -> int:
        """Frames that the patch skip scales: z, the last history frame, its differences."""
        return 2 + self.skip_differences if self.patch_skip else 0

    @property
    def num_blocks(self) -> int:
        """Blocks, one gathered after the other."""
        return self.depth

    def build(
        self, sizes: InputSizes, execution: ExecutionConfig | None = None, kernels: Backend = "auto"
    ) -> "VideoTransformer":
        """The network; of ``sizes`` only the channels matter, it runs on other lengths, heights and widths too."""
        return VideoTransformer(self, sizes, execution, kernels)

    def describe(self) -> str:
        """Width, depth, heads, patches."""
        overlap = f" that overlap by {self.patch_overlap}" if self.patch_overlap else ""
        return f"width {self.width}, depth {self.depth}, {self.num_heads} heads, patches of {self.patch_size}{overlap}"

    def check(self, sizes: InputSizes, execution: ExecutionConfig, device_type: str, dtype: torch.dtype) -> None:
        """As `DenoiserConfig.check`: the attention backend, ranks that share frames, patches, the skip's history."""
        if self.skip_differences >= sizes.num_history_frames:
            raise ValueError(
                f"model.skip_differences is {self.skip_differences}; {sizes.num_history_frames} history frames have "
                f"{sizes.num_history_frames - 1} differences, give at most so many"
            )
        resolve_attention(execution.attention_backend, device_type, dtype, self.head_width)
        check_sequence_parallel(execution.sequence_parallel_size, num_frames=sizes.num_frames, num_heads=self.num_heads)
        self.check_patches(sizes.height, sizes.width)

    def check_patches(self, height: int, width: int) -> None:
        """The patch size must divide the frames as the network sees them.

        Raises:
            ValueError: it doesn't.
        """
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"model.patch_size {self.patch_size} does not divide frames of {height}x{width}; change it or "
                "data.crop_size"
            )

    @property
    def patch_edge(self) -> int:
        """``patch_size``."""
        return self.patch_size

    def num_tokens(self, sizes: InputSizes) -> int:
        """T, patches of all frames."""
        return sizes.num_frames * (sizes.height // self.patch_size) * (sizes.width // self.patch_size)

    def flops_by_part(self, sizes: InputSizes) -> dict[str, int]:
        """As `DenoiserConfig.flops_by_part`, by formula: the same numbers, and what they depend on.

        Returns:
            Operations of ``embedding``, ``modulation``, ``projections`` (of attention), ``attention`` (scores and
            sums), ``mlp`` and ``head``; all but the first and the last are those of all blocks together.
        """
        D, S, C, A = self.width, sizes.num_frames, sizes.num_channels, sizes.num_action_channels
        T, pixels = self.num_tokens(sizes), self.patches.window**2
        num_inputs = num_input_channels(C, A if self.action_channels else 0) * pixels
        num_embedded = A if self.action_embedding else 0
        conditions = S if num_embedded else 1  # rows of the modulation's input
        lengths = (T // S, S) if self.attention == "factorised" else (T,)
        embedding = 2 * T * num_inputs * D + 2 * (NUM_TIMESTEP_FEATURES + D) * D + 2 * S * num_embedded * D
        num_factors = self.num_skipped * C
        head = 2 * conditions * D * 2 * D + 2 * T * D * C * pixels + 2 * T * D * num_factors
        if self.patch_overlap:
            rows, columns = sizes.height // self.patch_size, sizes.width // self.patch_size
            head += 2 * S * num_factors * sizes.height * columns * (rows + sizes.width)
        return {
            "embedding": embedding,
            "modulation": self.depth * (len(lengths) + 1) * 2 * conditions * D * 3 * D,
            "projections": self.depth * len(lengths) * 2 * T * D * 4 * D,
            "attention": self.depth * sum(4 * T * length * D for length in lengths),
            "mlp": self.depth * 4 * T * D * self.mlp_width,
            "head": head,
        }

    def recomputed_flops(self, sizes: InputSizes, checkpoint_fraction: float) -> int:
        """Operations of the recomputed blocks' forward pass."""
        parts = self.flops_by_part(sizes)
        blocks = sum(parts.values()) - parts["embedding"] - parts["head"]
        return blocks * round(checkpoint_fraction * self.depth) // self.depth

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
    def _check_overlap(self) -> "VideoTransformerConfig":
        if 2 * self.patch_overlap > self.patch_size:
            raise ValueError(
                f"patch_overlap is {self.patch_overlap}; it may be at most half of patch_size {self.patch_size}"
            )
        if self.periodic and not self.patch_overlap:
            raise ValueError(
                "periodic is on and patch_overlap 0, so nothing reaches over a border; give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _check_skip(self) -> "VideoTransformerConfig":
        if self.skip_differences and not self.patch_skip:
            raise ValueError(f"skip_differences is {self.skip_differences}, and patch_skip is off; turn it on")
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> "VideoTransformerConfig":
        if self.width % self.num_heads or self.head_width % 4:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must be a multiple of 4; change either"
            )
        return self


class VideoTransformer(nn.Module):
    """Denoising network: noisy frames, history and actions in; the process's prediction out.

    The last layer starts at zero, so an untrained network predicts exactly zero.

    Args:
        config: what it computes.
        sizes: its channels.
        execution: how it runs; None is the default.
        kernels: backend of its fused operations.
    """

    def __init__(
        self,
        config: VideoTransformerConfig,
        sizes: InputSizes,
        execution: ExecutionConfig | None = None,
        kernels: Backend = "auto",
    ):
        super().__init__()
        num_channels, num_action_channels = sizes.num_channels, sizes.num_action_channels
        self.config, self.num_action_channels = config, num_action_channels
        self.execution, self.sequence = execution or ExecutionConfig(), SequenceGroup()
        self.kernels: Backend = kernels
        width, pixels = config.width, config.patches.window**2
        num_inputs = num_input_channels(num_channels, num_action_channels if config.action_channels else 0)
        embeds_actions = num_action_channels > 0 and config.action_embedding
        self.embed_patch = nn.Linear(num_inputs * pixels, width)
        self.embed_timestep = timestep_embedding(width)
        self.embed_action = nn.Linear(num_action_channels, width) if embeds_actions else None
        factorised = config.attention == "factorised"
        self.blocks = nn.ModuleList(
            Block(width, config.mlp_width, config.num_heads, qk_norm=config.qk_norm, factorised=factorised)
            for _ in range(config.depth)
        )
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, num_channels * pixels)
        self.skip_scale = nn.Linear(width, config.num_skipped * num_channels) if config.patch_skip else None
        for layer in filter(None, (self.head_modulation, self.head, self.skip_scale)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.execution.compile_blocks:
            for block in self.blocks:
                block.compile()

    def share_frames(self, group: dist.ProcessGroup) -> None:
        """As `SharesFrames`."""
        self.sequence = SequenceGroup(group)
        share_tokens(self, self.sequence)

    def forward(
        self, z_BSCHW: Tensor, timesteps_B: Tensor, *, history: Tensor, actions: Tensor | None = None
    ) -> Tensor:
        """As `Denoiser`: (B, S, C, H, W) -> (B, S, C, H, W).

        Raises:
            ValueError: sizes that the patch size does not divide, frames that the ranks sharing them do not, or actions
                missing, unexpected or of another width.
        """
        self.config.check_patches(*z_BSCHW.shape[-2:])
        check_sequence_parallel(self.sequence.size, num_frames=z_BSCHW.shape[1], num_heads=self.config.num_heads)
        check_actions(actions, self.num_action_channels)
        patches, (H, W) = self.config.patches, z_BSCHW.shape[-2:]
        x = assemble_input(z_BSCHW, history, actions if self.config.action_channels else None)
        x = self.sequence.local(x, dim=1)
        x_BSND = self.embed_patch(patches.split(x))
        condition = self._condition(timesteps_B, actions, x_BSND.dtype)
        context = self._context(z_BSCHW.shape[1], H // patches.size, W // patches.size, x_BSND)
        num_recomputed = round(self.execution.checkpoint_fraction * len(self.blocks))
        for index, block in enumerate(self.blocks):
            if index < num_recomputed and torch.is_grad_enabled():
                # nothing in a block draws random numbers, so there is no state of theirs to keep
                x_BSND = checkpoint(block, x_BSND, condition, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BSND = block(x_BSND, condition, context)
        shift, scale = self.head_modulation(condition).chunk(2, dim=-1)
        x_BSND = modulated_norm(x_BSND, shift, scale, backend=self.kernels)
        out = patches.join(self.head(x_BSND), H, W)
        if self.skip_scale is not None:
            out = out + self._skip(self.skip_scale(x_BSND), self.sequence.local(z_BSCHW, dim=1), history)
        return self.sequence.gather(out)

    def _skip(self, scale: Tensor, z_BSCHW: Tensor, history: Tensor) -> Tensor:
        """Each token's patch of z, the last history frame and its differences, by factors it chooses per channel."""
        scale = rearrange(scale, "b s n (k c) -> k b s c n", k=self.config.num_skipped)
        z_factor, *factors = self.config.patches.spread(scale, *z_BSCHW.shape[-2:])
        out = z_factor * z_BSCHW
        for factor, order in zip(factors, range(self.config.skip_differences + 1), strict=True):
            out = out + factor * torch.diff(history, order, dim=1)[:, -1:]
        return out

    def _condition(self, timesteps_B: Tensor, actions: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Modulation input: timestep (and the frame's action), (B, S or 1, 1, D)."""
        condition = self.embed_timestep(timestep_features(timesteps_B).to(dtype))[:, None]
        if self.embed_action is not None and actions is not None:
            condition = condition + self.embed_action(self.sequence.local(actions, dim=1).to(dtype))
        return nn.functional.silu(condition)[:, :, None]

    def _context(self, num_frames: int, rows: int, columns: int, x_BSND: Tensor) -> TokenContext:
        """Attention function and rotary angles for this rank's tokens."""
        head_width, device = self.config.head_width, x_BSND.device
        attend = resolve_attention(self.execution.attention_backend, device.type, x_BSND.dtype, head_width)
        fuses_short = self.execution.attention_backend == "auto"
        frames, *pixels = (torch.arange(n, device=device) for n in (num_frames, rows, columns))
        frames = self.sequence.local(frames, dim=0)
        if self.config.attention == "full":
            angles = {"full": rotary_angles(torch.cartesian_prod(frames, *pixels), head_width)}
            return TokenContext(attend, angles, self.kernels, fuses_short)
        angles = {
            "space": rotary_angles(torch.cartesian_prod(*pixels), head_width),
            "time": rotary_angles(frames[:, None], head_width),
        }
        return TokenContext(attend, angles, self.kernels, fuses_short)
