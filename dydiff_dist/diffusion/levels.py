"""Schedules looked up at timesteps, and timesteps checked. Letters: B batch, S frames, N timesteps."""

from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """What the schedules say at some timesteps, gathered once, in float64."""

    alpha_bar: Tensor
    """(B,), or (B, S) where frames have their own timesteps."""
    gamma_bar: Tensor
    """(B,): one Dynamics operator per sample, that of its noisiest frame."""

    @property
    def per_frame(self) -> bool:
        """Whether frames have levels of their own."""
        return self.alpha_bar.ndim == 2


class LevelTable:
    """Schedules (N,) float64, each kept on every device where timesteps have been looked up."""

    def __init__(self, **schedules: Tensor):
        # Entry t + 1 belongs to timestep t, so that -1 finds the clean level, 1 in every schedule.
        clean = torch.ones(1, dtype=torch.float64)
        self._host = {name: torch.cat((clean, schedule)) for name, schedule in schedules.items()}
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def at(self, name: str, timesteps: Tensor) -> Tensor:
        """The schedule ``name`` at ``timesteps`` of any shape, on their device; 1 at -1."""
        key = (name, timesteps.device)
        if key not in self._on_device:
            self._on_device[key] = self._host[name].to(timesteps.device)
        # index_select, unlike indexing, doesn't count indices below 0 from the end
        return self._on_device[key].index_select(0, timesteps.flatten() + 1).view(timesteps.shape)

    def levels(self, timesteps: Tensor) -> Levels:
        """ᾱ at ``timesteps`` (B,) or (B, S), and γ̄ at the largest of each sample."""
        noisiest = timesteps if timesteps.ndim == 1 else timesteps.amax(1)
        return Levels(self.at("alpha_bar", timesteps), self.at("gamma_bar", noisiest))


def check_timesteps(timesteps: Tensor, z: Tensor, num_timesteps: int, allow_clean: bool) -> None:
    """Shape, type and, on the CPU, where looking doesn't wait for a device, range.

    Args:
        timesteps: should be integers (B,) or (B, S) for ``z`` (B, S, *rest), in 0..N-1.
        z: the sequence they belong to.
        num_timesteps: N.
        allow_clean: also allow -1, which (B, S) may always hold.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(timesteps, Tensor) or timesteps.is_floating_point() or timesteps.dtype == torch.bool:
        kind = timesteps.dtype if isinstance(timesteps, Tensor) else type(timesteps).__name__
        raise ValueError(f"timesteps are {kind}; give an int64 tensor of shape (B,) or (B, S)")
    if z.ndim < 2 or tuple(timesteps.shape) not in ((z.shape[0],), tuple(z.shape[:2])):
        raise ValueError(
            f"timesteps have shape {tuple(timesteps.shape)} for frames of shape {tuple(z.shape)}; give (B,) or (B, S) "
            "for frames of shape (B, S, ...)"
        )
    if timesteps.device.type != "cpu" or timesteps.numel() == 0:
        return
    lowest = -1 if allow_clean or timesteps.ndim == 2 else 0
    smallest, largest = int(timesteps.min()), int(timesteps.max())
    if smallest < lowest or largest >= num_timesteps:
        wrong = smallest if smallest < lowest else largest
        raise ValueError(f"timesteps hold {wrong}; they must lie in {lowest}..{num_timesteps - 1}")


def check_order(timesteps: Tensor, prev_timesteps: Tensor) -> None:
    """Raises ``ValueError`` if ``prev_timesteps`` differ in shape or (looked at on the CPU) lie above anywhere."""
    if timesteps.shape != prev_timesteps.shape:
        raise ValueError(
            f"prev_timesteps have shape {tuple(prev_timesteps.shape)}, timesteps {tuple(timesteps.shape)}; match them"
        )
    if timesteps.device.type == prev_timesteps.device.type == "cpu" and bool((prev_timesteps > timesteps).any()):
        raise ValueError("prev_timesteps lie above timesteps somewhere; a reverse step goes down")
