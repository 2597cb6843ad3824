"""Started by test_kill.py: trains a run whose processes are killed again and again, and the same run undisturbed.

    python kill_server.py CONFIG NUM_RANKS NUM_KILLS SEED

Importing torch and DeepSpeed is what a start costs, so this process imports them once and forks the ranks of each life.
The ranks are real processes with the real trainer; they tell, through a pipe, of each step and of each stage of a
save, and this process kills them (SIGKILL) a random moment after a random such event. Ends with one JSON line.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints import store as checkpoint
from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import make_plan
from dydiff_dist.training.trainer import Trainer

MOST_EVENTS = 30
"""A life ends after at most so many events: two to three checkpoints of one rank."""
LONGEST_SEC = 0.03
"""... and at most so much time after the last of them."""


def tell_of(tell, owner, name: str, event: str) -> None:
    """Makes the function ``owner.name`` tell of its beginning."""
    function = getattr(owner, name)

    def telling(*arguments, **options):
        tell(event)
        return function(*arguments, **options)

    setattr(owner, name, telling)


def train(config: str, changes: list[str], rank: int, num_ranks: int, port: int, pipe: int) -> None:
    """One rank's life."""

    def tell(event: str) -> None:
        os.write(pipe, f"{event}\n".encode())

    tell("start")
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    tell_of(tell, Trainer, "_update", "step")
    tell_of(tell, checkpoint, "write_tensor_file", "save: write")
    tell_of(tell, checkpoint, "file_sha256", "save: read back")
    tell_of(tell, checkpoint_folder, "write_marker", "save: mark")
    tell_of(tell, checkpoint_folder, "seal", "save: seal")
    tell_of(tell, checkpoint_folder, "replace_folder", "save: rename")
    tell_of(tell, checkpoint, "write_text", "save: latest")
    tell_of(tell, checkpoint.CheckpointStore, "_prune", "save: prune")
    torch.set_num_threads(1)
    task = DiffusionTask(make_plan(load_config(config, RunConfig, changes), read_world()))
    with Trainer(task) as trainer:
        if rank == 0:
            tell(f"resume {trainer.step}")
        trainer.train()


def fork(rank: int, *arguments) -> int:
    """Starts one rank; returns its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        train(arguments[0], arguments[1], rank, *arguments[2:])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # as a killed process would leave this one's files alone


def live(config: str, changes: list[str], num_ranks: int, chance: random.Random | None) -> tuple[list[str], bool]:
    """One life of all ranks; killed if ``chance`` is given. Returns the events, and whether it came to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    read_end, write_end = os.pipe()
    ranks = [fork(rank, config, changes, num_ranks, port, write_end) for rank in range(num_ranks)]
    os.close(write_end)
    last_event = chance.randint(1, MOST_EVENTS) if chance else None
    events: list[str] = []
    with open(read_end) as pipe:
        for line in pipe:
            events.append(line.strip())
            if len(events) == last_event:
                break
        else:
            statuses = [os.waitpid(process, 0)[1] for process in ranks]
            assert not any(statuses), f"a life ended by itself with {statuses}; its last events: {events[-5:]}"
            return events, True
        # the ranks die together, or one of them a moment before the other
        pauses = [chance.uniform(0, LONGEST_SEC) if chance.random() < 0.5 else 0 for _ in ranks]
        for process, pause in zip(chance.sample(ranks, num_ranks), pauses, strict=True):
            time.sleep(pause)
            os.kill(process, signal.SIGKILL)
        for process in ranks:
            os.waitpid(process, 0)
        events += [line.strip() for line in pipe]
    return events, False


def main() -> None:
    """Lives until the run is done, with NUM_KILLS deaths on the way."""
    DeepSpeedEngine.prepare()
    __import__("deepspeed")  # once, for all lives
    config, num_ranks, num_kills, seed = sys.argv[1], *map(int, sys.argv[2:])
    folder = Path(load_config(config, RunConfig).output_dir)
    live(config, [f"output_dir={folder / 'undisturbed'}"], num_ranks, None)
    chance, moments, resumed, newest = random.Random(seed), Counter(), [], 0
    changes, done = [f"output_dir={folder / 'killed'}"], False
    while not done:
        events, done = live(config, changes, num_ranks, chance if sum(moments.values()) < num_kills else None)
        found = [int(event.split()[1]) for event in events if event.startswith("resume ")]
        assert all(step >= newest for step in found), f"resumed at {found} although {newest} was complete"
        resumed += found
        complete = folder / "killed" / "checkpoints" / checkpoint_folder.LATEST
        newest = checkpoint_folder.step_of(Path(complete.read_text().strip())) if complete.is_file() else 0
        if not done:
            moments[events[-1].split(" ")[0] if events[-1].startswith("resume") else events[-1]] += 1
    print(json.dumps({"kills": sum(moments.values()), "moments": moments, "resumed": resumed}))


if __name__ == "__main__":
    main()
