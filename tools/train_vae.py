"""Trains an autoencoder: frames to latents and back.

    python tools/train_vae.py configs/vae_turbulence_small.json
    deepspeed --num_gpus 2 tools/train_vae.py configs/vae_turbulence_small.json training.steps=200

The same command again resumes the run from its last checkpoint. The autoencoder, with the units of its latents, its
scores and a picture, is left in the run's model/; tools/encode_latents.py takes it from there.
"""

from dydiff_dist.training.second_start import refuse_second_start

if __name__ == "__main__":
    refuse_second_start()
    from dydiff_dist.tasks.autoencoder_task import AutoencoderTask
    from dydiff_dist.training.command import run_training

    run_training(AutoencoderTask, __doc__)
