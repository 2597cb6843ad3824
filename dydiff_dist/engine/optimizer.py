"""AdamW, its weight-decay groups and the learning-rate schedule."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dydiff_dist.engine.config import OptimizationConfig


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decayed, biases and other vectors not."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def torch_adamw(network: nn.Module, config: OptimizationConfig) -> torch.optim.AdamW:
    """Torch's AdamW as configured, with its fused kernel on GPUs."""
    groups = decay_groups(network, config.weight_decay)
    on_gpu = next(network.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=on_gpu)


def schedule_factor(step: int, config: OptimizationConfig) -> float:
    """Learning rate at ``step`` (0-based) over the peak: linear warm-up, then half a cosine to 0, or constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizationConfig) -> LambdaLR:
    """The schedule, to be advanced once per update."""
    return LambdaLR(optimizer, partial(schedule_factor, config=config))


def move_schedule(schedule: LambdaLR, steps: int) -> None:
    """Puts the schedule where it is after ``steps`` updates, whatever it was configured to be for the first of them."""
    schedule.last_epoch, schedule._step_count = steps, steps + 1
    schedule._last_lr = [
        base * factor(steps) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def num_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Number of elements of all tensors together."""
    return sum(p.numel() for p in parameters)
