"""Training autoencoders: what is learnt, that the discriminator starts late and trains nothing else, resume, export."""

import json
import sys
from pathlib import Path

import pytest
import torch
from run_commands import ROOT, TORCHRUN, run

from dydiff_dist.autoencoders import load_autoencoder
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.autoencoder_task import AutoencoderTask
from dydiff_dist.tasks.config import AutoencoderRunConfig
from dydiff_dist.training.config import parse_config
from dydiff_dist.training.run_plan import make_plan

TRAIN_VAE = ROOT / "tools" / "train_vae.py"


@pytest.fixture
def tree(tiny_shards, tmp_path):
    """An autoencoder of 16x16 velocities, 6 steps, the discriminator from step 4 on."""
    return {
        "output_dir": str(tmp_path / "vae"),
        "data": {
            "train": str(tiny_shards / "train"),
            "valid": str(tiny_shards / "valid"),
            "num_history_frames": 1,
            "num_future_frames": 1,
            "num_workers": 0,
        },
        "model": {
            "latent_channels": 3,
            "channels": [8, 8],
            "layers_per_block": 1,
            "norm_groups": 4,
            "mid_attention": False,
        },
        "loss": {"discriminator": {"start_step": 4, "width": 4, "depth": 2}},
        "training": {
            "steps": 6,
            "global_batch_size": 4,
            "micro_batch_per_gpu": 2,
            "learning_rate": 1e-2,
            "log_every_steps": 1,
            "checkpoint_every_steps": 3,
            "validate_every_steps": 3,
            "num_validation_samples": 3,
        },
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }


def make_task(tree):
    return AutoencoderTask(make_plan(parse_config(tree, "vae.json", AutoencoderRunConfig), read_world()))


def first_batch(task):
    return next(iter(TrainStream(task.plan.train_shards, task.config.data, 0, 4, 4)))


def test_the_loss_is_the_weighted_sum_of_its_parts(tree):
    tree["loss"] |= {"reconstruction": "l2", "kl_weight": 0.5}
    task = make_task(tree)
    torch.manual_seed(0)
    (part,) = task.losses(task.build_networks(), first_batch(task), step=0)
    values = part.per_sample
    assert set(values) == {"loss/train", "loss/reconstruction", "loss/kl"}
    torch.testing.assert_close(values["loss/train"], values["loss/reconstruction"] + 0.5 * values["loss/kl"])
    torch.testing.assert_close(part.loss.detach(), values["loss/train"].mean())


def test_the_discriminator_starts_late_and_each_network_trains_itself(tree):
    task = make_task(tree)
    torch.manual_seed(0)
    networks, batch = task.build_networks(), first_batch(task)
    assert [part.network for part in task.losses(networks, batch, step=3)] == ["model"]
    for part in task.losses(networks, batch, step=4):
        for network in networks.values():
            network.zero_grad()
        part.loss.backward()
        for name, network in networks.items():
            has_gradient = any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
            assert has_gradient == (name == part.network), (part.network, name)


def test_the_noise_of_a_sample_does_not_depend_on_its_batch(tree):
    task = make_task(tree)
    batch = first_batch(task)
    half = {"frames": batch["frames"][2:], "sample_index": batch["sample_index"][2:]}
    assert torch.equal(task._posterior_noise(half, 5), task._posterior_noise(batch, 5)[4:])


def test_training_reconstructs(tree):
    """Forty steps of plain Adam on one batch reduce the error to less than half."""
    task = make_task(tree)
    torch.manual_seed(0)
    networks, batch = task.build_networks(), first_batch(task)
    optimizer = torch.optim.Adam(networks["model"].parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        (part,) = task.losses(networks, batch, step=0)
        optimizer.zero_grad()
        part.loss.backward()
        optimizer.step()
        errors.append(float(part.loss))
    assert errors[-1] < 0.5 * errors[0]


def test_what_does_not_fit_is_refused_in_one_line(tree, tiny_shards):
    def refused(message, **sections):
        changed = {**tree, **{name: {**tree[name], **values} for name, values in sections.items()}}
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            make_task(changed)

    refused(r"frames of 16x16 are no multiple of 32", model={"channels": [8] * 6})
    refused("num_validation_samples is 9", training={"num_validation_samples": 9})
    refused("1 or 3 channels, the frames have 2", loss={"perceptual": {"weights": "vgg16.pth"}})
    refused("unknown key 'loss.discriminator.start'", loss={"discriminator": {"start": 3, "start_step": 3}})


@pytest.mark.long
@pytest.mark.distributed
def test_a_run_resumes_on_two_ranks_and_leaves_an_autoencoder(tree, tmp_path):
    config = tmp_path / "vae.json"
    config.write_text(json.dumps(tree))
    first = run([*TORCHRUN, TRAIN_VAE, config, "training.steps=3"])
    assert first.returncode == 0, first.stderr
    resumed = run([*TORCHRUN, TRAIN_VAE, config])
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 3" in resumed.stdout and "validation PSNR" in resumed.stdout
    folder = Path(tree["output_dir"])
    autoencoder = load_autoencoder(folder)
    assert autoencoder.description.facts["scores"]["samples"] == 3
    frames = torch.randn(1, 4, 2, 16, 16)
    assert autoencoder.to_frames(autoencoder.history_latents(frames)).shape == frames.shape
    assert (folder / "model" / "reconstruction.png").stat().st_size > 10_000
    exported = run([sys.executable, "tools/export.py", folder, "--out", tmp_path / "model"])
    assert exported.returncode == 2 and "trains no forecaster" in exported.stderr
