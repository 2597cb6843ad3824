"""Periodic fields shown to the network from another origin in every step of sampling.

A network that cuts frames into patches errs most along their edges, and with a fixed origin every step errs along the
same ones: forecasts show blocks. A network trained on random periodic shifts forecasts a field from any origin, so each
step can shift what the network sees and shift its output back. Edges then lie elsewhere in every step and most of their
error averages out, at no cost (cycle spinning, Coifman and Donoho 1995, in the steps of a sampler).

Letters: B samples, K steps, S frames, C channels, H W height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dydiff_kernels import NoiseCounter, uniform


@dataclass(frozen=True)
class MovingView:
    """The view of each sample in each step."""

    order: Tensor
    """(B, K, H W) int64: where the view's pixels are in the field, row after row."""
    inverse: Tensor
    """(B, K, H W) int64: where the field's pixels are in the view."""
    step_at: Tensor
    """(N,) int64: the number of the step at a timestep."""

    @classmethod
    def of(cls, origins: Tensor, step_at: Tensor, height: int, width: int) -> "MovingView":
        """The view of fields of H x W pixels from ``draw_origins``, with the steps of ``number_steps``."""
        return cls(_pixels(origins, height, width), _pixels(-origins, height, width), step_at)

    def show(self, fields: Tensor, timesteps: Tensor) -> Tensor:
        """``fields`` (B, S, C, H, W) as the view of the step at ``timesteps`` (B,) has them."""
        return _gather(fields, self.order, self.step_at[timesteps])

    def put_back(self, fields: Tensor, timesteps: Tensor) -> Tensor:
        """Fields as the view has them, (B, S, C, H, W), back at their own origin: the inverse of ``show``."""
        return _gather(fields, self.inverse, self.step_at[timesteps])


def draw_origins(
    counter: NoiseCounter, num_steps: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Where the view begins, uniform over the field: (B, K, 2) int64, row and column, of each sample's own counter.

    Args:
        counter: names the B samples and the window; its stream should be ``SAMPLER_SHIFT``.
        num_steps: K of the sampler.
        height: H in pixels.
        width: W in pixels.
        device: where the fields are.
    """
    draws = uniform(counter, 2 * num_steps, device=device).unflatten(1, (num_steps, 2))
    size = torch.tensor([height, width], device=device)
    return (draws * size).long() % size  # a uniform may be 1


def number_steps(grid: Sequence[int], num_timesteps: int, device: torch.device | str = "cpu") -> Tensor:
    """``MovingView.step_at`` of a sampler's K timesteps out of N."""
    step_at = torch.zeros(num_timesteps, dtype=torch.int64)
    step_at[torch.tensor(grid)] = torch.arange(len(grid))
    return step_at.to(device)


def _pixels(origins: Tensor, height: int, width: int) -> Tensor:
    """Origins (B, K, 2) to the numbers of the pixels seen from there, (B, K, H W)."""
    rows = (torch.arange(height, device=origins.device) + origins[..., :1]) % height
    columns = (torch.arange(width, device=origins.device) + origins[..., 1:]) % width
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(2)


def _gather(fields: Tensor, pixels: Tensor, steps: Tensor) -> Tensor:
    flat = fields.flatten(3).flatten(1, 2)
    of_step = pixels[torch.arange(len(steps), device=pixels.device), steps]
    return flat.gather(2, of_step[:, None].expand_as(flat)).view(fields.shape)
