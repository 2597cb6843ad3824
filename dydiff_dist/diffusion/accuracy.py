"""Which steps hold any digit of the result in the storage at hand; the others are refused.

A step is linear in z and in the network's output, so what independent rounding errors of the two become in x̂ and in z'
can be read off its matrices along the frames, in float64: no formula for any process or prediction. That times the
storage's unit roundoff is the error beside data of unit variance, about twice what is measured, since rounding is uniform
and most values lie below 1. At 1 nothing is left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.samplers import Step
from dydiff_dist.diffusion.table import ProcessTable

LARGEST_ERROR = 1.0
"""Refused from here on, as a share of the data's standard deviation."""
LARGEST_CLEAN_ERROR = 1e3
"""The same for the x̂ of a step whose z' is accurate all the same: beyond it, x̂ no longer fits into float16."""


def rounding_gains(table: ProcessTable, step: Step, num_frames: int) -> tuple[float, float]:
    """By how much rounding errors of unit relative size grow in (x̂, z'), in the worst frame.

    Args:
        table: the process.
        step: of a sampler.
        num_frames: S.
    """
    now, after = (table.at(torch.tensor([level.timestep])) for level in (step.now, step.after))
    A, B, A_after, B_after = (
        mixing_matrix(gamma, num_frames)[0]
        for gamma in (now.frame_gamma, now.noise_gamma, after.frame_gamma, after.noise_gamma)
    )
    identity = torch.eye(num_frames, dtype=torch.float64)
    determinant = now.signal * now.target_noise - now.noise * now.target_signal
    unmix = torch.linalg.solve_triangular(A, identity, upper=False)
    clean_of_z = now.target_noise / determinant * unmix
    clean_of_output = -now.noise / determinant * (unmix if table.mixes_target else identity)
    keep = step.weights.noise / now.noise * B_after @ torch.linalg.solve_triangular(B, identity, upper=False)
    of_z = step.weights.clean * A_after @ clean_of_z + keep @ (identity - now.signal * A @ clean_of_z)
    of_output = step.weights.clean * A_after @ clean_of_output - keep @ (now.signal * A @ clean_of_output)
    z_variance = now.signal.square() + now.noise.square()
    output_variance = now.target_noise.square() + now.target_signal.square()

    def gain(of_z: Tensor, of_output: Tensor) -> float:
        variance = z_variance * of_z.square().sum(1) + output_variance * of_output.square().sum(1)
        return variance.max().sqrt().item()

    return gain(clean_of_z, clean_of_output), gain(of_z, of_output)


def check_steps(table: ProcessTable, steps: Sequence[Step], num_frames: int, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` if the result of a step holds no digit with z and outputs stored as ``dtype``."""
    roundoff = torch.finfo(dtype).eps / 2
    for step in steps:
        clean_gain, step_gain = rounding_gains(table, step, num_frames)
        error = max(step_gain, clean_gain / LARGEST_CLEAN_ERROR) * roundoff
        if not error < LARGEST_ERROR:
            storage = str(dtype).removeprefix("torch.")
            coarse = "" if dtype in (torch.float32, torch.float64) else "float32 storage, "
            raise ValueError(
                f"a step from timestep {step.now.timestep} to {step.after.timestep} with this prediction in {storage} "
                f"leaves no correct digit (rounding error {error:.1g} of the data's deviation); use {coarse}prediction "
                "'v' or 'x0', smaller timesteps, or a smaller gamma_ratio"
            )
