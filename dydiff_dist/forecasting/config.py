"""Configuration of sampling."""

from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.diffusion.names import Sampler, Spacing
from dydiff_dist.strict_config import StrictConfig


class SamplingConfig(StrictConfig):
    """How a forecast is drawn from a trained network, `dydiff_dist.diffusion.sample`."""

    sampler: Sampler = "ddim"
    """ddim, ancestral (ddim with eta 1) or dpmpp_2m (second order, needs fewer steps)."""
    num_steps: PositiveInt = 50
    """Passes through the network per forecast; the uniform grid has a few more where it doesn't divide N."""
    eta: float = Field(default=0.0, ge=0)
    """Stochasticity of ddim: 0 is deterministic after the starting noise."""
    spacing: Spacing = "uniform"
    """Where the steps lie: uniform (the authors), quadratic, log_snr or trailing."""
    guidance_weight: float = Field(default=1.0, ge=0)
    """w of classifier-free guidance, out_u + w (out_c - out_u); 1 is none and runs the network once per step."""
    clamp_history: bool = True
    """Whether the history frames of x0_hat are replaced by the known history in every step (the authors don't)."""

    @model_validator(mode="after")
    def _check_eta(self) -> "SamplingConfig":
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} needs sampler 'ddim', it is {self.sampler!r}; set eta to 0")
        return self
