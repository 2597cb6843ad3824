"""Trains a forecaster of few steps on the score of its ensembles, mostly from a trained one.

    python tools/train_fewstep.py configs/turbulence_fewstep.json
    deepspeed --num_gpus 2 tools/train_fewstep.py configs/turbulence_fewstep.json init_from=null training.steps=2000

The same command again resumes the run from its last checkpoint.
"""

from dydiff_dist.training.second_start import refuse_second_start

if __name__ == "__main__":
    refuse_second_start()
    from dydiff_dist.tasks.fewstep_task import FewStepTask
    from dydiff_dist.training.command import run_training

    run_training(FewStepTask, __doc__)
