"""Started on one to three ranks by test_checkpoint_ranks.py, once for each job on its command line.

What an engine holds is asked of DeepSpeed's own public functions, so that the truth doesn't come from the code under
test. Prints one line ``ok JOB`` for each job on rank 0.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dydiff_dist.checkpoints.position import RunPosition
from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.world import read_world

STEPS, BATCH = 3, 6
STAGES = {
    "0": {"stage": 0},
    "1": {"stage": 1, "round_robin_gradients": True},
    "2": {"stage": 2},
    # some parameters gathered for good, some not; several sub-groups
    "3": {"stage": 3, "stage3_param_persistence_threshold": 10, "sub_group_size": 20},
    "2-offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "3-offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}


class Run:
    """A small training with its store: two parameter groups, odd sizes, a buffer, and a second network that is trained
    only after the save, as a discriminator is that starts late."""

    def __init__(self, folder: Path, stage: str, precision: str, world):
        from dydiff_dist.checkpoints.store import CheckpointStore
        from dydiff_dist.engine.ema import EMA
        from dydiff_dist.engine.state import EngineState

        torch.manual_seed(world.world_size)  # initial weights that no checkpoint has
        network = torch.nn.Sequential(
            torch.nn.Linear(7, 13), torch.nn.BatchNorm1d(13, affine=False), torch.nn.SiLU(), torch.nn.Linear(13, 3)
        )
        self.training = OptimizationConfig(
            steps=10,
            global_batch_size=BATCH,
            micro_batch_per_gpu=BATCH // world.world_size,
            learning_rate=0.05,
            warmup_steps=4,
            weight_decay=0.1,
            precision=precision,
        )
        section = {"zero_optimization": STAGES[stage], "zero_force_ds_cpu_optimizer": False}
        self.world, self.step = world, 0
        self.engine = DeepSpeedEngine(network, self.training, section, world)
        self.late = DeepSpeedEngine(torch.nn.Linear(7, 5), self.training, section, world)
        self.engines = {"model": self.engine, "late": self.late}
        self.ema = EMA(self.engine.partitions, 0.9)
        self.states = {
            "model": EngineState(self.engine, self.ema, world.rank),
            "late": EngineState(self.late, None, world.rank),
        }
        self.store = CheckpointStore(folder, world, self.states, keep_last=2)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.step)
            x = torch.randn(BATCH, 7, generator=generator).chunk(self.world.world_size)[self.world.rank]
            for engine in (self.engine, self.late) if self.step >= STEPS else (self.engine,):
                loss = engine(x.to(next(engine.module.parameters()).dtype)).float().square().mean()
                engine.backward(loss)
                engine.finish()
            self.step += 1
            self.ema.update(self.step)

    def save(self) -> None:
        self.store.save(RunPosition(self.step, BATCH * self.step), {"width": 13})
        self.store.wait()

    def load(self) -> None:
        position = self.store.load_latest(lambda config, data_sha256: None)
        assert position == RunPosition(STEPS, BATCH * STEPS), position
        self.step = position.step

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that must survive, whole."""

        found = {f"ema {name}": tensor for name, tensor in self.ema.gather().items()}
        for name, engine in self.engines.items():
            found |= {f"{name} {key}": tensor for key, tensor in state_of(engine.deepspeed).items()}
        # until a resume each rank has statistics of its own
        found = {name: t for name, t in found.items() if self.world.world_size == 1 or "running" not in name}
        return {name: tensor.detach().clone().cpu().contiguous() for name, tensor in found.items()}


def state_of(engine) -> dict[str, torch.Tensor]:
    """Weights, moments, buffers and numbers of an engine, whole."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        # DeepSpeed links the moments of all groups when the first group has made its step, the others' too early
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    found = dict(engine.module.named_buffers())
    for name, p in engine.module.named_parameters():
        found[f"weights {name}"] = p.data if stage == 0 else safe_get_full_fp32_param(p)
        for moment in ("exp_avg", "exp_avg_sq"):
            if stage == 0 and p in optimizer.state:
                found[f"{moment} {name}"] = optimizer.state[p][moment]
            elif stage > 0 and any(optimizer.optimizer.state.values()):
                found[f"{moment} {name}"] = safe_get_full_optimizer_state(p, moment)
    found["rate"] = torch.tensor(engine.get_lr(), dtype=torch.float64)
    found["counts"] = torch.tensor([engine.global_steps, engine.global_samples])
    return found


def assert_equal(found: dict, expected: dict, what: str) -> None:
    assert set(found) == set(expected), what
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{what}: {name}\n{found[name]}\n{tensor}"


def write(folder: Path, stage: str, precision: str, world) -> None:
    """Trains, saves, goes on; a fresh engine that loads goes on the same way, bit for bit."""
    run = Run(folder, stage, precision, world)
    run.train(STEPS)
    saved = run.state()
    run.save()
    run.train(STEPS)
    if world.is_main:
        save_file(saved, folder / "truth.safetensors")
    again = Run(folder, stage, precision, world)
    again.load()
    assert_equal(again.state(), saved, "loaded")
    again.train(STEPS)
    assert_equal(again.state(), run.state(), "went on")
    run.load()  # into an engine that is further on: a roll-back, where moments of zero stand for none
    rolled_back = run.state()
    assert_equal({name: rolled_back.pop(name) for name in saved}, saved, "rolled back")
    assert not any(tensor.any() for tensor in rolled_back.values()), rolled_back.keys()
    run.train(STEPS)
    assert_equal(again.state(), run.state(), "went on after a roll-back")


def convert(source: Path, target: Path, stage: str, precision: str, world) -> None:
    """Loads a checkpoint of other ranks and perhaps another stage, compares, and saves it from here."""
    run = Run(source, stage, precision, world)
    run.load()
    truth = load_file(source / "truth.safetensors")
    state = run.state()
    if precision == "bf16":  # what the network computes with is what the masters say
        import deepspeed

        for name, p in run.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                assert torch.equal(p.data.cpu(), truth[f"model weights {name}"].bfloat16()), name
    assert_equal({name: state[name] for name in truth if name in state}, {k: truth[k] for k in truth if k in state}, "")
    run.store = type(run.store)(target, world, run.states, keep_last=2, asynchronous=False)
    run.save()
    if world.is_main:
        save_file(truth, target / "truth.safetensors")


if __name__ == "__main__":
    DeepSpeedEngine.prepare()
    world = read_world()
    torch.set_num_threads(1)
    start_process_group(world, timeout_minutes=1)
    for job in sys.argv[1:]:
        what = json.loads(job)
        if "source" in what:
            convert(Path(what["source"]), Path(what["target"]), what["stage"], what["precision"], world)
        else:
            write(Path(what["target"]), what["stage"], what["precision"], world)
        if world.is_main:
            print(f"ok {job}", flush=True)
    torch.distributed.destroy_process_group()
    os._exit(0)  # DeepSpeed's atexit hooks take seconds and have nothing left to do
