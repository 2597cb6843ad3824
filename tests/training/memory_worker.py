"""Started by test_memory_estimate.py: trains each case in a fresh process and prints what its steps needed at most.

One line of JSON a case: the name, and bytes of resident memory beyond those before the trainer was built. Every process
is forked from one that has imported and used everything, so that code does not count as a step's memory.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine, import_deepspeed
from dydiff_dist.models import InputSizes, VideoTransformerConfig
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import make_plan

STEPS_TO_SEE = 2
"""The first step allocates the optimizer's state, the second finds it there."""


def status_bytes(key: str) -> int:
    """A line of /proc/self/status: VmRSS now, VmHWM at its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def warm_up() -> None:
    """Imports, and first uses of torch's libraries."""
    import dydiff_dist.training.trainer  # noqa: F401

    import_deepspeed()
    config = VideoTransformerConfig(width=16, depth=1, num_heads=2, patch_size=4)
    sizes = InputSizes(num_frames=6, num_history_frames=2, num_channels=2, height=16, width=16)
    z, timesteps, history, _ = sizes.example()
    config.build(sizes)(z, timesteps, history=history).sum().backward()


def train(name: str, config_path: str, overrides: list[str]) -> None:
    """Trains until the steps were seen, and says what they needed."""
    from dydiff_dist.training.trainer import Trainer

    world = read_world()
    task = DiffusionTask(make_plan(load_config(config_path, RunConfig, overrides), world))
    before = status_bytes("VmRSS")
    with Trainer(task) as trainer:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew: building is no part of a step
        threading.Thread(target=report, args=(name, before, trainer, world.is_main), daemon=True).start()
        trainer.train()


def report(name: str, before: int, trainer, speaks: bool) -> None:
    """Prints the process's highest mark once the steps were seen, and ends it."""
    while trainer.step < STEPS_TO_SEE:
        time.sleep(0.002)
    if speaks:
        line = json.dumps({"name": name, "bytes": status_bytes("VmHWM") - before})
        os.write(1, f"\n{line}\n".encode())  # at once, and apart from a line that the trainer may be printing
    else:
        time.sleep(2)  # whoever leaves first ends the exchange of the others
    os._exit(0)


if __name__ == "__main__":
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # each case meets at a port of its own
    DeepSpeedEngine.prepare()
    torch.set_num_threads(1)
    warm_up()
    for number, case in enumerate(json.loads(sys.argv[1])):
        if "MASTER_PORT" in os.environ:
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + number)
        child = os.fork()
        if child == 0:
            train(case["name"], case["config"], case["overrides"])
            os._exit(1)  # the thread ends the process
        os.waitpid(child, 0)
