"""The training loss: squared error per frame in a chosen space, weighted by timestep, and its report by timestep.

Letters: B batch, S frames, N timesteps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import frame_mix, frame_unmix, unmix_gain
from dydiff_dist.diffusion.names import LossFrames
from dydiff_dist.diffusion.table import ProcessTable
from dydiff_kernels import Backend, CoefficientTable, Gammas, Numbers, denoising_loss

if TYPE_CHECKING:
    from dydiff_dist.diffusion.config import DiffusionConfig

LARGEST_UNMIXED_WEIGHT = 1e4
"""Largest factor by which a loss in the unmixed space may enlarge squared (white) errors of mixed outputs."""


@dataclass(frozen=True, eq=False)
class Objective:
    """Mean squared error of a network's output over the frames that count.

    Raises:
        ValueError: the loss would be dominated by timesteps where unmixing enlarges errors beyond measure.
    """

    frames: LossFrames = "all"
    """all, or future: history frames are left out."""
    change: Callable[..., Tensor] | None = None
    """``frame_mix`` or ``frame_unmix``, which takes errors to the space where they are measured; None leaves them."""
    gamma: Tensor | None = field(default=None, repr=False)
    """(N,) levels of that operator."""
    weights: Tensor | None = field(default=None, repr=False)
    """(N,) by timestep; None is 1."""

    def __post_init__(self) -> None:
        if self.change is not frame_unmix or self.gamma is None:
            return
        weight = unmix_gain(self.gamma.min()).square().item()
        if weight > LARGEST_UNMIXED_WEIGHT:
            raise ValueError(
                f"loss_space 'unmixed' multiplies squared errors by up to {weight:.1e} where gamma_bar falls to "
                f"{self.gamma.min().item():.1e}; use loss_space 'mixed', prediction 'x0', gamma_ratio <= 0.99"
            )

    @cached_property
    def _gamma_table(self) -> CoefficientTable[Gammas]:
        assert self.gamma is not None
        return CoefficientTable(Gammas(self.gamma), len(self.gamma))

    @cached_property
    def _weight_table(self) -> CoefficientTable[Numbers] | None:
        return None if self.weights is None else CoefficientTable(Numbers(self.weights), len(self.weights))

    def __call__(
        self, output: Tensor, target: Tensor, timesteps: Tensor, *, num_history_frames: int, backend: Backend
    ) -> Tensor:
        """Loss per sample, (B,) float32 or float64, of ``output`` and ``target`` (B, S, *rest)."""
        first = num_history_frames if self.frames == "future" else 0
        if not 0 <= first < target.shape[1]:
            raise ValueError(
                f"num_history_frames is {first}; a loss on future frames of a sequence of {target.shape[1]} needs it "
                f"in 0..{target.shape[1] - 1}"
            )
        error = None
        if self.change is not None and self.gamma is not None:
            compute = torch.float64 if target.dtype == torch.float64 else torch.float32
            gamma = self._gamma_table.at(timesteps)
            error = self.change(output.to(compute) - target.to(compute), gamma, backend=backend)
        return denoising_loss(
            output if error is None else error,
            target if error is None else "zero",
            sample_weights=None if self._weight_table is None else self._weight_table.at(timesteps),
            frame_weights=(torch.arange(target.shape[1]) >= first).double() if first else None,
            backend=backend,
        )


def build_objective(config: "DiffusionConfig", table: ProcessTable, gamma_bar: Tensor) -> Objective:
    """The loss as configured.

    Args:
        config: loss_space, loss_frames, min_snr, network_space.
        table: what the network predicts.
        gamma_bar: (N,), the levels that separate mixed from unmixed space.
    """
    is_mixed = table.mixes_target and config.network_space == "mixed"
    wanted = {"target": is_mixed, "mixed": True, "unmixed": False}[config.loss_space]
    change = None if wanted == is_mixed or bool((gamma_bar == 1).all()) else (frame_mix if wanted else frame_unmix)
    weights = None if config.min_snr is None else min_snr_weights(table, config.min_snr)
    return Objective(config.loss_frames, change, None if change is None else gamma_bar, weights)


def min_snr_weights(table: ProcessTable, limit: float) -> Tensor:
    """Min-SNR-γ weights of the target's error by timestep, (N,) float64 (Hang et al. 2023, section 3.4).

    min(SNR, limit) is the weight of x̂'s error, which is s/Δ of the output's. ``limit`` is their γ (5 is usual).
    """
    snr = (table.signal / table.noise).square()
    return snr.clamp(max=limit) * (table.noise / table.determinant).square()


def loss_by_timestep_bin(
    per_sample: Tensor, timesteps: Tensor, num_timesteps: int, num_bins: int = 10
) -> tuple[Tensor, Tensor]:
    """Sums of the loss over equal ranges of timesteps; sums and counts add up over ranks and steps before dividing.

    Args:
        per_sample: (B,) losses.
        timesteps: (B,) in 0..N-1.
        num_timesteps: N.
        num_bins: bin i holds timesteps [i N / num_bins, (i + 1) N / num_bins).

    Returns:
        (loss sums, counts), (num_bins,) float64 each, on the device of ``per_sample``.

    Raises:
        ValueError: ``num_bins`` is not in 1..N.

    Examples:
        >>> import torch
        >>> sums, counts = loss_by_timestep_bin(torch.tensor([1.0, 3.0]), torch.tensor([10, 990]), 1000, num_bins=2)
        >>> sums.tolist(), counts.tolist()
        ([1.0, 3.0], [1.0, 1.0])
    """
    if not 1 <= num_bins <= num_timesteps:
        raise ValueError(f"num_bins is {num_bins}; it must lie in 1..{num_timesteps}, the number of timesteps")
    timesteps = timesteps.to(per_sample.device)
    bins = torch.div(timesteps * num_bins, num_timesteps, rounding_mode="floor")
    sums, counts = torch.zeros(2, num_bins, dtype=torch.float64, device=per_sample.device)
    sums.index_add_(0, bins, per_sample.detach().double())
    counts.index_add_(0, bins, torch.ones_like(per_sample, dtype=torch.float64))
    return sums, counts
