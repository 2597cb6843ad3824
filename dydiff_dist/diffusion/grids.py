"""Grids of timesteps for sampling. Letters: K steps, N timesteps."""

import torch
from torch import Tensor

from dydiff_dist.diffusion.names import Spacing, check_name
from dydiff_dist.diffusion.table import ProcessTable


def timestep_grid(table: ProcessTable, num_steps: int, spacing: Spacing = "uniform") -> list[int]:
    """Timesteps of a sampling run, descending; the step after the last goes to clean.

    Args:
        table: the process, for N and the signal-to-noise ratio.
        num_steps: K in 1..N.
        spacing: "uniform" is the authors' grid, range(0, N, N // K) + 1, which has a few steps more where K doesn't
            divide N. "quadratic" and "log_snr" (equal steps in λ) go from the uniform grid's largest timestep to 1,
            denser where there is little noise. "trailing" is uniform and starts at N - 1: the one for processes that
            end in pure noise (zero-terminal-SNR schedules, flow matching).

    Raises:
        ValueError: K out of range, or unknown spacing.

    Examples:
        >>> from dydiff_dist.diffusion import build_process
        >>> timestep_grid(build_process().table, 4)
        [751, 501, 251, 1]
    """
    check_name("spacing", spacing, Spacing)
    num_timesteps = table.num_timesteps
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
        ascending = _timesteps_at_equal_log_snr(table.log_snr, uniform[-1], fraction)
    return _distinct(ascending.round().long().tolist(), smallest=0, largest=uniform[-1])[::-1]


def _timesteps_at_equal_log_snr(log_snr_N: Tensor, largest: int, fraction: Tensor) -> Tensor:
    largest = min(largest, int(log_snr_N.isfinite().nonzero().max()))  # the log of pure noise is infinite
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
