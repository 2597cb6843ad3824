"""Exponential moving average of the weights, kept in float32 where each rank's optimizer keeps its share of them.

Nothing is gathered to update it, so it costs 4 bytes per parameter over all ranks (per rank under ZeRO-0) and no
communication. Its shards are the optimizer's own, see ``training/shards.py``.
"""

import torch
from torch import Tensor

from dydiff_dist.training.shards import engine_shards


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after ``step`` (1-based): grows from 1/10 so that early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class ShardedEMA:
    """Moving average of the float32 weights of a DeepSpeed engine, sharded like its optimizer.

    Args:
        engine: an initialised DeepSpeed engine in float32, or in bf16 with ZeRO stage 1 to 3.
        decay: asymptotic decay per step.
    """

    def __init__(self, engine, decay: float):
        self._engine_shards, self.decay = engine_shards(engine), decay
        self.shards = [shard.detach().clone() for shard in self._engine_shards.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after optimizer step ``step`` (1-based)."""
        torch._foreach_lerp_(self.shards, self._engine_shards.weights, 1 - decay_at(step, self.decay))

    def averages(self) -> dict[str, list[Tensor]]:
        """This rank's shards of every average, by its name in a checkpoint; to be written to in place."""
        return {"ema": self.shards}

    def gather(self) -> dict[str, Tensor]:
        """The full averaged weights by parameter name, float32 on the CPU, and this rank's buffers as they are.
        Collective: call it on every rank."""
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self._engine_shards.buffers().items()}
        return {**self._engine_shards.gather(self.shards), **buffers}
