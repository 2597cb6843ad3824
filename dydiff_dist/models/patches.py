"""Frames as tokens and back: square patches side by side, or windows that reach over into their neighbours.

Letters: B batch, S frames, C channels, H W height and width in pixels, N = h w tokens, p edge of a patch, o overlap,
q = p + 2 o edge of the window that a token sees and writes.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Patches:
    """How frames are cut into tokens and put together again.

    Windows are weighted before they are added: 1 inside, sin² over the 2 o pixels around an edge, so that a pixel's
    weights sum to 1 and no edge of a patch can be seen in the frames.

    Args:
        size: p, in pixels; divides height and width.
        overlap: o, in pixels, at most p / 2.
        periodic: whether windows reach around the frame's border; else there is nothing beyond it.
    """

    size: int
    overlap: int = 0
    periodic: bool = False

    @property
    def window(self) -> int:
        """q, in pixels."""
        return self.size + 2 * self.overlap

    def split(self, x_BSCHW: Tensor) -> Tensor:
        """Each token's window, (B, S, C, H, W) -> (B, S, N, C q q); zeros beyond a border that is not periodic."""
        if not self.overlap:
            return rearrange(x_BSCHW, "b s c (h p) (w q) -> b s (h w) (c p q)", p=self.size, q=self.size)
        mode = "circular" if self.periodic else "constant"
        padded = F.pad(x_BSCHW.flatten(0, 1), (self.overlap,) * 4, mode=mode)
        windows = padded.unfold(2, self.window, self.size).unfold(3, self.window, self.size)
        return rearrange(windows, "(b s) c h w p q -> b s (h w) (c p q)", b=len(x_BSCHW))

    def join(self, windows_BSNK: Tensor, height: int, width: int) -> Tensor:
        """Frames from the tokens' windows, (B, S, N, C q q) -> (B, S, C, H, W)."""
        rows, edge = height // self.size, self.window
        if not self.overlap:
            return rearrange(windows_BSNK, "b s (h w) (c p q) -> b s c (h p) (w q)", h=rows, p=edge, q=edge)
        windows = rearrange(windows_BSNK, "b s (h w) (c p q) -> b s c h p w q", h=rows, p=edge, q=edge)
        return self._add(self._add(windows).movedim(-1, -3)).mT

    def spread(self, factors: Tensor, height: int, width: int) -> Tensor:
        """A number a token as a field that passes over between tokens as their windows do, (..., N) -> (..., H, W)."""
        grid = factors.unflatten(-1, (height // self.size, width // self.size))
        if not self.overlap:
            return grid.repeat_interleave(self.size, -2).repeat_interleave(self.size, -1)
        rows, columns = (
            self._add(torch.eye(n, device=grid.device)[:, :, None].expand(n, n, self.window)).to(grid.dtype)
            for n in grid.shape[-2:]
        )
        return rows.mT @ grid @ columns

    def _add(self, windows: Tensor) -> Tensor:
        """Windows along one axis, weighted and added where they overlap, (..., n, q) -> (..., n p)."""
        o = self.overlap
        ramp = torch.sin((torch.arange(2 * o, device=windows.device) + 0.5) * (math.pi / (4 * o))) ** 2
        weights = F.pad(ramp, (0, self.window - 2 * o), value=1.0)
        weights = (weights * weights.flip(0)).repeat(windows.shape[-2], 1)
        if not self.periodic:  # nobody else writes at the border
            weights[0, : 2 * o], weights[-1, -2 * o :] = 1.0, 1.0
        windows = windows * weights.to(windows.dtype)
        before, inside, after = windows.split([o, self.size, o], dim=-1)
        if self.periodic:
            before, after = before.roll(-1, -2), after.roll(1, -2)
        else:
            before, after = F.pad(before[..., 1:, :], (0, 0, 0, 1)), F.pad(after[..., :-1, :], (0, 0, 1, 0))
        rest = self.size - o
        return (inside + F.pad(after, (0, rest)) + F.pad(before, (rest, 0))).flatten(-2)
