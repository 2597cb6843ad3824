"""Exponential moving average of the weights, kept in float32 where each rank's optimizer keeps its share of them.

Nothing is gathered to update it, so it costs 4 bytes per parameter over all ranks (per rank under ZeRO-0) and no
communication.
"""

import torch
from torch import Tensor

from dydiff_dist.engine.partitions import Partitions


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after ``step`` (1-based): grows from 1/10 so that early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """Moving average of an engine's float32 weights, partitioned like them.

    Args:
        partitions: the engine's; the average starts from their present weights.
        decay: asymptotic decay per step.
    """

    def __init__(self, partitions: Partitions, decay: float):
        self._partitions, self.decay = partitions, decay
        self.weights: list[Tensor] = [weights.detach().clone() for weights in partitions.weights]
        """This rank's partitions of the average, flat; a checkpoint is read into them in place."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after optimizer step ``step`` (1-based)."""
        torch._foreach_lerp_(self.weights, self._partitions.weights, 1 - decay_at(step, self.decay))

    def gather(self) -> dict[str, Tensor]:
        """The whole averaged weights by parameter name, float32 on the CPU, and this rank's buffers as they are.
        Collective: call it on every rank."""
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self._partitions.buffers().items()}
        return {**self._partitions.gather(self.weights), **buffers}
