"""What the trainer, averages and checkpoints ask of an engine: the library that trains a network on all ranks together.

Another engine is a subclass in a folder of its own, a line in ``engines.py``, and a section of `BaseRunConfig` of its
name where it has options.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.footprint import Footprint
from dydiff_dist.engine.partitions import Partitions
from dydiff_dist.ranks.world import World


class Engine(ABC):
    """A network with its optimizer and learning-rate schedule, the same on all ranks. Building one is collective.

    A step is, on every rank alike: for each micro-batch calls and one `backward`, then `finish` or `discard`.

    Args:
        network: on the CPU or already on ``world.device``; its parameters may be replaced.
        training: batch sizes, precision, optimizer.
        options: the engine's section of the run configuration.
        world: the ranks, which have met.
    """

    module: nn.Module
    """The network itself. Calling it trains nothing; a pass that is to be differentiated goes through the engine."""
    partitions: Partitions
    """Where its float32 weights and moments lie."""

    @abstractmethod
    def __init__(self, network: nn.Module, training: OptimizationConfig, options: Mapping[str, Any], world: World): ...

    @classmethod  # noqa: B027 (most engines have nothing to do)
    def prepare(cls) -> None:
        """Sets up the process, before anything of the engine's library is imported."""

    @classmethod
    @abstractmethod
    def check(cls, training: OptimizationConfig, options: Mapping[str, Any], device_type: str) -> None:
        """Refuses what the engine can't do; needs no other rank and no memory.

        Args:
            training: of the run.
            options: the engine's section.
            device_type: of each rank, ``cpu`` or ``cuda``.

        Raises:
            ValueError: the key, its value, and what to change.
        """

    @classmethod
    @abstractmethod
    def state_bytes(
        cls, num_params: int, world_size: int, training: OptimizationConfig, options: Mapping[str, Any]
    ) -> dict[str, int]:
        """Bytes on one rank of weights, gradients, optimizer and EMA, by these names.

        Args:
            num_params: elements of all parameters, of all the task's networks together.
            world_size: ranks that divide the state, as far as the engine divides it.
            training: of the run.
            options: the engine's section.
        """

    @classmethod
    def footprint(
        cls,
        training: OptimizationConfig,
        options: Mapping[str, Any],
        *,
        world_size: int,
        ranks_per_sample: int,
        on_gpu: bool,
    ) -> Footprint:
        """What a rank of such a run holds, moves and sends, for a plan; builds nothing.

        Args:
            training: of the run.
            options: the engine's section.
            world_size: all ranks.
            ranks_per_sample: that share their samples.
            on_gpu: whether ranks are GPUs, or processes on a CPU.

        Raises:
            ValueError: the engine doesn't say, or the batch sizes don't fit the ranks.
        """
        raise ValueError(
            f"the run's engine, {cls.__name__}, does not say what it needs; plan with another one, or give it the "
            "method footprint"
        )

    @classmethod
    @abstractmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """How the state is divided between ranks, in a few words."""

    @abstractmethod
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """The network's forward pass; one or several are followed by one `backward` of what came of them."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """The backward pass of one micro-batch, adding its gradient to the step's: a mean over the global batch.

        Args:
            loss: scalar, the mean over the micro-batch.
        """

    @abstractmethod
    def gradients_are_finite(self) -> bool:
        """Whether this rank's share of the step's gradient has no NaN or infinity, after the last backward pass.

        True where a loss scale is searched: infinities are part of that, and `finish` passes over such a step.
        """

    @abstractmethod
    def finish(self) -> bool:
        """Clips the gradient, updates the weights and moves on in the schedule; the step's gradient is gone then.

        Returns:
            False where the update was left out, as the loss scale was too high, and is lowered.

        Raises:
            SharedError: no loss scale is low enough.
        """

    @abstractmethod
    def discard(self) -> None:
        """Ends the step without an update: weights, moments and schedule stay, the gradient is gone."""

    @abstractmethod
    def gradient_norm(self) -> float:
        """Norm of the last step's gradient over all parameters, before clipping."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of the next update, as the schedule has it."""

    def loss_scale(self) -> float | None:
        """The present factor on the loss; None without loss scaling."""
        return None

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Counters, position in the schedule and loss scale, as JSON types, for a checkpoint; alike on every rank."""

    @abstractmethod
    def restore_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Takes what `numbers` gave. The learning rate follows from the schedule as it is configured now, so that a
        changed rate or length takes effect."""


Engines = Mapping[str, Engine | nn.Module]
"""Networks by name, within the engines that train them, or plain where a loss is all that is wanted."""
