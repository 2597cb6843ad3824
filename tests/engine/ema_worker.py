"""Started on several ranks by test_ema.py: trains a small network under one ZeRO stage and checks the EMA against one
process that keeps the whole average. Prints ``ema ok`` once per stage on rank 0."""

import os
import sys

import torch

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.world import read_world

STEPS, DECAY = 5, 0.9


def train(stage: int, precision: str, world) -> None:
    from dydiff_dist.engine.ema import EMA, decay_at

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.SiLU(), torch.nn.Linear(13, 3))
    training = OptimizationConfig(
        steps=STEPS,
        global_batch_size=4,
        micro_batch_per_gpu=4 // world.world_size,
        learning_rate=0.05,
        precision=precision,
    )
    engine = DeepSpeedEngine(network, training, {"zero_optimization": {"stage": stage}}, world)
    ema = EMA(engine.partitions, DECAY)
    fresh = EMA(engine.partitions, 0.0)  # decay 0: after an update its gathered weights are the live float32 weights
    expected = ema.gather()
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        x = torch.randn(4, 7, generator=generator).chunk(world.world_size)[world.rank]
        loss = engine(x.to(next(engine.module.parameters()).dtype)).float().square().mean()
        engine.backward(loss)
        engine.finish()
        ema.update(step)
        fresh.update(step)
        live = fresh.gather()
        for name, weight in live.items():
            expected[name].lerp_(weight, 1 - decay_at(step, DECAY))
    averaged = ema.gather()
    moved = max((averaged[name] - live[name]).abs().max().item() for name in live)
    assert moved > 1e-3, f"the average did not lag behind the weights ({moved})"
    for name, weight in expected.items():
        assert torch.equal(averaged[name], weight), f"stage {stage}, {name}"
    if stage == 0:
        for name, parameter in network.named_parameters():
            assert torch.equal(live[name], parameter.data), name
    if world.is_main:
        print(f"ema ok: stage {stage}, {precision}", flush=True)


if __name__ == "__main__":
    DeepSpeedEngine.prepare()
    world = read_world()
    torch.set_num_threads(1)
    start_process_group(world, timeout_minutes=1)
    for case in sys.argv[1:]:
        stage, precision = case.split(":")
        train(int(stage), precision, world)
    torch.distributed.destroy_process_group()
    os._exit(0)  # DeepSpeed's atexit hooks take seconds and have nothing left to do
