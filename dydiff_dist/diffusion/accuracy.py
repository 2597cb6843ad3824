"""Which combinations of timestep, prediction and storage hold any digit of the result; the others are refused.

Independent rounding errors of z and of the network's output, of unit variance each, have these standard deviations,
with κ = √((2-γ̄)/γ̄) from unmixing:

    in x̂     eps  κ √((2-ᾱ)/ᾱ)                         v  κ        x0  1
    in z'    eps  √γ̄' κ √(ᾱ' (2-ᾱ)/ᾱ + 1-ᾱ')           v  √γ̄' κ    x0  √γ̄' κ √((1-ᾱ')/(1-ᾱ)), 1 with independent noise

(mixing again, into z', shrinks what unmixing enlarged by √γ̄'). That times the storage's unit roundoff is the error
beside data of unit variance, about twice what is measured, since rounding is uniform and most values lie below 1. At 1
nothing is left.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import unmix_gain
from dydiff_dist.diffusion.levels import Levels

if TYPE_CHECKING:
    from dydiff_dist.diffusion.process import DynamicalDiffusion

LARGEST_ERROR = 1.0
"""Refused from here on, as a share of the data's standard deviation."""
LARGEST_CLEAN_ERROR = 1e3
"""The same for the x̂ of a step whose z' is accurate all the same: beyond it, x̂ no longer fits into float16."""
LARGEST_UNMIXED_WEIGHT = 1e4
"""Largest factor by which a loss in the unmixed space may enlarge squared (white) errors of mixed outputs."""


def clean_gain(diffusion: "DynamicalDiffusion", now: Levels) -> Tensor:
    """Growth of rounding errors in x̂, like ``now.alpha_bar``."""
    unmix = _unmix_gain(diffusion, now)
    if diffusion.prediction == "eps":
        return unmix * ((2 - now.alpha_bar) / now.alpha_bar).sqrt()
    return torch.ones_like(unmix) if diffusion.prediction == "x0" else unmix


def step_gain(diffusion: "DynamicalDiffusion", now: Levels, after: Levels) -> Tensor:
    """Growth of rounding errors in z' of a reverse step, like ``now.alpha_bar``."""
    unmix = _unmix_gain(diffusion, now)
    if not diffusion.is_standard:
        unmix = unmix * _per_frame(after.gamma_bar.sqrt(), now)
    alpha_bar, alpha_bar_next = now.alpha_bar, after.alpha_bar
    if diffusion.prediction == "eps":
        return unmix * (alpha_bar_next * (2 - alpha_bar) / alpha_bar + 1 - alpha_bar_next).sqrt()
    if diffusion.prediction == "v":
        return unmix
    if not diffusion.dependent_noise:
        return torch.ones_like(unmix)
    return unmix * torch.where(alpha_bar < 1, (1 - alpha_bar_next) / (1 - alpha_bar), 0.0).sqrt()


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
    """Raises ``ValueError`` if x̂ at ``timesteps`` (B,) or (B, S) holds no digit with such storage."""
    roundoff = _coarsest_roundoff(dtypes)
    if timesteps.numel() == 0 or not _is_at_risk(diffusion, roundoff):
        return
    timesteps = timesteps.cpu()
    error = clean_gain(diffusion, diffusion.table.levels(timesteps)) * roundoff
    if error.max() >= LARGEST_ERROR:
        raise ValueError(_refusal(diffusion, f"timestep {timesteps.flatten()[error.argmax()]}", error, dtypes))


def check_step(
    diffusion: "DynamicalDiffusion", timesteps: Tensor, prev_timesteps: Tensor, *dtypes: torch.dtype
) -> None:
    """Raises ``ValueError`` if z' of a step between ``timesteps``, (B,) or (B, S), holds no digit with such storage."""
    roundoff = _coarsest_roundoff(dtypes)
    if timesteps.numel() == 0 or not _is_at_risk(diffusion, roundoff):
        return
    timesteps, prev_timesteps = timesteps.cpu(), prev_timesteps.cpu()
    now, after = diffusion.table.levels(timesteps), diffusion.table.levels(prev_timesteps)
    error = torch.maximum(step_gain(diffusion, now, after), clean_gain(diffusion, now) / LARGEST_CLEAN_ERROR) * roundoff
    if error.max() >= LARGEST_ERROR:
        pair = (tensor.flatten()[error.argmax()].item() for tensor in (timesteps, prev_timesteps))
        step = "a step from timestep {} to {}".format(*pair)
        raise ValueError(_refusal(diffusion, step, error, dtypes))


def _refusal(diffusion: "DynamicalDiffusion", what: str, error: Tensor, dtypes: tuple[torch.dtype, ...]) -> str:
    storage = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    choices = ["smaller timesteps", "a smaller gamma_ratio"]
    if diffusion.prediction != "x0":
        choices.insert(0, "prediction 'v' or 'x0'" if diffusion.prediction == "eps" else "prediction 'x0'")
    if storage not in (torch.float32, torch.float64):
        choices.insert(0, "float32 storage")
    return (
        f"{what} with prediction {diffusion.prediction!r} in {str(storage).removeprefix('torch.')} leaves no correct "
        f"digit (rounding error {error.max():.1g} of the data's deviation); use "
        f"{', '.join(choices[:-1])}, or {choices[-1]}"
    )


def _is_at_risk(diffusion: "DynamicalDiffusion", roundoff: float) -> bool:
    """Whether any timestep might be refused; where none is, nobody need look at (or wait for) the timesteps."""
    alpha_bar = diffusion.alpha_bar.min() if diffusion.prediction == "eps" else torch.tensor(1.0)
    gamma_bar = torch.tensor(1.0) if diffusion.is_standard else diffusion.gamma_bar.min()
    bound = unmix_gain(gamma_bar) * (1 + (2 - alpha_bar) / alpha_bar).sqrt()
    return bool(bound * roundoff >= LARGEST_ERROR)


def _unmix_gain(diffusion: "DynamicalDiffusion", now: Levels) -> Tensor:
    if diffusion.is_standard:
        return torch.ones_like(now.alpha_bar)
    return _per_frame(unmix_gain(now.gamma_bar), now).expand_as(now.alpha_bar)


def _per_frame(per_sample: Tensor, levels: Levels) -> Tensor:
    return per_sample[:, None] if levels.per_frame else per_sample


def _coarsest_roundoff(dtypes: tuple[torch.dtype, ...]) -> float:
    return max(torch.finfo(dtype).eps for dtype in dtypes) / 2
