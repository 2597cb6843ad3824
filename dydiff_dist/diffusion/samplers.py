"""Sampling: one loop over a grid of timesteps, guidance, chunks and rollout.

A *denoise* function takes (network input, timesteps) and returns the network's output; conditions are its own affair.
The solvers themselves are the pure functions of ``solvers``. Letters: B batch, S frames, K steps, N timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dydiff_dist.diffusion import accuracy, solvers
from dydiff_dist.diffusion.names import Sampler, check_name
from dydiff_dist.diffusion.process import DynamicalDiffusion, Levels, Noise
from dydiff_kernels import NoiseCounter, normal

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """What a callback sees after each step."""

    index: int
    """Steps done before this one, 0..K-1."""
    timestep: Tensor
    """The step started here: () int64, or (S,) where frames have their own."""
    z: Tensor
    """After the step, (B, S, *rest)."""
    x0_hat: Tensor
    """The clean frames as judged in this step, (B, S, *rest)."""


# -- the loop ---------------------------------------------------------------------------------------------------------


def start_noise(
    diffusion: DynamicalDiffusion,
    shape: Sequence[int],
    timestep: int,
    noise: Noise,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Where sampling starts: D_{γ̄_t} ε (or ε, where noise is independent) of shape (B, S, *rest).

    Args:
        diffusion: the process.
        shape: (B, S, *rest).
        timestep: the largest of the grid.
        noise: ε of that shape, or a counter (stream ``SAMPLER_START``) that names it.
        device: where to draw it; a given tensor stays where it is.
        dtype: of the result.
    """
    if isinstance(noise, NoiseCounter):
        noise = normal(noise, tuple(shape), device=device, dtype=dtype)
    if noise.shape != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}; sampling was asked for frames of shape {tuple(shape)}")
    return diffusion.start(noise.to(dtype), timestep)


def sample(
    diffusion: DynamicalDiffusion,
    denoise: Denoise,
    *,
    start: Tensor,
    timesteps: Sequence[int] | Tensor,
    sampler: Sampler = "ddim",
    eta: float = 0.0,
    noise: Noise | None = None,
    history: Tensor | None = None,
    callback: Callable[[SamplerStep], None] | None = None,
) -> Tensor:
    """Runs a sampler from ``start`` to clean frames, (B, S, *rest).

    Args:
        diffusion: the process.
        denoise: (network input, timesteps) -> network output; the input is ``diffusion.model_input`` of z, the
            timesteps are (B,), or (B, S) where frames have their own. Without a callback the input's memory is
            written again by the next step: a function that keeps it must copy it.
        start: z at the first timestep, see ``start_noise``.
        timesteps: a descending grid, see ``timestep_grid``; or (K, S), a column per frame, see ``staggered_grid``.
        sampler: "ddim", "ancestral" (DDIM with η = 1) or "dpmpp_2m" (second order, for smooth networks fewer steps).
        eta: stochasticity of "ddim".
        noise: for η > 0: a counter (stream ``SAMPLER_ETA``), whose step is counted on from its own, or a tensor
            (K, B, S, *rest).
        history: known clean frames (B, H, *rest), which replace the first H of x̂ in every step and in the result.
        callback: called after every step.

    Raises:
        ValueError: a grid that doesn't descend, noise missing, a sampler that doesn't fit the process, or storage too
            coarse for the first timestep.
    """
    grid = _checked_grid(diffusion, timesteps, start)
    eta = _checked_eta(diffusion, sampler, eta, noise, num_steps=len(grid) - 1)
    accuracy.check_step(diffusion, grid[:-1], grid[1:], start.dtype)
    z, x0_hat, alpha_bar_before = start, None, None
    multistep, overwrites = sampler == "dpmpp_2m", callback is None
    rows = [_at(diffusion, row, start) for row in grid]
    for index, ((now, levels), (_, after)) in enumerate(pairwise(rows)):
        output = denoise(diffusion.model_input(z, now), now)
        if index == 0:
            accuracy.check_step(diffusion, grid[:-1], grid[1:], output.dtype)
        z, x0_hat = diffusion.advance(
            z,
            levels,
            after,
            output,
            _coefficients(sampler, levels.alpha_bar, after.alpha_bar, alpha_bar_before, eta),
            x0_before=x0_hat if multistep else None,
            noise=_step_noise(noise, index) if eta > 0 else None,
            history=history,
            wants_x0=multistep or callback is not None,
            spent=(z, x0_hat) if overwrites and index > 0 else (None, None),
        )
        alpha_bar_before = levels.alpha_bar
        if callback is not None:
            callback(SamplerStep(index, grid[index].squeeze(), z, x0_hat))
    return z


def _coefficients(
    sampler: Sampler, alpha_bar: Tensor, alpha_bar_after: Tensor, alpha_bar_before: Tensor | None, eta: float
) -> solvers.StepCoefficients:
    """Of one step; ``alpha_bar_before`` is the level of the step before it, None in the first."""
    if sampler == "dpmpp_2m":
        return solvers.dpmpp_2m(alpha_bar, alpha_bar_after, alpha_bar_before)
    return solvers.ddim(alpha_bar, alpha_bar_after, eta)


def _at(diffusion: DynamicalDiffusion, row: Tensor, z: Tensor) -> tuple[Tensor, Levels]:
    """A row of the grid as timesteps of the whole batch, (B,) or (B, S), and the levels there."""
    timesteps = row.to(z.device).expand(z.shape[0], len(row))
    timesteps = timesteps[:, 0] if len(row) == 1 else timesteps
    return timesteps, diffusion.levels(timesteps, z, allow_clean=True)


