"""What planning asks of an engine before anything is built: memory by phase, traffic and communication of a step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ADAMW_BYTES = 7 * 4
"""A parameter's: AdamW reads gradient, weight and two moments and writes the latter three, float32."""
AVERAGE_BYTES = 3 * 4
"""A parameter's: a moving average reads weight and average and writes it."""

Bytes = dict[str, int]
"""By part: ``weights``, ``gradients``, ``optimizer``, ``EMA``, ``activations``, ``buffers``."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one rank holds in the course of a step."""

    standing: Bytes
    """On the device all the time: weights, optimizer and EMA."""
    phases: dict[str, Bytes]
    """Phase -> what it adds: gradients, activations and buffers."""
    on_host: Bytes = field(default_factory=dict)
    """In the host's memory."""


@dataclass(frozen=True, kw_only=True)
class UpdateTraffic:
    """Bytes that one rank moves in a step from its gradients to its new weights, by part."""

    device: Mapping[str, float] = field(default_factory=dict)
    """Within the device's memory."""
    host: Mapping[str, float] = field(default_factory=dict)
    """Within the host's, where parts of the update are done there."""
    transferred: float = 0.0
    """Between the two."""


@dataclass(frozen=True, kw_only=True)
class Footprint(ABC):
    """A run of an engine on one of its ranks, from its configuration alone."""

    world_size: int
    accumulation: int
    """Micro-batches of a step."""
    overlaps: bool
    """Whether gradients travel while the backward pass goes on."""

    @abstractmethod
    def memory(self, parameter_sizes: Sequence[int], activation_bytes: int) -> Memory:
        """Bytes on one rank.

        Args:
            parameter_sizes: elements of each parameter of the network.
            activation_bytes: peak of a micro-batch's activations on this rank.
        """

    @abstractmethod
    def update_traffic(self, num_params: int) -> UpdateTraffic:
        """What the update of ``num_params`` elements, of all parameters, moves through memory."""

    @abstractmethod
    def communication(self, num_params: int, num_layers: int) -> tuple[float, int]:
        """Bytes that each of several ranks sends in a step, and the number of collectives.

        A ring all-reduce of n bytes sends 2 n (N - 1) / N over N ranks, a reduce-scatter or all-gather half of it.

        Args:
            num_params: elements of all parameters.
            num_layers: blocks of the network.
        """

    def alternatives(self) -> "dict[str, Footprint]":
        """The same run with its state divided otherwise, by the name that `Engine.describe` gives such a division."""
        return {}

    def facts(self) -> dict[str, int]:
        """Numbers of the engine's own that belong to a plan, by their names in JSON."""
        return {}
