"""What is trained, apart from how: the trainer drives any `Task`.

A task says which networks there are, what one micro-batch costs each of them, and what to do with the averaged weights
now and then and at the end. Engines, gradient accumulation, the moving average, checkpoints, the data's position,
interruption and logging are the trainer's.

Letters: B samples of a micro-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from dydiff_dist.data.expected import check_expectation
from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.protocol import Engines
from dydiff_dist.training.config import AnyRunConfig, BaseRunConfig
from dydiff_dist.training.metrics import SampleCost
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.run_plan import RunPlan, check_validation_frames


@dataclass(frozen=True, kw_only=True)
class MicroLoss:
    """The loss of one network on one micro-batch."""

    loss: Tensor
    """Scalar that the trainer differentiates, a mean over samples."""
    per_sample: Mapping[str, Tensor]
    """Detached values per sample, (B,) each, kept until the end of the step for `Task.scalars`."""
    network: str = "model"
    """Which of the task's networks it trains."""


class Task(ABC, Generic[AnyRunConfig]):
    """One kind of training run. Construction checks all that can be checked without memory or other ranks.

    The network named ``model`` is the one that is averaged, validated and exported; a task may train others beside it,
    each with an engine and an optimizer of its own.

    Raises:
        ValueError: the configuration doesn't fit the data.
    """

    config_type: ClassVar[type[BaseRunConfig]]
    """The run configuration that this task reads."""

    def __init__(self, plan: RunPlan[AnyRunConfig]):
        self.plan, self.config = plan, plan.config
        self.check_data()

    def check_data(self) -> None:
        """Refuses training shards that are not as ``data.expect`` says, and validation shards unlike them.

        Raises:
            ValueError: the key of ``data`` or ``data.expect``, and what the shards have.
        """
        data, train, valid = self.config.data, self.plan.train_shards, self.plan.valid_shards
        if data.expect is not None:
            check_expectation(data.expect, train)
        if valid is not None:
            check_validation_frames(valid, data, train.schema)

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Lines for the printed plan: name -> what was resolved."""

    @abstractmethod
    def build_networks(self) -> dict[str, nn.Module]:
        """The networks by name, ``model`` first, on the CPU (or on torch's default device); weights come from torch's
        global generator, which the trainer has seeded."""

    def join_ranks(self, networks: dict[str, nn.Module]) -> None:
        """Called once the ranks have met, before the engines are built: connects networks that ranks share."""

    def sample_cost(self) -> SampleCost | None:
        """What a sample costs the networks, for the log's utilisation; None where no formula is known."""
        return None

    def training_of(self, network: str) -> OptimizationConfig:
        """The optimizer's settings of a network; batch sizes and steps must be those of ``config.training``."""
        return self.plan.config.training

    @abstractmethod
    def losses(self, engines: Engines, batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """The losses of one micro-batch, one after the other: the trainer differentiates each before it asks for the
        next, so a later one may build on an earlier one's output. A network that is named in one micro-batch must be
        named in all of the step, on every rank; one that is named in none is not updated.

        Args:
            engines: to be called like the networks; what is to be differentiated must go through them.
            batch: agreement 1 of docs/agreements.md, on the CPU.
            step: optimizer updates done so far, the step in the counter of all random numbers.
        """

    def scalars(self, parts: list[MicroLoss]) -> dict[str, Tensor]:
        """What a logging step writes: name -> (sum, count), float64 on the CPU, added over ranks before dividing.

        ``loss/train`` is the first and the one printed. Every rank returns the same names in the same order.

        Args:
            parts: this rank's losses of the step.
        """
        names = dict.fromkeys(name for part in parts for name in part.per_sample)
        return {
            name: sum_and_count(torch.cat([part.per_sample[name] for part in parts if name in part.per_sample]))
            for name in names
        }

    @abstractmethod
    def validate(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """Judges the averaged weights on the validation shards, which exist. Collective.

        Args:
            weights: of ``model``, by parameter name, float32 on the CPU.
        """

    def exported_facts(self) -> dict[str, Any]:
        """What an exported model must say of itself beside the run's configuration, as JSON types. Every checkpoint
        holds it too, so that tools/export.py needs no data."""
        return {}

    @abstractmethod
    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes the averaged weights for use outside training. Called on the main process only."""


def sum_and_count(values: Tensor) -> Tensor:
    """(sum, count) of per-sample values, (2,) float64 on the CPU."""
    values = values.detach().double()
    return torch.stack((values.sum(), torch.tensor(float(values.numel()), device=values.device))).double().cpu()
