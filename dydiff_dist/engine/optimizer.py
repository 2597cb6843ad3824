"""AdamW, its weight-decay groups and the learning-rate schedule."""

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.ranks.world import gather_objects

logger = logging.getLogger(__name__)


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices decayed, biases and other vectors not."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def build_optimizer(network: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """AdamW as configured; torch's, with its fused kernel on GPUs, where DeepSpeed's can't be compiled on every rank.
    Collective."""
    on_gpu = next(network.parameters()).is_cuda
    groups = decay_groups(network, config.weight_decay)
    settings = {"lr": config.learning_rate, "betas": config.betas}
    if config.optimizer != "adamw":
        reason = _why_not_compiled(config.optimizer)
        found = next(filter(None, gather_objects(reason)), "")
        if not found:
            logger.info("optimizer: %s", config.optimizer)
            return _deepspeed_adam(config.optimizer)(groups, adamw_mode=True, **settings)
        logger.warning("optimizer: torch's AdamW, because %s can't be compiled here: %s", config.optimizer, found)
    return torch.optim.AdamW(groups, fused=on_gpu, **settings)


def _why_not_compiled(name: str) -> str:
    """Loads the compiled part of one of DeepSpeed's optimizers; "" if that works, else the reason in one line."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    builder = {"deepspeed_fused_adam": FusedAdamBuilder, "deepspeed_cpu_adam": CPUAdamBuilder}[name]()
    try:
        builder.load(verbose=False)
    except Exception as error:  # compilers fail in many ways
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""


def _deepspeed_adam(name: str) -> Callable[..., torch.optim.Optimizer]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if name == "deepspeed_cpu_adam":
        return DeepSpeedCPUAdam
    return lambda groups, adamw_mode, **settings: FusedAdam(groups, adam_w_mode=adamw_mode, **settings)


def schedule_factor(step: int, config: OptimizationConfig) -> float:
    """Learning rate at ``step`` (0-based) over the peak: linear warm-up, then half a cosine to 0, or constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizationConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule as torch's LambdaLR, advanced once per step by DeepSpeed's engine."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule_factor, config=config))


def num_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Total number of elements."""
    return sum(p.numel() for p in parameters)
