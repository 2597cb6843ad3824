"""Which steps hold any digit of the result in the storage at hand; the others are refused.

A step is linear in z and in the network's output, so what independent rounding errors of the two become in x̂ and in z'
can be read off its matrices along the frames, in float64: no formula for any process or prediction. That times the
storage's unit roundoff is the error beside data of unit variance, about twice what is measured, since rounding is
uniform and most values lie below 1. At 1 nothing is left.

Letters: K steps, S frames.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.samplers import Step
from dydiff_dist.diffusion.table import ProcessTable

LARGEST_ERROR = 1.0
"""Refused from here on, as a share of the data's standard deviation, or of that of z' where this is larger."""
LARGEST_CLEAN_ERROR = 1e3
"""The same for the x̂ of a step whose z' is accurate all the same: beyond it, x̂ no longer fits into float16."""


def rounding_gains(table: ProcessTable, steps: Sequence[Step], num_frames: int) -> tuple[Tensor, Tensor]:
    """By how much rounding errors of unit relative size grow in x̂ and in z', in the worst frame, (K,) float64 each.

    Args:
        table: the process.
        steps: K steps of a sampler.
        num_frames: S.
    """
    now = table.at(torch.tensor([step.now.timestep for step in steps]))
    after = table.at(torch.tensor([step.after.timestep for step in steps]))
    clean_weight = torch.tensor([step.weights.clean for step in steps], dtype=torch.float64)
    noise_weight = torch.tensor([step.weights.noise for step in steps], dtype=torch.float64)
    mix, mix_noise, mix_after, mix_noise_after = (
        mixing_matrix(gamma, num_frames)
        for gamma in (now.frame_gamma, now.noise_gamma, after.frame_gamma, after.noise_gamma)
    )
    determinant = now.signal * now.target_noise - now.noise * now.target_signal
    identity = torch.eye(num_frames, dtype=torch.float64)
    unmix = torch.linalg.solve_triangular(mix, identity, upper=False)
    clean_of_z = _scale(now.target_noise / determinant, unmix)
    clean_of_output = _scale(-now.noise / determinant, unmix if table.mixes_target else identity)
    unmix_noise = torch.linalg.solve_triangular(mix_noise, identity, upper=False)
    keep = _scale(noise_weight / now.noise, mix_noise_after @ unmix_noise)
    # z' = clean_weight A' x̂ + keep (z - a A x̂)
    of_clean = _scale(clean_weight, mix_after) - keep @ _scale(now.signal, mix)
    of_z, of_output = keep + of_clean @ clean_of_z, of_clean @ clean_of_output
    color = identity if table.noise_operator is None else table.noise_operator
    noise_variance_KS = (mix_noise @ color).square().sum(2)  # 1 of white noise

    def variance(signal: Tensor, noise: Tensor) -> Tensor:  # of what is stored, by frame; signal as if of unit variance
        return (signal.square()[:, None] + noise.square()[:, None] * noise_variance_KS)[..., None]

    z_variance = variance(now.signal, now.noise)
    output_variance = variance(now.target_signal, now.target_noise)

    def gain(of_z: Tensor, of_output: Tensor) -> Tensor:
        return (of_z.square() @ z_variance + of_output.square() @ output_variance).amax((1, 2)).sqrt()

    return gain(clean_of_z, clean_of_output), gain(of_z, of_output)


def check_steps(table: ProcessTable, steps: Sequence[Step], num_frames: int, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` if the result of a step holds no digit with z and outputs stored as ``dtype``."""
    clean_gain, step_gain = rounding_gains(table, steps, num_frames)
    size = torch.tensor([max(1.0, math.hypot(step.after.signal, step.after.noise)) for step in steps])
    error = torch.maximum(step_gain / size, clean_gain / LARGEST_CLEAN_ERROR) * torch.finfo(dtype).eps / 2
    worst = int(error.nan_to_num(nan=torch.inf).argmax())
    if error[worst] < LARGEST_ERROR:
        return
    step, storage = steps[worst], str(dtype).removeprefix("torch.")
    coarse = "" if dtype in (torch.float32, torch.float64) else "float32 storage, "
    raise ValueError(
        f"a step from timestep {step.now.timestep} to {step.after.timestep} with this prediction in {storage} leaves "
        f"no correct digit (rounding error {error[worst]:.1g} of the data's deviation); use {coarse}prediction 'v' or "
        "'x0', smaller timesteps, or a smaller gamma_ratio"
    )


def _scale(factors_K: Tensor, matrices_KSS: Tensor) -> Tensor:
    return factors_K[:, None, None] * matrices_KSS
