"""DeepSpeed's own AdamW where it is asked for and can be compiled, else torch's."""

import logging

import torch
from torch import nn

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.optimizer import decay_groups, torch_adamw
from dydiff_dist.quoting import first_line
from dydiff_dist.ranks.collectives import gather_objects

logger = logging.getLogger(__name__)


def build_optimizer(network: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """AdamW as configured; torch's where DeepSpeed's can't be compiled on every rank, and the log says why.
    Collective."""
    if config.optimizer == "adamw":
        return torch_adamw(network, config)
    reason = next(filter(None, gather_objects(_why_not_compiled(config.optimizer))), "")
    if reason:
        logger.warning("optimizer: torch's AdamW, because %s can't be compiled here: %s", config.optimizer, reason)
        return torch_adamw(network, config)
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    logger.info("optimizer: %s", config.optimizer)
    groups = decay_groups(network, config.weight_decay)
    if config.optimizer == "deepspeed_cpu_adam":
        return DeepSpeedCPUAdam(groups, adamw_mode=True, lr=config.learning_rate, betas=config.betas)
    return FusedAdam(groups, adam_w_mode=True, lr=config.learning_rate, betas=config.betas)


def _why_not_compiled(name: str) -> str:
    """Loads the compiled part of one of DeepSpeed's optimizers; "" if that works, else the reason in one line."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    builder = {"deepspeed_fused_adam": FusedAdamBuilder, "deepspeed_cpu_adam": CPUAdamBuilder}[name]()
    try:
        builder.load(verbose=False)
    except Exception as error:  # compilers fail in many ways
        return first_line(error)
    return ""
