"""Training an autoencoder with a perceptual loss: a backbone of random weights, in the format of the real ones."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_commands import ROOT, run
from safetensors.torch import save_file

from dydiff_dist.autoencoders.description import read_description
from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import ShardTask, Source
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.ranks.world import read_world
from dydiff_dist.strict_config import StrictConfig
from dydiff_dist.tasks.autoencoder_task import AutoencoderTask
from dydiff_dist.tasks.config import AutoencoderRunConfig
from dydiff_dist.training.config import parse_config
from dydiff_dist.training.run_plan import make_plan

WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, **dict.fromkeys((17, 19, 21, 24, 26, 28), 512)}
"""Output channels of VGG-16's convolutions, by their number in torchvision's file."""


class DiscSource(Source):
    """Grey frames of a bright disc that moves to the right."""

    name = "discs"

    def plan(self):
        return [ShardTask(split, f"{split}-000000.tar", (count,), 1) for split, count in (("train", 8), ("valid", 3))]

    def read(self, task):
        rows, columns = np.mgrid[:16, :16]
        for number in range(task.items[0]):
            frames = [np.hypot(rows - 4 - number, columns - 5 - s) < 4 for s in range(4)]
            yield Sample(f"{task.split}-{number}", (255 * np.stack(frames)[:, None]).astype(np.uint8))

    def schema(self, sample):
        return FrameSchema(num_frames=4, shape=(1, 16, 16), dtype="uint8")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """VGG-16's file with random weights."""
    path = tmp_path_factory.mktemp("backbone") / "vgg16.safetensors"
    generator, weights, channels = torch.Generator().manual_seed(0), {}, 3
    for number, width in WIDTHS.items():
        scale = (2 / (9 * channels)) ** 0.5  # keeps the variance of what follows a ReLU
        weights[f"features.{number}.weight"] = scale * torch.randn(width, channels, 3, 3, generator=generator)
        weights[f"features.{number}.bias"] = torch.zeros(width)
        channels = width
    save_file(weights, path)
    return path


@pytest.fixture
def tree(backbone, tmp_path):
    """Six steps on grey frames of 16x16, the perceptual loss five times as heavy as the pixels' error."""
    convert(DiscSource(StrictConfig()), tmp_path / "shards")
    return {
        "output_dir": str(tmp_path / "vae"),
        "data": {
            "train": str(tmp_path / "shards" / "train"),
            "valid": str(tmp_path / "shards" / "valid"),
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
        "loss": {"perceptual": {"weights": str(backbone), "weight": 5.0}},
        "training": {
            "steps": 6,
            "global_batch_size": 4,
            "micro_batch_per_gpu": 4,
            "learning_rate": 1e-2,
            "log_every_steps": 1,
            "checkpoint_every_steps": 3,
            "validate_every_steps": 0,
            "num_validation_samples": 2,
        },
        "deepspeed": {"zero_optimization": {"stage": 1}},
    }


def make_task(tree):
    return AutoencoderTask(make_plan(parse_config(tree, "vae.json", AutoencoderRunConfig), read_world()))


def test_the_perceptual_loss_is_learnt_and_its_backbone_is_not(tree):
    """Thirty steps on one batch reduce it to less than half; it takes its part in the total; the backbone stays."""
    task = make_task(tree)
    torch.manual_seed(0)
    networks = task.build_networks()
    batch = next(iter(TrainStream(task.plan.train_shards, task.config.data, 0, 4, 4)))
    optimizer = torch.optim.Adam(networks["model"].parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in task._perceptual.state_dict().items()}
    history = []
    for _ in range(30):
        (part,) = task.losses(networks, batch, step=0)
        values = {name.removeprefix("loss/"): value.mean() for name, value in part.per_sample.items()}
        torch.testing.assert_close(
            values["train"], values["reconstruction"] + 1e-6 * values["kl"] + 5 * values["perceptual"]
        )
        optimizer.zero_grad()
        part.loss.backward()
        optimizer.step()
        history.append(float(values["perceptual"]))
    assert history[-1] < 0.5 * history[0], history
    assert all(torch.equal(value, before[name]) for name, value in task._perceptual.state_dict().items())


def test_equal_frames_have_no_perceptual_loss(tree):
    task = make_task(tree)
    pixels = torch.randn(2, 1, 16, 16)
    parts = task._reconstruction_parts(pixels, pixels.clone(), torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    assert parts["perceptual"].tolist() == [0, 0]


def test_frames_that_are_too_small_for_the_backbone_are_refused(tree):
    with pytest.raises(ValueError, match="with vgg needs frames of at least 16 pixels, they are 8x16"):
        make_task({**tree, "data": {**tree["data"], "crop_size": [8, 16]}})
    with pytest.raises(FileNotFoundError, match=r"backbone nowhere\.pth does not exist"):
        make_task({**tree, "loss": {"perceptual": {"weights": "nowhere.pth"}}})


@pytest.mark.slow
def test_a_run_with_a_perceptual_loss_resumes_bit_for_bit(tree, tmp_path):
    config, folder = tmp_path / "vae.json", Path(tree["output_dir"])
    config.write_text(json.dumps(tree))
    command = [sys.executable, ROOT / "tools" / "train_vae.py", config]
    whole = run(command)
    assert whole.returncode == 0, whole.stderr
    assert "l1 + 1e-06 KL + 5 perceptual" in whole.stdout
    expected = read_description(folder).sha256  # covers the weights and the latents' units
    shutil.rmtree(folder / "checkpoints" / "step_000006")
    shutil.rmtree(folder / "model")
    resumed = run(command)
    assert resumed.returncode == 0 and "resumed after step 3" in resumed.stdout, resumed.stderr
    assert read_description(folder).sha256 == expected
