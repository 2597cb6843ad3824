"""The run configurations: everything that defines a training, one typed tree for each kind of run."""

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from dydiff_dist.autoencoders.config import AutoencoderConfig, AutoencoderLossConfig, AutoencoderModelConfig
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.diffusion.ensemble_score import EnsembleScoreConfig
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import find_model, read_description
from dydiff_dist.models import AnyDenoiserConfig, ExecutionConfig
from dydiff_dist.strict_config import StrictConfig
from dydiff_dist.training.config import BaseRunConfig, TrainingConfig


class DiffusionTrainingConfig(TrainingConfig):
    """The training loop of a denoising network."""

    conditioning_dropout: float = Field(default=0.1, ge=0, le=1)
    """Probability that a sample's history is replaced by zeros, for classifier-free guidance."""
    num_validation_cases: PositiveInt = 8
    """Cases forecast at each validation, over all ranks."""
    num_validation_members: PositiveInt = 4
    """Ensemble members of each validation forecast."""


class FewStepTrainingConfig(DiffusionTrainingConfig):
    """The training loop of few-step training."""

    num_members: int = Field(default=2, ge=2, le=64)
    """Ensemble members that are forecast of every sample, in one batch, and scored together."""
    conditioning_dropout: float = Field(default=0.0, ge=0, le=0)
    """None: a forecast is given its history."""


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

    fixed_sections: ClassVar[tuple[str, ...]] = ("model", "diffusion", "data", "seed")

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


class FewStepRunConfig(RunConfig):
    """Everything that defines few-step training: ``sampling`` is what is trained, and what the exported model does."""

    fixed_sections = (*RunConfig.fixed_sections, "sampling", "score", "init_from")

    training: FewStepTrainingConfig
    score: EnsembleScoreConfig = EnsembleScoreConfig()
    init_from: str | None = None
    """Model or run whose weights training starts from; ``model`` and ``diffusion`` are its own where they are left out.
    null: from new weights."""

    @classmethod
    def completed(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Takes ``model`` and ``diffusion`` over from ``init_from``."""
        lacking = [name for name in ("model", "diffusion") if name not in tree]
        if not lacking or not isinstance(tree.get("init_from"), str):
            return tree
        description, _ = read_description(find_model(tree["init_from"]))
        return tree | {name: getattr(description, name).model_dump(mode="json") for name in lacking}


class AutoencoderRunConfig(BaseRunConfig):
    """Everything that defines the training of an autoencoder. History and future frames of ``data`` count alike: each
    sample gives so many frames in a row."""

    fixed_sections = ("model", "loss", "data", "seed")

    model: AutoencoderModelConfig
    training: AutoencoderTrainingConfig
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