def _checked_grid(diffusion: DynamicalDiffusion, timesteps: Sequence[int] | Tensor, start: Tensor) -> Tensor:
    """The grid on the CPU with the clean row after its last, (K + 1, 1) or (K + 1, S) int64."""
    grid = torch.as_tensor(timesteps).cpu()
    if grid.numel() == 0 or grid.is_floating_point() or tuple(grid.shape[1:]) not in ((), (start.shape[1],)):
        raise ValueError(
            f"timesteps have shape {tuple(grid.shape)}, dtype {grid.dtype}; give K integers or (K, {start.shape[1]}) "
            "for one per frame"
        )
    if not 0 <= grid.max() < diffusion.num_timesteps or grid.min() < (0 if grid.ndim == 1 else -1):
        raise ValueError(
            f"timesteps run from {int(grid.max())} to {int(grid.min())}; they must lie in "
            f"0..{diffusion.num_timesteps - 1} (-1, clean, is for single frames)"
        )
    grid = torch.cat((grid.long(), torch.full_like(grid[:1], -1).long()))
    descends = grid[1:] <= grid[:-1] if grid.ndim == 2 else grid[1:] < grid[:-1]
    if not bool(descends.all()):
        raise ValueError("timesteps do not descend; give a grid as timestep_grid makes it, the largest first")
    return grid if grid.ndim == 2 else grid[:, None]


def _checked_eta(
    diffusion: DynamicalDiffusion, sampler: Sampler, eta: float, noise: Noise | None, num_steps: int
) -> float:
    """η of the sampler, with what it needs checked."""
    check_name("sampler", sampler, Sampler)
    if sampler == "dpmpp_2m" and not (diffusion.dependent_noise or diffusion.is_standard):
        raise ValueError(
            "sampler 'dpmpp_2m' needs dependent noise, where z is standard diffusion seen mixed; use 'ddim'"
        )
    if eta and sampler != "ddim":
        raise ValueError(f"eta is {eta} with sampler {sampler!r}; only 'ddim' takes it ('ancestral' is eta 1)")
    if eta < 0:
        raise ValueError(f"eta is {eta}; it must not be negative")
    eta = 1.0 if sampler == "ancestral" else eta
    if eta > 0 and noise is None:
        raise ValueError(
            f"sampler {sampler!r} with eta {eta} draws noise; give a NoiseCounter or a (K, B, S, ...) tensor"
        )
    if eta > 0 and isinstance(noise, Tensor) and noise.shape[0] != num_steps:
        raise ValueError(f"noise holds {noise.shape[0]} steps; the grid has {num_steps}, give noise for each")
    return eta


def _step_noise(noise: Noise, index: int) -> Noise:
    return replace(noise, step=noise.step + index) if isinstance(noise, NoiseCounter) else noise[index]


# -- around the loop --------------------------------------------------------------------------------------------------


def guided(denoise_conditional: Denoise, denoise_unconditional: Denoise, weight: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022): out = out_u + w (out_c - out_u); w = 1 or 0 runs one of them."""
    if weight == 1:
        return denoise_conditional
    if weight == 0:
        return denoise_unconditional

    def denoise(z: Tensor, timesteps: Tensor) -> Tensor:
        unconditional = denoise_unconditional(z, timesteps)
        return unconditional + weight * (denoise_conditional(z, timesteps) - unconditional)

    return denoise


def in_chunks(forecast: Callable[[slice], Tensor], num_samples: int, chunk_size: int) -> Tensor:
    """Forecasts ``num_samples`` samples, at most ``chunk_size`` at once: (num_samples, S, *rest).

    ``forecast`` takes the slice of sample indices to make. With counter-based noise the result doesn't depend on the
    chunks, up to what the network's own arithmetic depends on batch size.
    """
    if chunk_size < 1 or num_samples < 1:
        raise ValueError(f"num_samples {num_samples} and chunk_size {chunk_size} must be at least 1")
    starts = range(0, num_samples, chunk_size)
    return torch.cat([forecast(slice(i, min(i + chunk_size, num_samples))) for i in starts])


def rollout(forecast: Callable[[Tensor, int], Tensor], history: Tensor, num_future_frames: int) -> Tensor:
    """Forecasts past the trained length: the last frames of each window become the history of the next.

    Args:
        forecast: (history (B, H, *rest), window index) -> whole window (B, S, *rest), history first. It draws other
            noise for each window: a counter's step may start at window index · steps per window.
        history: (B, H, *rest).
        num_future_frames: frames wanted after the history; the last window is cut to it.

    Returns:
        (B, num_future_frames, *rest).
    """
    num_history = history.shape[1]
    future, num_done, window = [], 0, 0
    while num_done < num_future_frames:
        frames = forecast(history, window)
        if frames.shape[1] <= num_history:
            raise ValueError(
                f"a window of {frames.shape[1]} frames forecasts nothing after {num_history} history frames"
            )
        future.append(frames[:, num_history:])
        num_done += frames.shape[1] - num_history
        history = torch.cat((history, future[-1]), 1)[:, -num_history:]
        window += 1
    if not future:
        raise ValueError(f"num_future_frames is {num_future_frames}; it must be at least 1")
    return torch.cat(future, 1)[:, :num_future_frames]
