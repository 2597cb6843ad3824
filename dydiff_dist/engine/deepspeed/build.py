"""Everything that touches DeepSpeed's engine."""

import logging
import os
import warnings

import torch
from torch import nn

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed.config import derive_deepspeed
from dydiff_dist.engine.optimizer import build_optimizer, build_schedule
from dydiff_dist.ranks.world import World


def quiet_deepspeed() -> None:
    """Called before DeepSpeed is first imported: says which accelerator it is to use and silences its chatter."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # DeepSpeed 0.19 calls collectives by names that newer torch renamed; each call would print a warning on each rank
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)


def build_engine(network: nn.Module, section: dict, training: OptimizationConfig, world: World):
    """DeepSpeed's engine around ``network``, with our AdamW and schedule.

    Args:
        network: on the CPU or already on ``world.device``.
        section: the ``deepspeed`` section of the run configuration.
    """
    import deepspeed

    # On CPUs DeepSpeed would compile its shared-memory collective at the first start, half a minute; gloo serves here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    network.to(world.device)
    optimizer = build_optimizer(network, training)
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=optimizer,
        lr_scheduler=build_schedule(optimizer, training),
        config=derive_deepspeed(section, training, world.world_size, world.ranks_per_sample),
    )
    return engine
