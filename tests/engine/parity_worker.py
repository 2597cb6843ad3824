"""Started on some ranks by test_parity.py: trains one small network in many ways, one after the other in the same
processes, and prints a line of JSON for each: losses, gradient norms and how far the average lags behind.

A case is words joined by ":": the ZeRO stage, then any of
    bf16, fp16      precision
    acc             micro-batches half as large
    recompute       activation checkpointing of all blocks
    offload         optimizer in host memory; offload_param also the weights
    cpu_adam        DeepSpeed's own
    bad             before the third step a batch whose loss is NaN on the last rank, to be passed over
"""

import json
import os
import sys

import torch

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine
from dydiff_dist.models import ExecutionConfig, InputSizes, VideoTransformerConfig
from dydiff_dist.ranks.collectives import agree_max, sum_over_ranks
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.world import read_world

SAMPLES, STEPS = 4, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def batches(seed: int) -> dict[str, torch.Tensor]:
    """A global batch of noisy frames, timesteps, history and target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(frames):
        return torch.randn(SAMPLES, frames, 2, 4, 4, generator=generator)

    timesteps = torch.randint(0, 1000, (SAMPLES,), generator=generator)
    return {"z": draw(3), "history": draw(1), "target": draw(3), "timesteps": timesteps}


def build(words: list[str], world):
    torch.manual_seed(0)
    model = VideoTransformerConfig(width=16, depth=2, num_heads=2, patch_size=2)
    sizes = InputSizes(num_frames=3, num_history_frames=1, num_channels=2, height=4, width=4)
    network = model.build(sizes, ExecutionConfig(checkpoint_fraction=float("recompute" in words)))
    for layer in (network.head, *(block.mlp.modulation for block in network.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.1)  # zero at the start, they would hide what lies before them
    zero = {"stage": int(words[0]), "reduce_bucket_size": 500}  # smaller than the network: several buckets
    if "offload" in words or "offload_param" in words:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "offload_param" in words:
        zero["offload_param"] = {"device": "cpu"}
    training = OptimizationConfig(
        steps=10,
        global_batch_size=SAMPLES,
        micro_batch_per_gpu=SAMPLES // world.world_size // (2 if "acc" in words else 1),
        learning_rate=0.01,
        weight_decay=0.1,
        warmup_steps=2,
        gradient_clipping=0.5,
        precision=next((word for word in words if word in DTYPES), "fp32"),
        optimizer="deepspeed_cpu_adam" if "cpu_adam" in words else "adamw",
    )
    return DeepSpeedEngine(network, training, {"zero_optimization": zero}, world), training


def forward_backward(engine, training, batch, world) -> torch.Tensor:
    """This rank's micro-batches; returns the mean loss over all ranks, without the update."""
    share = {name: values.chunk(world.world_size)[world.rank] for name, values in batch.items()}
    micro = {name: values.split(training.micro_batch_per_gpu) for name, values in share.items()}
    losses, dtype = [], DTYPES[training.precision]
    for number in range(len(micro["z"])):
        z, history, target, timesteps = (micro[name][number] for name in ("z", "history", "target", "timesteps"))
        output = engine(z.to(dtype), timesteps, history=history.to(dtype))
        losses.append((output.float() - target).square().mean())
        engine.backward(losses[-1])
    return sum_over_ranks(torch.stack(losses).detach().mean()) / world.world_size


def train(case: str, world) -> dict:
    from dydiff_dist.engine.ema import EMA

    words = case.split(":")
    engine, training = build(words, world)
    averages = {"ema": EMA(engine.partitions, 0.9), "ema_0.2": EMA(engine.partitions, 0.2)}
    losses, norms, skipped = [], [], 0
    for step in range(STEPS):
        if step == 2 and "bad" in words:
            batch = batches(99)
            batch["target"][-1] = float("nan")
            forward_backward(engine, training, batch, world)
            assert agree_max(int(not engine.gradients_are_finite())) == (1,), "NaN in the gradients went unnoticed"
            engine.discard()
            assert not engine.deepspeed.was_step_applied()
        while True:
            loss = forward_backward(engine, training, batches(step), world)
            finite = agree_max(int(not engine.gradients_are_finite())) == (0,)
            assert finite or "fp16" in words
            if engine.finish():
                break
            skipped += 1  # the search for the loss scale
        losses.append(float(loss))
        norms.append(engine.gradient_norm())
        for ema in averages.values():
            ema.update(step + 1)
    weights = engine.partitions.gather(engine.partitions.weights)
    lags = {name: _distance(ema.gather(), weights) for name, ema in averages.items()}
    return {"case": case, "losses": losses, "norms": norms, "lags": lags, "skipped": skipped}


def _distance(one: dict, other: dict) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5


if __name__ == "__main__":
    DeepSpeedEngine.prepare()
    world = read_world()
    torch.set_num_threads(1)
    start_process_group(world, timeout_minutes=1)
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True  # slow on CPUs without fp16 products, but right
    for case in sys.argv[1:]:
        result = train(case, world)
        if world.is_main:
            print(json.dumps(result), flush=True)
    torch.distributed.destroy_process_group()
    os._exit(0)  # DeepSpeed's atexit hooks take seconds and have nothing left to do
