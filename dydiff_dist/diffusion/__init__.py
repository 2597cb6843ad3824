"""The method: schedules, the Dynamics operator, processes as tables, the loss, samplers; docs/method.md explains it."""

from dydiff_dist.diffusion.config import DiffusionConfig, build_process
from dydiff_dist.diffusion.dynamics import frame_mix, frame_unmix
from dydiff_dist.diffusion.grids import timestep_grid
from dydiff_dist.diffusion.objective import loss_by_timestep_bin
from dydiff_dist.diffusion.process import DiffusionProcess
from dydiff_dist.diffusion.samplers import Sampler, Step, StepWeights, register_sampler
from dydiff_dist.diffusion.sampling import guided, rollout, sample, start_noise
from dydiff_dist.diffusion.table import Prediction, ProcessRow, ProcessTable, register_prediction, register_process
from dydiff_dist.diffusion.workspace import Workspace

__all__ = [
    "DiffusionConfig",
    "DiffusionProcess",
    "Prediction",
    "ProcessRow",
    "ProcessTable",
    "Sampler",
    "Step",
    "StepWeights",
    "Workspace",
    "build_process",
    "frame_mix",
    "frame_unmix",
    "guided",
    "loss_by_timestep_bin",
    "register_prediction",
    "register_process",
    "register_sampler",
    "rollout",
    "sample",
    "start_noise",
    "timestep_grid",
]
