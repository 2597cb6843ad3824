"""AdamW, its weight-decay groups and the learning-rate schedule."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from dydiff_dist.training.config import TrainingConfig


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices decayed, biases and other vectors not."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """torch's AdamW, its fused kernel on GPUs: it needs no compiler on the machine, unlike DeepSpeed's own."""
    on_gpu = next(network.parameters()).is_cuda
    groups = decay_groups(network, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=on_gpu)


def schedule_factor(step: int, config: TrainingConfig) -> float:
    """Learning rate at ``step`` (0-based) over the peak: linear warm-up, then half a cosine to 0, or constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule as torch's LambdaLR, advanced once per step by DeepSpeed's engine."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule_factor, config=config))


def num_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Total number of elements."""
    return sum(p.numel() for p in parameters)
