"""The run configurations: everything that defines a training, one typed tree for each kind of run."""

from typing import Literal

from pydantic import Field, PositiveInt

from dydiff_dist.autoencoders.config import AutoencoderConfig, AutoencoderLossConfig, AutoencoderModelConfig
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.models import AnyDenoiserConfig, ExecutionConfig
from dydiff_dist.strict_config import StrictConfig
from dydiff_dist.training.config import BaseRunConfig, TrainingConfig


class DiffusionTrainingConfig(TrainingConfig):
    """The training loop of a denoising network."""

    conditioning_dropout: float = Field(default=0.1, ge=0, le=1)
    """Probability that a sample's history is replaced by noise, for classifier-free guidance."""
    num_validation_cases: PositiveInt = 8
    """Cases forecast at each validation, over all ranks."""
    num_validation_members: PositiveInt = 4
    """Ensemble members of each validation forecast."""


class AutoencoderTrainingConfig(TrainingConfig):
    """The training loop of an autoencoder."""

    num_validation_samples: PositiveInt = 16
    """Samples decoded at each validation, over all ranks."""
    num_measured_samples: PositiveInt = 64
    """Training samples from which the latents' shift and scale are measured at the end."""


class KernelsConfig(StrictConfig):
    """Which implementation of the fused operations runs."""

    backend: Literal["auto", "triton", "cpp", "reference"] = "auto"
    """auto: Triton on GPUs, C++ on CPUs, torch where that is not to be had; what runs is logged once per operation."""


class RunConfig(BaseRunConfig):
    """Everything that defines the training of a forecaster, and its forecasts."""

    fixed_sections = ("model", "diffusion", "data", "seed")

    model: AnyDenoiserConfig
    training: DiffusionTrainingConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    kernels: KernelsConfig = KernelsConfig()
    execution: ExecutionConfig = ExecutionConfig()
    autoencoder: AutoencoderConfig | None = None
    """Train on latents: of latent shards that this autoencoder made, or encoding the frames in every step."""

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that share the frames of a sample."""
        return self.execution.sequence_parallel_size


class AutoencoderRunConfig(BaseRunConfig):
    """Everything that defines the training of an autoencoder. History and future frames of ``data`` count alike: each
    sample gives so many frames in a row."""

    fixed_sections = ("model", "loss", "data", "seed")

    model: AutoencoderModelConfig
    training: AutoencoderTrainingConfig
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
