"""Configuration of sampling."""

from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.diffusion.names import Spacing
from dydiff_dist.diffusion.samplers import find_sampler
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
