"""Sampling: one loop over the steps of a sampler; guidance and rollout around it.

A *denoise* function takes (network input, timesteps (B,)) and returns the network's output; conditions are its own
affair. Letters: B batch, S frames, K steps, N timesteps.

Example:
    >>> import torch
    >>> from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
    >>> process = build_process(prediction="x0")
    >>> grid = timestep_grid(process.table, 4, "log_snr")
    >>> start = start_noise(process, (1, 6, 1, 8, 8), grid[0], torch.randn(1, 6, 1, 8, 8))
    >>> frames = sample(process, lambda z, t: torch.ones_like(z), start=start, timesteps=grid)
    >>> bool((frames == 1).all())  # a network that always says "ones" is believed
    True
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dydiff_dist.diffusion import accuracy
from dydiff_dist.diffusion.dynamics import frame_mix
from dydiff_dist.diffusion.process import DiffusionProcess, Noise
from dydiff_dist.diffusion.samplers import Level, Step, find_sampler
from dydiff_dist.diffusion.table import ProcessTable
from dydiff_dist.diffusion.workspace import Workspace
from dydiff_kernels import NoiseCounter, ReverseStep, normal

Denoise = Callable[[Tensor, Tensor], Tensor]


def start_noise(
    process: DiffusionProcess,
    shape: Sequence[int],
    timestep: int,
    noise: Noise,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Where sampling starts: √(a² + s²) B ε of shape (B, S, *rest), as z of frames like its noise would be.

    Args:
        process: the process.
        shape: (B, S, *rest).
        timestep: the largest of the grid.
        noise: white, of that shape, or a counter (stream ``SAMPLER_START``) that names it.
        device: where to draw it; a given tensor stays where it is.
        dtype: of the result.

    Raises:
        ValueError: given noise of another shape.
    """
    if isinstance(noise, NoiseCounter):
        noise = normal(noise, tuple(shape), device=device, dtype=dtype)
    if noise.shape != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}; sampling was asked for frames of shape {tuple(shape)}")
    noise = process.colored(noise)
    level = process.levels(torch.full((shape[0],), timestep), noise)
    deviation = (level.signal.square() + level.noise.square()).sqrt().to(noise.device, noise.dtype)
    mixed = frame_mix(noise, level.noise_gamma, backend=process.backend)
    return (deviation.view(-1, *[1] * (noise.ndim - 1)) * mixed).to(dtype)


def plan_steps(table: ProcessTable, timesteps: Sequence[int], *, sampler: str = "ddim", eta: float = 0.0) -> list[Step]:
    """The steps that ``sample`` makes, known before there is a network.

    Args:
        table: the process.
        timesteps: a descending grid, see ``timestep_grid``.
        sampler: as for ``sample``.
        eta: stochasticity of "ddim".

    Raises:
        ValueError: a grid that doesn't descend, unknown names, or a sampler that doesn't fit the process.
    """
    grid, entry = _checked_grid(table, timesteps), find_sampler(sampler, eta)
    if not entry.any_process and not table.is_whitened_standard:
        raise ValueError(
            f"sampler {sampler!r} combines estimates of several timesteps, which this process relates by operators "
            "that differ between frames and noise and change with the timestep; use 'ddim' or 'ancestral'"
        )
    levels = [Level(t, float(table.signal[t]), float(table.noise[t])) for t in grid]
    return entry.steps([*levels, Level(-1, 1.0, 0.0)], eta if entry.takes_eta else entry.eta)


