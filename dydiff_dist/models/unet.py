"""A U-Net over frames: convolutions within a frame, attention between frames at the end of each level.

The kind of network of the paper and of most work on pixels (Ho et al. 2020; factorised over time as in Ho et al. 2022,
"Video Diffusion Models"), with the same conditioning as the transformer. Each residual block's second normalisation is
scaled and shifted by the timestep (Dhariwal & Nichol 2021). Normalisation is by frame, so that frames see each other in
the attention over time alone, and ranks can share them.

Letters: B batch, S frames, n = B·S frames, C channels, H W height and width, D channels of a level,
E of the embedded timestep, 4 times the width.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from einops import rearrange
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dydiff_dist.models.attention import Attention, resolve_attention, rotary_angles, share_tokens
from dydiff_dist.models.blocks import timestep_embedding, timestep_features
from dydiff_dist.models.conditioning import assemble_input, check_actions, num_input_channels
from dydiff_dist.models.denoiser import DenoiserConfig, ExecutionConfig, InputSizes
from dydiff_dist.models.sequence_parallel import SequenceGroup, check_sequence_parallel
from dydiff_kernels import Backend


class UNetConfig(DenoiserConfig):
    """Configuration of `UNet`."""

    network: Literal["unet"] = "unet"
    width: int = Field(gt=0, le=2**16)
    """Channels of the finest level."""
    channel_multipliers: tuple[Annotated[int, Field(gt=0, le=64)], ...] = Field(default=(1, 2, 4), max_length=16)
    """Channels of each level over width, finest first; height and width halve from one level to the next."""
    num_blocks_per_level: int = Field(default=2, gt=0, le=100)
    """Residual blocks of each level, on the way down and again on the way up."""
    num_heads: PositiveInt = 4
    """Heads of the attention over time; channels of each level / num_heads must be even."""
    norm_groups: PositiveInt = 8
    """Groups of the group normalisation; must divide the channels of each level."""
    periodic: bool = False
    """Whether convolutions wrap around the edges, for periodic fields."""

    @property
    def channels(self) -> tuple[int, ...]:
        """D of each level, finest first."""
        return tuple(self.width * multiplier for multiplier in self.channel_multipliers)

    @property
    def num_blocks(self) -> int:
        """Residual blocks, those between the two ways included."""
        return 2 * len(self.channels) * self.num_blocks_per_level + 2

    def build(self, sizes: InputSizes, execution: ExecutionConfig | None = None, kernels: Backend = "auto") -> "UNet":
        """The network; of ``sizes`` only the channels matter."""
        return UNet(self, sizes, execution, kernels)

    def describe(self) -> str:
        """Channels by level, blocks, heads."""
        levels = "-".join(map(str, self.channels))
        return f"U-Net of {levels} channels, {self.num_blocks_per_level} blocks a level, {self.num_heads} heads"

    def check(self, sizes: InputSizes, execution: ExecutionConfig, device_type: str, dtype: torch.dtype) -> None:
        """As `DenoiserConfig.check`: the attention backend, ranks that share frames, and halvings."""
        for channels in self.channels:
            resolve_attention(execution.attention_backend, device_type, dtype, channels // self.num_heads)
        check_sequence_parallel(execution.sequence_parallel_size, num_frames=sizes.num_frames, num_heads=self.num_heads)
        self.check_size(sizes.height, sizes.width)

    def check_size(self, height: int, width: int) -> None:
        """Frames must come out even at every level.

        Raises:
            ValueError: they don't.
        """
        multiple = 2 ** (len(self.channels) - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"frames of {height}x{width} are no multiple of {multiple}, to which model.channel_multipliers of "
                f"{len(self.channels)} levels halve them; change it or data.crop_size"
            )

    @model_validator(mode="after")
    def _check_channels(self) -> "UNetConfig":
        if not self.channels:
            raise ValueError("channel_multipliers must have at least one level, e.g. [1, 2, 4]")
        if odd := [d for d in self.channels if d % self.norm_groups or d % (2 * self.num_heads)]:
            raise ValueError(
                f"levels have {odd[0]} channels; width times each of channel_multipliers must be a multiple of "
                f"norm_groups {self.norm_groups} and of twice num_heads {self.num_heads}"
            )
        return self


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) (1 + scale) + shift)), the last convolution zero at the start."""

    recomputes = False
    """Whether its activations are dropped in the forward pass and recomputed in the backward pass."""

    def __init__(self, num_in: int, num_out: int, config: UNetConfig):
        super().__init__()
        self.norm_in, self.conv_in = nn.GroupNorm(config.norm_groups, num_in), _conv(num_in, num_out, config)
        self.norm_out, self.conv_out = nn.GroupNorm(config.norm_groups, num_out), _zero(_conv(num_out, num_out, config))
        self.modulation = nn.Linear(4 * config.width, 2 * num_out)
        self.skip = nn.Conv2d(num_in, num_out, 1) if num_in != num_out else nn.Identity()

    def forward(self, x_nDHW: Tensor, condition_nE: Tensor) -> Tensor:
        """(n, D, H, W) -> (n, D', H, W), each frame with its own row of the condition."""
        scale, shift = self.modulation(condition_nE)[..., None, None].chunk(2, dim=1)
        hidden = self.conv_in(nn.functional.silu(self.norm_in(x_nDHW)))
        hidden = torch.addcmul(shift, self.norm_out(hidden), 1 + scale)
        return self.skip(x_nDHW) + self.conv_out(nn.functional.silu(hidden))


