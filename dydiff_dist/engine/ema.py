"""Exponential moving average of the weights, kept in float32 where each rank's optimizer keeps its share of them.

Nothing is gathered to update it, so it costs 4 bytes per parameter over all ranks (per rank under ZeRO-0) and no
communication. Its shards are the optimizer's own, see ``engine/deepspeed/partitions.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dydiff_dist.engine.deepspeed.partitions import engine_shards


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after ``step`` (1-based): grows from 1/10 so that early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class ShardedEMA:
    """Moving averages of the float32 weights of a DeepSpeed engine, sharded like its optimizer.

    The first is called ``ema`` in checkpoints, further ones ``ema_DECAY``.

    Args:
        engine: an initialised DeepSpeed engine that `engine_shards` covers.
        decay: asymptotic decay per step.
        more_decays: of further averages.
    """

    def __init__(self, engine, decay: float, more_decays: Sequence[float] = ()):
        self._engine_shards = engine_shards(engine)
        self._decays = {"ema": decay, **{f"ema_{more:g}": more for more in more_decays}}
        self._averages = {
            name: [shard.detach().clone() for shard in self._engine_shards.weights] for name in self._decays
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the weights after optimizer step ``step`` (1-based)."""
        for name, decay in self._decays.items():
            torch._foreach_lerp_(self._averages[name], self._engine_shards.weights, 1 - decay_at(step, decay))

    def averages(self) -> dict[str, list[Tensor]]:
        """This rank's shards of every average, by its name in a checkpoint; to be written to in place."""
        return self._averages

    def gather(self, name: str = "ema") -> dict[str, Tensor]:
        """The full averaged weights by parameter name, float32 on the CPU, and this rank's buffers as they are.
        Collective: call it on every rank."""
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self._engine_shards.buffers().items()}
        return {**self._engine_shards.gather(self._averages[name]), **buffers}
