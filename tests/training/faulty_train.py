"""The training program with one fault put into it: ``faulty_train.py KIND RANK BATCH[,BATCH…] CONFIG …``.

When rank RANK has read global batch BATCH it
    nan     finds NaN in its samples
    kill    is killed
    disk    is killed while the disk of the others hangs
    freeze  stands still with all its threads, as a machine that swaps
    stall   stays in its data for ever
    error   meets a mistake that only it can see
once each, except ``nan``, which belongs to the data.
"""

import os
import signal
import sys
import time
from pathlib import Path

from dydiff_dist.checkpoints.store import CheckpointStore
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.command import run_training

LOCAL_RANK = [sys.argv.pop(1)] if sys.argv[1].startswith("--local_rank") else []  # DeepSpeed's launcher puts it first
KIND, RANK, BATCHES = sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3].split(",")]


class FaultyTask(DiffusionTask):
    """Forecasters' training that a fault befalls."""

    def losses(self, engines, batch, step):
        if KIND == "disk" and self.plan.world.rank != RANK:
            CheckpointStore._write_share = lambda *share: time.sleep(3600)
        number = int(batch["sample_index"][0]) // self.config.training.global_batch_size
        if self.plan.world.rank == RANK and number in BATCHES:
            self.befall(batch)
        yield from super().losses(engines, batch, step)

    def befall(self, batch):
        if KIND == "nan":
            batch["frames"][0, 0] = float("nan")
            return
        done = Path(self.config.output_dir) / "fault_happened"
        if done.exists():
            return
        done.touch()
        if KIND in ("kill", "disk"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif KIND == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif KIND == "stall":
            time.sleep(3600)
        elif KIND == "error":
            raise ValueError("sample 7 of shard x.tar is damaged; restore the shard")


if __name__ == "__main__":
    sys.argv[1:4] = LOCAL_RANK
    run_training(FaultyTask, __doc__)