def sample(
    process: DiffusionProcess,
    denoise: Denoise,
    *,
    start: Tensor,
    timesteps: Sequence[int],
    sampler: str = "ddim",
    eta: float = 0.0,
    noise: Noise | None = None,
    history: Tensor | None = None,
) -> Tensor:
    """Runs a sampler from ``start`` to clean frames, (B, S, *rest).

    Args:
        process: the process.
        denoise: see the module; the memory of its input is written again by the next step.
        start: z at the first timestep, see ``start_noise``.
        timesteps: a descending grid, see ``timestep_grid``.
        sampler: a name of ``samplers.SAMPLERS``: "ddim", "ancestral", "dpmpp_2m", "heun", "euler", or a registered one.
        eta: stochasticity of "ddim".
        noise: for η > 0: a counter (stream ``SAMPLER_ETA``), whose step is counted on from its own, or a tensor
            (K, B, S, *rest).
        history: known clean frames (B, H, *rest), which replace the first H of x̂ in every step and in the result.

    Raises:
        ValueError: a grid that doesn't descend, noise missing, a sampler that doesn't fit the process, or storage too
            coarse for a step.
    """
    steps = plan_steps(process.table, timesteps, sampler=sampler, eta=eta)
    _check_noise(noise, steps, sampler)
    check_accuracy = partial(accuracy.check_steps, process.table, steps, start.shape[1])
    check_accuracy(start.dtype)
    memory = max((len(step.weights.previous) for step in steps), default=0)
    z, estimates, workspace = start, deque[Tensor](maxlen=memory), Workspace()
    history = None if history is None else history.contiguous()
    coefficients, timesteps_KB = process.prepared(steps, len(start), start.device)
    for index, (step, now) in enumerate(zip(steps, timesteps_KB, strict=True)):
        output = denoise(process.model_input(z, now), now)
        if index == 0 and output.dtype != start.dtype:
            check_accuracy(output.dtype)
        # in memory of the step before, and of the x̂ which this step is the last to read
        made = {"z": True, f"x0_{index % max(memory, 1)}": memory > 0}
        options: dict[str, Any] = dict(history=history, out=workspace.take_all(ReverseStep, made, z))
        options |= dict(previous=list(estimates)[: len(step.weights.previous)], return_x0=memory > 0)
        options["noise"] = _noise_of(noise, index) if step.weights.sigma else None
        result = process.step(z, output, coefficients.at(index), step.weights, **options)
        z, x0 = workspace.keep_all(result, made)
        if x0 is not None:
            estimates.appendleft(x0)
    return process.absolute(z)


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


def rollout(forecast: Callable[[Tensor, int], Tensor], history: Tensor, num_future_frames: int) -> Tensor:
    """Forecasts past the trained length: the last frames of each window become the history of the next.

    Args:
        forecast: (history (B, H, *rest), window index) -> whole window (B, S, *rest), history first. It draws other
            noise for each window: a counter's step may start at window index · steps per window.
        history: (B, H, *rest).
        num_future_frames: frames wanted after the history; the last window is cut to it.

    Returns:
        (B, num_future_frames, *rest).

    Raises:
        ValueError: no frame is wanted, or a window has none beyond its history.
    """
    num_history = history.shape[1]
    future: list[Tensor] = []
    num_done = 0
    while num_done < num_future_frames:
        frames = forecast(history, len(future))
        if frames.shape[1] <= num_history:
            raise ValueError(
                f"a window of {frames.shape[1]} frames forecasts nothing after {num_history} history frames"
            )
        future.append(frames[:, num_history:])
        num_done += frames.shape[1] - num_history
        history = torch.cat((history, future[-1]), 1)[:, -num_history:]
    if not future:
        raise ValueError(f"num_future_frames is {num_future_frames}; it must be at least 1")
    return torch.cat(future, 1)[:, :num_future_frames]


def _check_noise(noise: Noise | None, steps: Sequence[Step], sampler: str) -> None:
    """Noise is there if any step draws it, and a tensor holds some for each."""
    if not any(step.weights.sigma for step in steps):
        return
    if noise is None:
        raise ValueError(f"sampler {sampler!r} draws noise here; give a NoiseCounter or a (K, B, S, ...) tensor")
    if isinstance(noise, Tensor) and noise.shape[0] != len(steps):
        raise ValueError(f"noise holds {noise.shape[0]} steps; the sampler makes {len(steps)}, give noise for each")


def _checked_grid(table: ProcessTable, timesteps: Sequence[int]) -> list[int]:
    grid = torch.as_tensor(timesteps).cpu()
    if grid.numel() == 0 or grid.is_floating_point() or grid.ndim != 1:
        raise ValueError(f"timesteps have shape {tuple(grid.shape)}, dtype {grid.dtype}; give K integers")
    if not 0 <= grid.min() <= grid.max() < table.num_timesteps:
        raise ValueError(
            f"timesteps run from {int(grid.max())} to {int(grid.min())}; they must lie in 0..{table.num_timesteps - 1}"
        )
    if not bool((grid[1:] < grid[:-1]).all()):
        raise ValueError("timesteps do not descend; give a grid as timestep_grid makes it, the largest first")
    return grid.tolist()


def _noise_of(noise: Noise | None, index: int) -> Noise | None:
    """The noise of one step."""
    if isinstance(noise, NoiseCounter):
        return replace(noise, step=noise.step + index)
    return None if noise is None else noise[index]
