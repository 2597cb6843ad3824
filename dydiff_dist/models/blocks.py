"""Blocks of transformers on video: patches' tokens modulated by the timestep, adaLN-Zero (Peebles & Xie 2023).

Letters: B batch, S frames, N tokens per frame, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from dydiff_dist.models.attention import Attention, AttentionFunction
from dydiff_kernels import Backend, HeadNorm, gated_residual, modulated_norm

NUM_TIMESTEP_FEATURES = 256
"""Sinusoidal features of the diffusion timestep that a network embeds."""

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, from `rotary_angles`."""


@dataclass(frozen=True)
class TokenContext:
    """What all blocks share: how tokens attend to each other, and what runs the modulation."""

    attend: AttentionFunction
    angles: dict[str, Angles]
    """Rotary angles of this rank's tokens, by the axis they attend over: space, time or full."""
    kernels: Backend
    """Backend of the fused operations."""
    fuses_short: bool = False
    """Whether one kernel may do all of an attention over few tokens."""


def timestep_features(timesteps_B: Tensor) -> Tensor:
    """Sinusoidal features of diffusion timesteps (Vaswani et al. 2017), (B, 256) float32."""
    half = NUM_TIMESTEP_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
    angles = timesteps_B.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def timestep_embedding(width: int) -> nn.Sequential:
    """Layers from `timestep_features` to (B, ``width``)."""
    return nn.Sequential(nn.Linear(NUM_TIMESTEP_FEATURES, width), nn.SiLU(), nn.Linear(width, width))


class ModulatedBranch(nn.Module):
    """x + gate · layer(norm(x) · (1 + scale) + shift), gate zero at the start: one residual branch of adaLN-Zero.

    Args:
        width: D.
        layer: between norm and gate.
        frames_last: whether the layer is given tokens whose frames lie side by side in memory.
    """

    def __init__(self, width: int, layer: nn.Module, *, frames_last: bool = False):
        super().__init__()
        self.frames_last = frames_last
        self.modulation = nn.Linear(width, 3 * width)
        self.layer = layer
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x_BSND: Tensor, condition: Tensor, apply: Callable[[nn.Module, Tensor], Tensor], kernels: Backend
    ) -> Tensor:
        """(B, S, N, D) -> (B, S, N, D).

        Args:
            x_BSND: tokens.
            condition: (B, S or 1, 1, D), broadcast over the tokens.
            apply: (layer, tokens) -> tokens; folds the token axes as the layer needs them.
            kernels: backend of the modulation.
        """
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        x_normed = modulated_norm(x_BSND, shift, scale, frames_last=self.frames_last, backend=kernels)
        branch = apply(self.layer, x_normed)
        return gated_residual(x_BSND, gate, branch, backend=kernels)


class Block(nn.Module):
    """Attention over space and over time (or over both at once), then an MLP.

    Args:
        width: D.
        hidden: channels inside the MLP.
        num_heads: heads of each attention.
        qk_norm: as `Attention` takes it.
        factorised: attention over the tokens of a frame, then over the frames of a token; else over all at once.
    """

    def __init__(self, width: int, hidden: int, num_heads: int, *, qk_norm: HeadNorm, factorised: bool):
        super().__init__()

        def attention(spans_frames: bool) -> ModulatedBranch:
            layer = Attention(width, num_heads, qk_norm=qk_norm, spans_frames=spans_frames)
            return ModulatedBranch(width, layer, frames_last=spans_frames and factorised)

        self.factorised = factorised
        if factorised:
            self.space, self.time = attention(spans_frames=False), attention(spans_frames=True)
        else:
            self.full = attention(spans_frames=True)
        mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp = ModulatedBranch(width, mlp)

    def forward(self, x_BSND: Tensor, condition: Tensor, context: TokenContext) -> Tensor:
        """(B, S, N, D) -> (B, S, N, D); ``condition`` is (B, S or 1, 1, D)."""
        B, S = x_BSND.shape[:2]

        def attend(layer: nn.Module, x: Tensor, axis: str) -> Tensor:
            fuses = context.fuses_short
            return layer(x, context.angles[axis], context.attend, context.kernels, fuses_short=fuses)

        def over_space(layer: nn.Module, x: Tensor) -> Tensor:
            y = attend(layer, rearrange(x, "b s n d -> (b s) n d"), "space")
            return rearrange(y, "(b s) n d -> b s n d", b=B)

        def over_time(layer: nn.Module, x: Tensor) -> Tensor:
            y = attend(layer, rearrange(x, "b s n d -> (b n) s d"), "time")
            return rearrange(y, "(b n) s d -> b s n d", b=B)

        def over_all(layer: nn.Module, x: Tensor) -> Tensor:
            y = attend(layer, rearrange(x, "b s n d -> b (s n) d"), "full")
            return rearrange(y, "b (s n) d -> b s n d", s=S)

        if self.factorised:
            x_BSND = self.space(x_BSND, condition, over_space, context.kernels)
            x_BSND = self.time(x_BSND, condition, over_time, context.kernels)
        else:
            x_BSND = self.full(x_BSND, condition, over_all, context.kernels)
        return self.mlp(x_BSND, condition, lambda layer, x: layer(x), context.kernels)
