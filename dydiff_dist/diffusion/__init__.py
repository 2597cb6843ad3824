"""The method: schedules, the Dynamics operator, the process, losses and samplers. docs/method.md explains it."""

from dydiff_dist.diffusion.dynamics import frame_mix, frame_unmix
from dydiff_dist.diffusion.grids import staggered_grid, timestep_grid
from dydiff_dist.diffusion.losses import loss_by_timestep_bin
from dydiff_dist.diffusion.process import DynamicalDiffusion
from dydiff_dist.diffusion.samplers import (
    SamplerStep,
    guided,
    in_chunks,
    rollout,
    sample,
    start_noise,
)

__all__ = [
    "DynamicalDiffusion",
    "SamplerStep",
    "frame_mix",
    "frame_unmix",
    "guided",
    "in_chunks",
    "loss_by_timestep_bin",
    "rollout",
    "sample",
    "staggered_grid",
    "start_noise",
    "timestep_grid",
]
