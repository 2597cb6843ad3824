"""What an engine is told: batches, precision, optimizer, schedule."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dydiff_dist.strict_config import StrictConfig


class OptimizationConfig(StrictConfig):
    """One update of the weights. Batch sizes count samples; one step is one optimizer update."""

    retired = {"more_ema_decays": []}

    steps: int = Field(gt=0, lt=2**32 - 2)
    """Optimizer updates of the whole run; a step is a word of 32 bits in the counter of all noise."""
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

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
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


def accumulation_steps(config: OptimizationConfig, num_replicas: int) -> int:
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
