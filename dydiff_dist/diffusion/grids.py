"""Grids of timesteps for sampling. Letters: S frames, K steps, N timesteps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dydiff_dist.diffusion.names import Spacing, check_name
from dydiff_dist.diffusion.schedules import log_snr


def timestep_grid(
    num_timesteps: int,
    num_steps: int,
    spacing: Spacing = "uniform",
    *,
    alpha_bar: Tensor | None = None,
) -> list[int]:
    """Timesteps of a sampling run, descending; the step after the last goes to clean.

    Args:
        num_timesteps: N.
        num_steps: K in 1..N.
        spacing: "uniform" is the authors' grid, range(0, N, N // K) + 1, which has a few steps more where K doesn't
            divide N. "quadratic" and "log_snr" (equal steps in λ) go from the uniform grid's largest timestep to 1,
            denser where there is little noise. "trailing" is uniform and starts at N - 1: the one for
            zero-terminal-SNR schedules.
        alpha_bar: (N,), for "log_snr".

    Raises:
        ValueError: K out of range, unknown spacing, or ``alpha_bar`` missing.
    """
    check_name("spacing", spacing, Spacing)
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps is {num_steps}; it must lie in 1..{num_timesteps}, the number of timesteps")
    if spacing == "trailing":
        return [round(num_timesteps * (num_steps - k) / num_steps) - 1 for k in range(num_steps)]
    uniform = [t + 1 for t in range(0, num_timesteps, num_timesteps // num_steps) if t + 1 < num_timesteps]
    if spacing == "uniform" or num_steps == 1:
        return uniform[::-1]
    fraction = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    if spacing == "quadratic":
        ascending = 1 + (uniform[-1] - 1) * fraction.square()
    else:
        ascending = _timesteps_at_equal_log_snr(alpha_bar, uniform[-1], fraction)
    return _distinct(ascending.round().long().tolist(), smallest=0, largest=uniform[-1])[::-1]


def staggered_grid(timesteps: Sequence[int], num_frames: int, delay_steps: int) -> Tensor:
    """A grid with a timestep for each frame, (K + delay_steps (S - 1), S) int64: frame s starts delay_steps · s late.

    Early frames are clean (-1) while later ones are still noise, as in Diffusion Forcing (Chen et al. 2024) and Rolling
    Diffusion (Ruhe et al. 2024). The network must have been trained on timesteps of shape (B, S).
    """
    levels = torch.tensor([*timesteps, -1])
    step = torch.arange(len(timesteps) + delay_steps * (num_frames - 1))[:, None]
    return levels[(step - delay_steps * torch.arange(num_frames)).clamp(0, len(timesteps))]


def _timesteps_at_equal_log_snr(alpha_bar: Tensor | None, largest: int, fraction: Tensor) -> Tensor:
    if alpha_bar is None:
        raise ValueError("spacing 'log_snr' depends on the noise schedule; give alpha_bar=diffusion.alpha_bar")
    alpha_bar = alpha_bar.double().cpu()
    largest = min(largest, int(alpha_bar.nonzero().max()))  # at zero terminal SNR the last log is infinite
    log_snr_N = log_snr(alpha_bar)
    smallest = min(1, largest)
    wanted = log_snr_N[smallest] + (log_snr_N[largest] - log_snr_N[smallest]) * fraction
    candidates = log_snr_N[smallest : largest + 1]
    return torch.stack([(candidates - w).abs().argmin() + smallest for w in wanted]).double()


def _distinct(ascending: list[int], smallest: int, largest: int) -> list[int]:
    """The nearest strictly ascending timesteps: rounding may have made neighbours equal."""
    for k in range(1, len(ascending)):
        ascending[k] = max(ascending[k], ascending[k - 1] + 1)
    ascending[-1] = min(ascending[-1], largest)
    for k in range(len(ascending) - 2, -1, -1):
        ascending[k] = min(ascending[k], ascending[k + 1] - 1)
    assert ascending[0] >= smallest
    return ascending
