"""Configuration of sampling."""

from pydantic import Field, PositiveInt, model_validator

from dydiff_dist.diffusion.names import Sampler, Spacing
from dydiff_dist.strict_config import StrictConfig


class SamplingConfig(StrictConfig):
    """How a forecast is drawn from a trained network, `dydiff_dist.diffusion.sample`.

    The defaults are what scored best for its cost in docs/study.md. The authors' are ddim in 50 steps, uniform.
    """

    sampler: Sampler = "ancestral"
    """ancestral (ddim with eta 1), ddim, or dpmpp_2m (second order, nearest to the exact solution in few steps)."""
    num_steps: PositiveInt = 12
    """Passes through the network per forecast; the uniform grid has a few more where it doesn't divide N."""
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
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} needs sampler 'ddim', it is {self.sampler!r}; set eta to 0")
        return self
