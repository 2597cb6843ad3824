"""Configuration of the diffusion process."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from dydiff_dist.diffusion.names import BetaSchedule, GammaSchedule, LossFrames, LossSpace, NetworkSpace, Prediction
from dydiff_dist.diffusion.process import DynamicalDiffusion
from dydiff_dist.strict_config import StrictConfig


class DiffusionConfig(StrictConfig):
    """The process, `dydiff_dist.diffusion.DynamicalDiffusion`; fields are its arguments."""

    num_timesteps: int = Field(default=1000, ge=2)
    """N, diffusion timesteps in training."""
    beta_schedule: BetaSchedule = "cosine"
    """Noise schedule."""
    beta_start: float | None = None
    """First β of the linear schedules; null takes the usual one."""
    beta_end: float | None = None
    """Last β of the linear schedules; null takes the usual one."""
    zero_terminal_snr: bool = False
    """Whether the last timestep is pure noise (Lin et al. 2024); needs prediction v or x0."""
    snr_factor: float = Field(default=1.0, gt=0)
    """Times the signal-to-noise ratio at every timestep; above 1 there is less noise (Hoogeboom et al. 2023)."""
    gamma_schedule: GammaSchedule | tuple[float, ...] = "cosine"
    """Dynamics schedule; none is standard diffusion; or γ̄ itself, one number per timestep."""
    gamma_ratio: float = Field(default=0.5, ge=0, le=1)
    """How far the cosine γ̄ falls: from 1 to 1 - ratio. The authors use 0.5 for video and turbulence."""
    dependent_noise: bool = True
    """Whether noise is mixed along frames as the data are; false is the paper's ablation."""
    prediction: Prediction = "eps"
    """What the network predicts. eps is the authors' choice; v forecasts far better on small budgets."""
    network_space: NetworkSpace = "mixed"
    """unmixed: the network sees standard diffusion; with loss_space mixed, the control for the loss weighting alone."""
    normalize_input: bool = False
    """Divide the network's input by its standard deviation at the timestep (from the data's frame autocovariance)."""
    loss_space: LossSpace = "target"
    """Where errors are measured: target (the authors), mixed or unmixed."""
    loss_frames: LossFrames = "all"
    """all (the authors) or future: leave history frames out of the loss."""
    min_snr: float | None = Field(default=None, gt=0)
    """Limit of min-SNR weighting (Hang et al. 2023; 5 is usual); null for none."""

    @field_validator("gamma_schedule", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_combination(self) -> "DiffusionConfig":
        self.build(frame_autocovariance=[1.0] if self.normalize_input else None)
        return self

    def build(
        self, frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None = None, backend: str = "auto"
    ) -> DynamicalDiffusion:
        """The process; ``normalize_input`` needs ``frame_autocovariance``, by lag, from the data's statistics."""
        return DynamicalDiffusion(**dict(self), frame_autocovariance=frame_autocovariance, backend=backend)
