"""Configuration of training."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dydiff_dist.strict_config import StrictConfig


class NonFiniteConfig(StrictConfig):
    """What happens when a loss or a gradient is not finite. The update is left out in any case, on all ranks alike."""

    max_in_a_row: PositiveInt = 3
    """Bad batches in a row that are too many."""
    action: Literal["stop", "rollback"] = "stop"
    """Then: stop the run with its last checkpoint, or load that and go on with the data that follow."""
    max_rollbacks: PositiveInt = 3
    """Rollbacks of one start of the program; one more stops the run."""


class FaultsConfig(StrictConfig):
    """How long the ranks wait for each other, and for a save after a signal."""

    join_timeout_sec: float = Field(default=300, gt=0)
    """Within which all ranks must have started and met."""
    exchange_timeout_sec: float = Field(default=600, gt=0)
    """Within which every rank must take part in an exchange that one of them has begun; then the run ends."""
    heartbeat_sec: float = Field(default=2, gt=0)
    """Between a rank's signs of life."""
    slow_after_sec: float = Field(default=60, gt=0)
    """After which a rank that makes no progress is named in the log, with what it is doing."""
    dead_after_sec: float = Field(default=120, gt=0)
    """Without a sign of life, after which a rank counts as dead and the others end the run."""
    grace_sec: float = Field(default=120, gt=0)
    """After SIGTERM or SIGUSR1, for finishing the step and saving; what isn't complete by then is given up. Set it
    below what the scheduler grants before it kills."""

    @model_validator(mode="after")
    def _check_order(self) -> "FaultsConfig":
        if self.dead_after_sec < 5 * self.heartbeat_sec:
            raise ValueError(
                f"dead_after_sec {self.dead_after_sec} must be at least 5 x heartbeat_sec {self.heartbeat_sec}; change "
                "either"
            )
        return self


class TrainingConfig(StrictConfig):
    """The training loop. Batch sizes count samples; one step is one optimizer update."""

    steps: PositiveInt
    """Optimizer updates of the whole run."""
    global_batch_size: PositiveInt
    """Samples per step over all ranks; constant whatever the number of ranks."""
    micro_batch_per_gpu: PositiveInt
    """Samples per forward pass of one rank. global_batch_size = micro_batch_per_gpu x accumulation x world size; the
    accumulation is derived."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Storage and arithmetic of the network; master weights are float32 in all. fp16 needs loss scaling, below."""
    loss_scale: float = Field(default=0.0, ge=0)
    """Of fp16: factor on the loss so that small gradients are not rounded to 0. 0 finds it: it starts at 65536, halves
    where a gradient overflows (that update is left out) and doubles after 1000 good steps."""
    optimizer: Literal["adamw", "deepspeed_fused_adam", "deepspeed_cpu_adam"] = "adamw"
    """AdamW by torch, or by DeepSpeed: fused on GPUs, or for an optimizer offloaded to the host. DeepSpeed's are
    compiled at their first start; where that fails, torch's takes their place, and the log says so."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moment decays."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices only: biases and other vectors are not decayed."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warm-up: half a cosine down to 0 at `steps`, or constant."""
    gradient_clipping: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay per step of the weights' moving average; it starts at 1/10 and grows as (1 + step) / (10 + step)."""
    more_ema_decays: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Further averages, kept beside the first and saved in checkpoints as ema_DECAY; 4 bytes per parameter each."""
    nonfinite: NonFiniteConfig = NonFiniteConfig()
    """Losses and gradients that are not finite."""
    faults: FaultsConfig = FaultsConfig()
    """Ranks that are slow or gone, signals."""
    log_every_steps: PositiveInt = 20
    """Steps between lines in the log and TensorBoard."""
    checkpoint_every_steps: PositiveInt = 500
    """Steps between checkpoints; one more is written at the end and at an interruption."""
    keep_last_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted once a newer one is complete."""
    keep_every_steps: NonNegativeInt = 0
    """Checkpoints at multiples of it are never deleted; 0 for none. Only steps at which a checkpoint falls count."""
    async_checkpoints: bool = True
    """Whether training goes on while a checkpoint is written; it takes host memory for a copy of the rank's share of
    weights, moments and averages."""
    validate_every_steps: NonNegativeInt = 500
    """Steps between validations; 0 turns them off."""

    @model_validator(mode="after")
    def _check_steps(self) -> "TrainingConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"training.warmup_steps {self.warmup_steps} must be below training.steps {self.steps}; change either"
            )
        if self.global_batch_size % self.micro_batch_per_gpu:
            raise ValueError(
                f"training.global_batch_size {self.global_batch_size} must be a multiple of "
                f"training.micro_batch_per_gpu {self.micro_batch_per_gpu}; change either"
            )
        return self


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


def accumulation_steps(config: TrainingConfig, num_replicas: int) -> int:
    """Forward passes per step and rank: global batch = micro batch x accumulation x replicas.

    Args:
        config: the batch sizes.
        num_replicas: ranks, or groups of ranks that share their samples.

    Raises:
        ValueError: if no whole number fits.
    """
    samples_at_once = config.micro_batch_per_gpu * num_replicas
    if config.global_batch_size % samples_at_once:
        raise ValueError(
            f"training.global_batch_size {config.global_batch_size} must be a multiple of micro_batch_per_gpu x ranks "
            f"= {config.micro_batch_per_gpu} x {num_replicas} = {samples_at_once}; change either batch size, or start "
            "another number of ranks"
        )
    return config.global_batch_size // samples_at_once
