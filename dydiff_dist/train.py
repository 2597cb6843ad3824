"""Trains a forecaster.

    deepspeed --num_gpus 2 dydiff_dist/train.py configs/turbulence_small.json training.steps=200
    python dydiff_dist/train.py configs/turbulence_small.json --dry-run

The same command again resumes the run from its last checkpoint.
"""

from dydiff_dist.training.second_start import refuse_second_start

if __name__ == "__main__":
    refuse_second_start()
    from dydiff_dist.tasks.diffusion_task import DiffusionTask
    from dydiff_dist.training.command import run_training

    run_training(DiffusionTask, __doc__)
