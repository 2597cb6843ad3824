"""Configuration of sampling."""

import torch
from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.diffusion.accuracy import check_steps
from dydiff_dist.diffusion.grids import timestep_grid
from dydiff_dist.diffusion.names import Spacing
from dydiff_dist.diffusion.samplers import find_sampler
from dydiff_dist.diffusion.sampling import plan_steps
from dydiff_dist.diffusion.table import ProcessTable
from dydiff_dist.strict_config import StrictConfig


class SamplingConfig(StrictConfig):
    """How a forecast is drawn from a trained network, `dydiff_dist.diffusion.sample`.

    The defaults are what scored best for its cost in docs/study.md. The authors' are ddim in 50 steps, uniform.
    """

    sampler: str = "ancestral"
    """ancestral (ddim with eta 1), ddim, euler, dpmpp_2m or heun (second order, nearest to the exact solution in few
    steps; heun runs the network twice a step); or a registered one."""
    num_steps: PositiveInt = 12
    """Steps of a forecast, each one pass through the network, of heun two; the uniform grid has a few more where it
    doesn't divide N."""
    eta: float = Field(default=0.0, ge=0)
    """Stochasticity of ddim: 0 is deterministic after the starting noise."""
    spacing: Spacing = "log_snr"
    """Where the steps lie: log_snr, uniform (the authors), quadratic or trailing."""
    guidance_weight: float = Field(default=1.0, ge=0)
    """w of classifier-free guidance, out_u + w (out_c - out_u); 1 is none and runs the network once per step."""
    clamp_history: bool = True
    """Whether the history frames of x0_hat are replaced by the known history in every step (the authors don't)."""

    random_shifts: bool | None = None
    """Whether each step shows the network the frames, which must be periodic, from another origin, so that edges of
    patches average out; null: where it was trained so (data.augmentation.periodic_shift)."""

    @model_validator(mode="after")
    def _check_eta(self) -> "SamplingConfig":
        find_sampler(self.sampler, self.eta)
        return self

    @property
    def caution(self) -> str:
        """What must be known of forecasts drawn like this; empty where there is nothing."""
        if self.eta <= 1:
            return ""
        return (
            f"eta {self.eta:g} is above 1, ancestral sampling: steps add more noise than the process has, and where "
            "that exceeds what is left of it their marginal is not exact"
        )

    def num_passes(self, table: ProcessTable) -> int:
        """How often the network is run for one forecast of a process: two for a step of heun, and for guidance."""
        grid = timestep_grid(table, self.num_steps, self.spacing)
        return len(plan_steps(table, grid, sampler=self.sampler, eta=self.eta)) * (
            1 if self.guidance_weight in (0, 1) else 2
        )

    def check(self, table: ProcessTable, num_frames: int | None = None) -> None:
        """Refuses what a process can't do, before anything is trained or forecast.

        Args:
            table: the process.
            num_frames: S, as the network counts frames; None leaves rounding errors in float32 unchecked.

        Raises:
            ValueError: more steps than timesteps, a sampler that doesn't fit the process, or steps that rounding leaves
                no digit of.
        """
        try:
            grid = timestep_grid(table, self.num_steps, self.spacing)
            steps = plan_steps(table, grid, sampler=self.sampler, eta=self.eta)
            if num_frames is not None:
                check_steps(table, steps, num_frames, torch.float32)
        except ValueError as error:
            raise ValueError(f"sampling: {error}") from None
