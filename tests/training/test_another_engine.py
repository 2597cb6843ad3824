"""What another engine costs: a subclass of `Engine` and a line in `ENGINES`. Here plain torch on one rank, with the
same losses as DeepSpeed. This file is also the training program that has the line."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from run_commands import TRAIN, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dydiff_dist.engine.config import OptimizationConfig, accumulation_steps
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.optimizer import build_schedule, move_schedule, torch_adamw
from dydiff_dist.engine.partitions import WholeParameters
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.command import run_training
from dydiff_dist.training.config import load_config


class PlainEngine(Engine):
    """Torch alone, float32, one rank."""

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


def scalars(folder, name: str) -> np.ndarray:
    """A scalar of every step, as TensorBoard has it (float32)."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return np.array([event.value for event in events.Scalars(name)])


@pytest.mark.slow
def test_the_same_trainer_drives_another_engine(tiny_config, tmp_path):
    runs = {name: tmp_path / name for name in ("deepspeed", "plain")}
    own = {
        "deepspeed": [TRAIN, tiny_config, "deepspeed.zero_optimization.stage=0"],
        "plain": [__file__, tiny_config, "engine=plain", "deepspeed={}"],
    }
    for name, folder in runs.items():
        done = run([sys.executable, *own[name], f"output_dir={folder}"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "validation CRPS" in done.stdout and (folder / "model" / "model.safetensors").is_file()
    for name in ("loss/train", "optimizer/gradient_norm", "optimizer/learning_rate", "validation/loss"):
        plain, deepspeed = (scalars(runs[engine], name) for engine in ("plain", "deepspeed"))
        assert len(plain) == (1 if name.startswith("validation") else 6)
        # float32 sums in another order; six steps of Adam let that grow to a few units of the last place
        np.testing.assert_allclose(plain, deepspeed, rtol=1e-5, err_msg=name)
    # and it resumes: the second half again, from the checkpoint of the first
    command = [sys.executable, *own["plain"], f"output_dir={tmp_path / 'halves'}"]
    assert run([*command, "training.steps=6", "training.schedule=constant"]).returncode == 0
    whole = scalars(tmp_path / "halves", "loss/train")
    stopped = [*command[:-1], f"output_dir={tmp_path / 'again'}", "training.schedule=constant"]
    assert run([*stopped, "training.steps=3"]).returncode == 0
    resumed = run([*stopped, "training.steps=6"])
    assert resumed.returncode == 0 and "resumed after step 3" in resumed.stdout
    assert np.array_equal(scalars(tmp_path / "again", "loss/train"), whole)


def test_an_engine_is_a_name_of_the_registry(tiny_config, monkeypatch):
    with pytest.raises(ValueError, match="engine is 'plain'; it must be one of deepspeed"):
        load_config(tiny_config, RunConfig, ["engine=plain"])
    monkeypatch.setitem(ENGINES, "plain", PlainEngine)
    with pytest.raises(ValueError, match="the section deepspeed is for engine 'deepspeed', it is 'plain'; remove"):
        load_config(tiny_config, RunConfig, ["engine=plain"])
    assert load_config(tiny_config, RunConfig, ["engine=plain", "deepspeed={}"]).engine_options == {}
    assert load_config(tiny_config, RunConfig).engine_options == {"zero_optimization": {"stage": 2}}


if __name__ == "__main__":
    ENGINES["plain"] = PlainEngine
    run_training(DiffusionTask, "forecasters' training with one more engine")
