"""Memory of one rank: what stands all the time, and what the phase of a step adds that needs most.

What an engine holds is its own to say (`Engine.footprint`); it was measured (tests/training/test_memory_estimate.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.footprint import Bytes, Footprint
from dydiff_dist.training.config import BaseRunConfig

_BATCH_BYTES = 6 * 4
"""Of an element of a micro-batch, around the network: frames, noisy frames, target, output, its gradient, and one
float32 more in between."""


def footprint_of(config: BaseRunConfig, world_size: int, on_gpu: bool = True) -> Footprint:
    """What a run asks of each of ``world_size`` ranks, be they GPUs or processes on a CPU.

    Raises:
        ValueError: the engine doesn't say, or the batch sizes don't fit the ranks.
    """
    return ENGINES[config.engine].footprint(
        config.training,
        config.engine_options,
        world_size=world_size,
        ranks_per_sample=config.ranks_per_sample,
        on_gpu=on_gpu,
    )


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank at the moment of the step that needs most."""

    parts: Bytes
    """Weights, gradients, optimizer, EMA, activations, buffers; those of the phase that is named."""
    phase: str
    """When the peak is reached."""
    host_parts: Bytes
    """What is offloaded to the host's memory, per rank."""

    @property
    def peak(self) -> int:
        """Bytes of all ``parts`` together."""
        return sum(self.parts.values())


def estimate_memory(
    footprint: Footprint, parameter_sizes: Sequence[int], activation_bytes: float, batch_elements: int
) -> MemoryEstimate:
    """The peak of a training step on one rank.

    Args:
        footprint: of the run.
        parameter_sizes: elements of each parameter, P together.
        activation_bytes: peak of a micro-batch's activations on this rank.
        batch_elements: elements of a micro-batch's frames, B S C H W.
    """
    memory = footprint.memory(parameter_sizes, round(activation_bytes + _BATCH_BYTES * batch_elements))
    phase = max(memory.phases, key=lambda name: sum(memory.phases[name].values()))
    return MemoryEstimate(parts={**memory.standing, **memory.phases[phase]}, phase=phase, host_parts=memory.on_host)
