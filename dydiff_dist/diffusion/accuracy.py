"""Which combinations of timestep, prediction and storage hold any digit of the result; the others are refused.

An elementwise rounding error of z or of the network's output grows in x̂ by up to

    (1 + √(1-γ̄))/√γ̄              v; x0 in a reverse step, which has to unmix z
    that times (1 + √(1-ᾱ))/√ᾱ    eps

times the storage's unit roundoff, which is the error beside data of unit variance. At 1 nothing is left.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import unmix_gain

if TYPE_CHECKING:
    from dydiff_dist.diffusion.process import DynamicalDiffusion

LARGEST_ERROR = 1.0
"""Refused from here on, as a share of the data's standard deviation."""
LARGEST_UNMIXED_WEIGHT = 1e4
"""Largest factor by which a loss in the unmixed space may enlarge squared errors of mixed outputs."""


def rounding_gain(diffusion: "DynamicalDiffusion", reverse_step: bool) -> Tensor:
    """By how much x̂ (or, with ``reverse_step``, z' as well) enlarges rounding errors, by timestep, (N,) float64."""
    unmix = torch.ones_like(diffusion.gamma_bar) if diffusion.is_standard else unmix_gain(diffusion.gamma_bar)
    if diffusion.prediction == "eps":
        return unmix * (1 + (1 - diffusion.alpha_bar).sqrt()) / diffusion.alpha_bar.sqrt()
    if diffusion.prediction == "x0" and not (reverse_step and diffusion.dependent_noise):
        return torch.ones_like(unmix)
    return unmix


def check_construction(diffusion: "DynamicalDiffusion") -> None:
    """Refuses what no storage type makes meaningful."""
    if diffusion.prediction == "eps" and diffusion.alpha_bar[-1] == 0:
        raise ValueError(
            "prediction 'eps' says nothing of the frames at the last timestep with zero_terminal_snr, where z is pure "
            "noise; use prediction 'v' or 'x0', or turn zero_terminal_snr off"
        )
    output_is_mixed = diffusion.prediction != "x0" and not diffusion.is_standard
    if output_is_mixed and diffusion.loss_space == "unmixed":
        weight = unmix_gain(diffusion.gamma_bar.min()).square().item()
        if weight > LARGEST_UNMIXED_WEIGHT:
            raise ValueError(
                f"loss_space 'unmixed' multiplies squared errors by up to {weight:.1e} where gamma_bar falls to "
                f"{diffusion.gamma_bar.min().item():.1e}; use loss_space 'mixed', prediction 'x0', gamma_ratio <= 0.99"
            )


def check_predict(diffusion: "DynamicalDiffusion", timesteps: Tensor, *dtypes: torch.dtype) -> None:
    """Raises ``ValueError`` if x̂ holds no digit at any of ``timesteps`` with such storage."""
    _check(diffusion, timesteps, dtypes, reverse_step=False)


def check_step(diffusion: "DynamicalDiffusion", timesteps: Tensor, *dtypes: torch.dtype) -> None:
    """Raises ``ValueError`` if x̂ or z' holds no digit at any of ``timesteps`` with such storage."""
    _check(diffusion, timesteps, dtypes, reverse_step=True)


def _check(
    diffusion: "DynamicalDiffusion", timesteps: Tensor, dtypes: tuple[torch.dtype, ...], reverse_step: bool
) -> None:
    coarsest = max(dtypes, key=_unit_roundoff)
    error = rounding_gain(diffusion, reverse_step) * _unit_roundoff(coarsest)
    refused = torch.nonzero(error >= LARGEST_ERROR).flatten()
    if len(refused) == 0 or timesteps.numel() == 0:  # nothing to look for, so no wait for a GPU either
        return
    timestep = int(timesteps.max())
    if timestep < int(refused[0]):
        return
    storage = str(coarsest).removeprefix("torch.")
    wider = "" if coarsest in (torch.float32, torch.float64) else " in float32,"
    other = {"eps": " prediction 'v' or 'x0',", "v": " prediction 'x0',", "x0": ""}[diffusion.prediction]
    raise ValueError(
        f"timestep {timestep} with prediction {diffusion.prediction!r} in {storage} leaves no correct digit of the "
        f"frames (rounding error {error[timestep]:.1g} of their deviation): use{wider}{other} "
        f"timesteps below {int(refused[0])}, or a smaller gamma_ratio"
    )


def _unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2
