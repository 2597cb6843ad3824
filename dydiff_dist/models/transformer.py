"""The latent video diffusion transformer: patches of (1, p, p), adaLN-Zero (Peebles & Xie 2023), rotary positions.

Letters: B batch, S frames, C channels, H W height and width, N tokens per frame, D width, A action channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dydiff_dist.models.attention import Attention, AttentionFunction, resolve_attention, rotary_angles
from dydiff_dist.models.conditioning import assemble_input, num_input_channels
from dydiff_dist.models.config import ExecutionConfig, VideoTransformerConfig
from dydiff_dist.models.flops import NUM_TIMESTEP_FEATURES, num_checkpointed_blocks
from dydiff_dist.models.sequence_parallel import SequenceShards, check_sequence_parallel
from dydiff_kernels import Backend, gated_residual, modulated_norm

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TokenContext:
    """What all blocks share: how tokens attend to each other, and what runs the modulation."""

    attend: AttentionFunction
    angles: dict[str, Angles]
    """Rotary angles of this rank's tokens, by the axis they attend over: space, time or full."""
    kernels: Backend
    """Backend of `modulated_norm` and `gated_residual`."""


def timestep_features(timesteps_B: Tensor) -> Tensor:
    """Sinusoidal features of diffusion timesteps (Vaswani et al. 2017), (B, 256) float32."""
    half = NUM_TIMESTEP_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
    angles = timesteps_B.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class ModulatedBranch(nn.Module):
    """x + gate · layer(norm(x) · (1 + scale) + shift), gate zero at the start: one residual branch of adaLN-Zero."""

    def __init__(self, width: int, layer: nn.Module):
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.layer = layer
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x_BSND: Tensor, condition: Tensor, apply: Callable[[nn.Module, Tensor], Tensor], kernels: Backend
    ) -> Tensor:
        """``condition`` (B, S or 1, 1, D) broadcasts over x; ``apply`` folds the token axes as the layer needs them."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        branch = apply(self.layer, modulated_norm(x_BSND, shift, scale, backend=kernels))
        return gated_residual(x_BSND, gate, branch, backend=kernels)


class Block(nn.Module):
    """Attention over space and over time (or over both at once), then an MLP."""

    def __init__(self, config: VideoTransformerConfig):
        super().__init__()
        width, hidden = config.width, config.mlp_width

        def attention(causal: bool = False) -> ModulatedBranch:
            return ModulatedBranch(width, Attention(width, config.num_heads, qk_norm=config.qk_norm, causal=causal))

        self.factorised = config.attention == "factorised"
        if self.factorised:
            self.space, self.time = attention(), attention(config.causal_time)
        else:
            self.full = attention()
        mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp = ModulatedBranch(width, mlp)

    def share_frames(self, shards: SequenceShards) -> None:
        """From now on the frames are those of ``shards``; attention within a frame is not concerned."""
        (self.time if self.factorised else self.full).layer.shards = shards

    def forward(self, x_BSND: Tensor, condition: Tensor, context: TokenContext) -> Tensor:
        """(B, S, N, D) -> (B, S, N, D); ``condition`` is (B, S or 1, 1, D)."""
        B, S = x_BSND.shape[:2]

        def over_space(layer: nn.Module, x: Tensor) -> Tensor:
            y = layer(rearrange(x, "b s n d -> (b s) n d"), context.angles["space"], context.attend)
            return rearrange(y, "(b s) n d -> b s n d", b=B)

        def over_time(layer: nn.Module, x: Tensor) -> Tensor:
            y = layer(rearrange(x, "b s n d -> (b n) s d"), context.angles["time"], context.attend)
            return rearrange(y, "(b n) s d -> b s n d", b=B)

        def over_all(layer: nn.Module, x: Tensor) -> Tensor:
            y = layer(rearrange(x, "b s n d -> b (s n) d"), context.angles["full"], context.attend)
            return rearrange(y, "b (s n) d -> b s n d", s=S)

        if self.factorised:
            x_BSND = self.space(x_BSND, condition, over_space, context.kernels)
            x_BSND = self.time(x_BSND, condition, over_time, context.kernels)
        else:
            x_BSND = self.full(x_BSND, condition, over_all, context.kernels)
        return self.mlp(x_BSND, condition, lambda layer, x: layer(x), context.kernels)


class VideoTransformer(nn.Module):
    """Denoising network: noisy latents of all frames, history and actions in; the process's prediction out.

    The last layer starts at zero, so an untrained network predicts exactly zero. ``kernels`` is the backend of its
    modulation.
    """

    def __init__(
        self,
        config: VideoTransformerConfig,
        *,
        num_channels: int,
        num_action_channels: int = 0,
        execution: ExecutionConfig | None = None,
        kernels: Backend = "auto",
    ):
        super().__init__()
        self.config, self.num_channels, self.num_action_channels = config, num_channels, num_action_channels
        self.execution, self.shards = execution or ExecutionConfig(), SequenceShards()
        # adaLN has no Triton kernel and takes what fits; only the reference can be asked for by name
        self.kernels: Backend = "reference" if kernels == "reference" else "auto"
        width, pixels = config.width, config.patch_size**2
        num_inputs = num_input_channels(num_channels, config.input_actions(num_action_channels))
        num_embedded = config.embedded_actions(num_action_channels)
        self.embed_patch = nn.Linear(num_inputs * pixels, width)
        self.embed_timestep = nn.Sequential(nn.Linear(NUM_TIMESTEP_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_action = nn.Linear(num_embedded, width) if num_embedded else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, num_channels * pixels)
        self.skip_scale = nn.Linear(width, 2 * num_channels) if config.patch_skip else None
        for layer in filter(None, (self.head_modulation, self.head, self.skip_scale)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.execution.compile_blocks:
            for block in self.blocks:
                block.compile()

    def share_frames(self, group: dist.ProcessGroup) -> None:
        """From now on this rank computes its share of the frames, with the other ranks of ``group``.

        All of them must be given the same samples; each is returned the whole prediction. Parameter gradients are to be
        averaged over the group (`dydiff_dist.models.sequence_parallel`).
        """
        self.shards = SequenceShards(group)
        for block in self.blocks:
            block.share_frames(self.shards)

    def forward(
        self, z_BSCHW: Tensor, timesteps_B: Tensor, *, history: Tensor, actions: Tensor | None = None
    ) -> Tensor:
        """One prediction for every frame.

        Args:
            z_BSCHW: noisy latents, history frames included.
            timesteps_B: int64 diffusion timesteps, 0..N-1.
            history: clean latents of the first frames, (B, S_h, C, H, W).
            actions: (B, S, A), required exactly where the network was built with action channels.

        Returns:
            (B, S, C, H, W), what the process predicts (eps, v or x0).

        Raises:
            ValueError: sizes that the patch size does not divide, frames that the ranks sharing them do not, or actions
                missing, unexpected or of another width.
        """
        self._check(z_BSCHW, actions)
        p, (H, W) = self.config.patch_size, z_BSCHW.shape[-2:]
        x = assemble_input(z_BSCHW, history, actions if self.config.action_channels else None)
        x = self.shards.local(x, dim=1)
        x_BSND = self.embed_patch(rearrange(x, "b s c (h p) (w q) -> b s (h w) (c p q)", p=p, q=p))
        condition = self._condition(timesteps_B, actions, x_BSND.dtype)
        context = self._context(z_BSCHW.shape[1], H // p, W // p, x_BSND)
        num_recomputed = num_checkpointed_blocks(len(self.blocks), self.execution.checkpoint_fraction)
        for index, block in enumerate(self.blocks):
            if index < num_recomputed and torch.is_grad_enabled():
                # nothing in a block draws random numbers, so there is no state of theirs to keep
                x_BSND = checkpoint(block, x_BSND, condition, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BSND = block(x_BSND, condition, context)
        shift, scale = self.head_modulation(condition).chunk(2, dim=-1)
        x_BSND = modulated_norm(x_BSND, shift, scale, backend=self.kernels)
        out = rearrange(self.head(x_BSND), "b s (h w) (c p q) -> b s c (h p) (w q)", h=H // p, p=p, q=p)
        if self.skip_scale is not None:
            out = out + self._skip(x_BSND, self.shards.local(z_BSCHW, dim=1), history)
        return self.shards.gather(out)

    def _skip(self, x_BSND: Tensor, z_BSCHW: Tensor, history: Tensor) -> Tensor:
        """Each token's patch of z and of the last history frame, times factors that the token chooses per channel."""
        B, S, C, H, W = z_BSCHW.shape
        p = self.config.patch_size
        scale = rearrange(self.skip_scale(x_BSND), "b s (h w) (two c) -> two b s c h 1 w 1", h=H // p, two=2)
        patches = (B, S, C, H // p, p, W // p, p)
        last = history[:, -1:].expand(z_BSCHW.shape)
        return (scale[0] * z_BSCHW.reshape(patches) + scale[1] * last.reshape(patches)).reshape(z_BSCHW.shape)

    def _condition(self, timesteps_B: Tensor, actions: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Modulation input: timestep (and the frame's action), (B, S or 1, 1, D)."""
        condition = self.embed_timestep(timestep_features(timesteps_B).to(dtype))[:, None]
        if self.embed_action is not None:
            condition = condition + self.embed_action(self.shards.local(actions, dim=1).to(dtype))
        return nn.functional.silu(condition)[:, :, None]

    def _context(self, num_frames: int, rows: int, columns: int, x_BSND: Tensor) -> TokenContext:
        """Attention function and rotary angles for this rank's tokens."""
        head_width, device = self.config.head_width, x_BSND.device
        attend = resolve_attention(self.execution.attention_backend, device.type, x_BSND.dtype, head_width)
        frames, *pixels = (torch.arange(n, device=device) for n in (num_frames, rows, columns))
        frames = self.shards.local(frames, dim=0)
        if self.config.attention == "full":
            angles = {"full": rotary_angles(torch.cartesian_prod(frames, *pixels), head_width)}
            return TokenContext(attend, angles, self.kernels)
        angles = {
            "space": rotary_angles(torch.cartesian_prod(*pixels), head_width),
            "time": rotary_angles(frames[:, None], head_width),
        }
        return TokenContext(attend, angles, self.kernels)

    def _check(self, z_BSCHW: Tensor, actions: Tensor | None) -> None:
        p, (H, W) = self.config.patch_size, z_BSCHW.shape[-2:]
        if H % p or W % p:
            raise ValueError(f"frames of {H}x{W} are not divisible into patches of {p}; change model.patch_size")
        if self.shards.group is not None:
            check_sequence_parallel(self.shards.size, num_frames=z_BSCHW.shape[1], num_heads=self.config.num_heads)
        given = 0 if actions is None else actions.shape[-1]
        if given != self.num_action_channels:
            raise ValueError(f"the network takes {self.num_action_channels} action channels, the batch has {given}")