class Level(nn.Module):
    """Residual blocks, then attention over the frames of each pixel, which adds zero at the start."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, config: UNetConfig):
        super().__init__()
        inputs = [num_in, *[num_out] * (num_blocks - 1)]
        self.blocks = nn.ModuleList(ResidualBlock(channels, num_out, config) for channels in inputs)
        self.norm, self.time = nn.GroupNorm(config.norm_groups, num_out), Attention(num_out, config.num_heads)
        self.head_width = num_out // config.num_heads
        _zero(self.time.project)

    def forward(
        self, x_nDHW: Tensor, condition_nE: Tensor, frames_S: Tensor, attention_backend: str, kernels: Backend
    ) -> Tensor:
        """(n, D, H, W) -> (n, D', H, W); ``frames_S`` numbers this rank's frames."""
        for block in self.blocks:
            if block.recomputes and torch.is_grad_enabled():
                x_nDHW = checkpoint(block, x_nDHW, condition_nE, use_reentrant=False, preserve_rng_state=False)
            else:
                x_nDHW = block(x_nDHW, condition_nE)
        H, W = x_nDHW.shape[-2:]
        attend = resolve_attention(attention_backend, x_nDHW.device.type, x_nDHW.dtype, self.head_width)
        tokens = rearrange(self.norm(x_nDHW), "(b s) d h w -> (b h w) s d", s=len(frames_S))
        angles, fuses = rotary_angles(frames_S[:, None], self.head_width), attention_backend == "auto"
        tokens = self.time(tokens, angles, attend, kernels, fuses_short=fuses)
        return x_nDHW + rearrange(tokens, "(b h w) s d -> (b s) d h w", h=H, w=W)


class UNet(nn.Module):
    """Denoising network on frames, a `Denoiser`; the last layer starts at zero, so its first prediction is zero.

    Args:
        config: what it computes.
        sizes: its channels; actions are input channels of their frame.
        execution: how it runs; None is the default. Residual blocks are what is compiled and recomputed.
        kernels: backend of its fused operations, `attention_inputs` and `short_attention`.
    """

    def __init__(
        self,
        config: UNetConfig,
        sizes: InputSizes,
        execution: ExecutionConfig | None = None,
        kernels: Backend = "auto",
    ):
        super().__init__()
        self.kernels: Backend = kernels
        self.config, self.num_action_channels = config, sizes.num_action_channels
        self.execution, self.sequence = execution or ExecutionConfig(), SequenceGroup()
        widths, depth = config.channels, config.num_blocks_per_level
        self.embed_frame = _conv(num_input_channels(sizes.num_channels, sizes.num_action_channels), widths[0], config)
        self.embed_timestep = timestep_embedding(4 * config.width)
        steps = list(pairwise((widths[0], *widths)))  # (channels in, channels out) of each level, finest first
        self.down = nn.ModuleList(Level(num_in, num_out, depth, config) for num_in, num_out in steps)
        self.downsample = nn.ModuleList(_conv(D, D, config, stride=2) for D in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], 2, config)
        self.up = nn.ModuleList(Level(2 * num_out, num_in, depth, config) for num_in, num_out in reversed(steps))
        self.upsample = nn.ModuleList(_conv(D, D, config) for D in reversed(widths[:-1]))
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0])
        self.conv_out = _zero(_conv(widths[0], sizes.num_channels, config))
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        for number, block in enumerate(blocks):
            block.recomputes = number < round(self.execution.checkpoint_fraction * len(blocks))
            if self.execution.compile_blocks:
                block.compile()

    def share_frames(self, group: dist.ProcessGroup) -> None:
        """As `SharesFrames`."""
        self.sequence = SequenceGroup(group)
        share_tokens(self, self.sequence)

    def forward(self, z: Tensor, timesteps: Tensor, *, history: Tensor, actions: Tensor | None = None) -> Tensor:
        """As `Denoiser`: (B, S, C, H, W) -> (B, S, C, H, W).

        Raises:
            ValueError: a size that the levels can't halve, frames that the ranks sharing them do not divide, or actions
                missing, unexpected or of another width.
        """
        self.config.check_size(*z.shape[-2:])
        check_sequence_parallel(self.sequence.size, num_frames=z.shape[1], num_heads=self.config.num_heads)
        check_actions(actions, self.num_action_channels)
        frames_S = self.sequence.local(torch.arange(z.shape[1], device=z.device), dim=0)
        x = self.embed_frame(self.sequence.local(assemble_input(z, history, actions), dim=1).flatten(0, 1))
        condition = nn.functional.silu(self.embed_timestep(timestep_features(timesteps).to(x.dtype)))
        shared = (
            condition.repeat_interleave(len(frames_S), dim=0),
            frames_S,
            self.execution.attention_backend,
            self.kernels,
        )
        kept = []
        for number, level in enumerate(self.down):
            x = level(self.downsample[number - 1](x) if number else x, *shared)
            kept.append(x)
        x = self.middle(x, *shared)
        for number, level in enumerate(self.up):
            if number:
                x = self.upsample[number - 1](nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
            x = level(torch.cat((x, kept.pop()), dim=1), *shared)
        x = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return self.sequence.gather(x.unflatten(0, (len(z), len(frames_S))))


def _conv(num_in: int, num_out: int, config: UNetConfig, stride: int = 1) -> nn.Conv2d:
    padding: Literal["circular", "zeros"] = "circular" if config.periodic else "zeros"
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1, padding_mode=padding)


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer, with weights and biases that are zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
