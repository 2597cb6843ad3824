"""Another engine: plain torch on one rank, in float32. As a program it is forecasters' training that can use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.engine.config import OptimizationConfig, accumulation_steps
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.footprint import ADAMW_BYTES, AVERAGE_BYTES, Footprint, Memory, UpdateTraffic
from dydiff_dist.engine.optimizer import build_schedule, move_schedule, torch_adamw
from dydiff_dist.engine.partitions import WholeParameters
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.command import run_training


@dataclass(frozen=True, kw_only=True)
class PlainFootprint(Footprint):
    """Everything in float32 on every rank; gradients are reduced once a step."""

    def memory(self, parameter_sizes: Sequence[int], activation_bytes: int) -> Memory:
        whole = 4 * sum(parameter_sizes)
        return Memory(
            standing={"weights": whole, "optimizer": 2 * whole, "EMA": whole},
            phases={"backward pass": {"gradients": whole, "activations": activation_bytes, "buffers": 0}},
        )

    def update_traffic(self, num_params: int) -> UpdateTraffic:
        return UpdateTraffic(
            device={"optimizer": ADAMW_BYTES * num_params, "moving average": AVERAGE_BYTES * num_params}
        )

    def communication(self, num_params: int, num_layers: int) -> tuple[float, int]:
        return 2 * 4 * num_params * (self.world_size - 1) / self.world_size, 1


class PlainEngine(Engine):
    """Torch alone."""

    def __init__(self, network: nn.Module, training: OptimizationConfig, options: Mapping[str, Any], world: World):
        self.module = network.to(world.device)
        self.optimizer = torch_adamw(network, training)
        self.schedule = build_schedule(self.optimizer, training)
        self.partitions = WholeParameters(network, self.optimizer, world.device)
        self.accumulation = accumulation_steps(training, world.num_replicas)
        self.clipping, self.norm = training.gradient_clipping, float("nan")

    @classmethod
    def check(cls, training: OptimizationConfig, options: Mapping[str, Any], device_type: str) -> None:
        if training.precision != "fp32":
            raise ValueError(f"training.precision is {training.precision!r}; engine 'plain' trains in fp32")

    @classmethod
    def state_bytes(
        cls, num_params: int, world_size: int, training: OptimizationConfig, options: Mapping[str, Any]
    ) -> dict[str, int]:
        return {
            name: 4 * num_params * n for name, n in {"weights": 1, "gradients": 1, "optimizer": 2, "EMA": 1}.items()
        }

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
        return PlainFootprint(
            world_size=world_size,
            accumulation=accumulation_steps(training, world_size // ranks_per_sample),
            overlaps=False,
        )

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        return "plain torch"

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.module(*args, **keywords)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def gradients_are_finite(self) -> bool:
        return bool(torch.nn.utils.get_total_norm(p.grad for p in self.module.parameters()).isfinite())

    def finish(self) -> bool:
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping))
        self.optimizer.step()
        self.schedule.step()
        self.discard()
        return True

    def discard(self) -> None:
        self.optimizer.zero_grad()

    def gradient_norm(self) -> float:
        return self.norm

    def learning_rate(self) -> float:
        return self.schedule.get_last_lr()[0]

    def numbers(self) -> dict[str, Any]:
        return {"schedule_steps": self.schedule.last_epoch}

    def restore_numbers(self, numbers: Mapping[str, Any]) -> None:
        move_schedule(self.schedule, numbers["schedule_steps"])


if __name__ == "__main__":
    ENGINES["plain"] = PlainEngine
    run_training(DiffusionTask, __doc__)
