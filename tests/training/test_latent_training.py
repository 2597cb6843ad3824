"""Training on latents: the same numbers pre-encoded and encoded in every step, and one line for what doesn't fit."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from run_commands import TRAIN, run

from dydiff_dist.autoencoders import AutoencoderModelConfig, build_network, save_autoencoder
from dydiff_dist.autoencoders.encode import encode_shards, open_splits
from dydiff_dist.autoencoders.encode_source import EncodeSource
from dydiff_dist.autoencoders.files import load_autoencoder
from dydiff_dist.benchmarks.training_step import measure_speed_up
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.forecasting import CaseReader, ForecastStore, forecast_case, load_forecaster, save_pretrained
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.tasks.latents import EncodedFrames, StoredLatents
from dydiff_dist.training.config import parse_config
from dydiff_dist.training.run_plan import make_plan


def write_autoencoder(folder: Path, shards: ShardSet, seed: int = 0) -> str:
    """A small periodic autoencoder with random weights for 16x16 velocities; returns its hash."""
    config = AutoencoderModelConfig(
        latent_channels=3, channels=(8, 8), layers_per_block=1, norm_groups=4, mid_attention=False, periodic=True
    )
    torch.manual_seed(seed)
    network = build_network(config, num_channels=2, frame_size=16)
    description = save_autoencoder(
        folder,
        network,
        periodic=True,
        frames=shards.schema,
        pixel_shift=shards.manifest.shift,
        pixel_scale=shards.manifest.scale,
        latent_channels=3,
        spatial_ratio=2,
        latent_shift=(0.1, 0.0, -0.1),
        latent_scale=(0.5, 0.6, 0.7),
        facts={"loss": {"perceptual": {"weights": "/elsewhere/vgg.pth"}}},
    )
    return description.sha256


@dataclass
class Latents:
    """Latents of ``tiny_shards`` and the autoencoder that made them."""

    folder: Path
    autoencoder: Path
    sha256: str


@pytest.fixture(scope="module")
def latents(tiny_shards, tmp_path_factory) -> Latents:
    folder = tmp_path_factory.mktemp("latents")
    splits = open_splits(str(tiny_shards))
    sha256 = write_autoencoder(folder / "autoencoder", splits["train"])
    autoencoder = load_autoencoder(folder / "autoencoder")
    encode_shards(EncodeSource(splits, autoencoder), folder)
    return Latents(folder, folder / "autoencoder", sha256)


@pytest.fixture
def tree(tiny_config, latents):
    """The tiny run on pre-encoded latents."""
    tree = json.loads(tiny_config.read_text())
    tree["data"]["train"] = str(latents.folder / "train")
    tree["model"]["patch_size"] = 2
    tree["autoencoder"] = {"path": str(latents.autoencoder)}
    frames = {"num_frames": 6, "shape": [3, 8, 8], "dtype": "float16", "has_logvar": True}
    tree["data"]["expect"] = {"num_samples": 24, "frames": frames}
    return tree


def make_task(tree, **overrides):
    for key, value in overrides.items():
        section, name = key.split("__")
        tree = {**tree, section: {**tree[section], name: value}}
    return DiffusionTask(make_plan(parse_config(tree, "tiny.json", RunConfig), read_world()))


def first_losses(task):
    """The losses of the first two steps' batches through an untrained network that is not zero."""
    torch.manual_seed(0)
    network = task.build_networks()["model"]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    shards, data = task.plan.train_shards, task.config.data
    stream = iter(TrainStream(shards, data, seed=0, global_batch_size=4, micro_batch_size=4))
    losses = []
    for step in range(2):
        batch = next(stream)
        with torch.no_grad():
            losses += [part.per_sample["loss/train"] for part in task.losses({"model": network}, batch, step)]
    return torch.cat(losses)


def test_pre_encoded_and_online_latents_give_the_same_losses(tree, tiny_shards):
    """Up to float16, in which mean and log-variance are stored; the augmenting shifts are by whole latent pixels only
    where the latents are shifted, so they are left out here."""
    stored = make_task(tree, data__augmentation={})
    online = make_task(tree, data__augmentation={}, data__train=str(tiny_shards / "train"))
    assert (type(stored.frames), type(online.frames)) == (StoredLatents, EncodedFrames)
    torch.testing.assert_close(first_losses(online), first_losses(stored), rtol=2e-3, atol=2e-3)


def test_both_kinds_of_step_are_timed_with_the_runs_own_configuration(tree, latents, tiny_shards):
    config = parse_config(tree, "tiny.json", RunConfig)
    folders = (latents.folder / "train", tiny_shards / "train", latents.autoencoder)
    seconds = measure_speed_up(config, *folders, num_steps=1)
    assert list(seconds) == ["pre-encoded", "online"]
    assert all(len(each) == 1 and each[0] > 0 for each in seconds.values())


@pytest.mark.parametrize("prediction, gamma", [("x0", "cosine"), ("v", "none")])
def test_the_fused_draw_is_the_references(tree, prediction, gamma):
    """Fused noising draws the posterior from the same counters as plain torch; standard diffusion runs unfused."""
    diffusion = {"prediction": prediction, "gamma_schedule": gamma}
    fused = make_task({**tree, "diffusion": diffusion})
    reference = make_task({**tree, "diffusion": diffusion, "kernels": {"backend": "reference"}})
    torch.testing.assert_close(first_losses(fused), first_losses(reference), rtol=1e-4, atol=1e-5)


def test_every_step_draws_the_posterior_anew(tree):
    task = make_task(tree)
    shards, data = task.plan.train_shards, task.config.data
    batch = next(iter(TrainStream(shards, data, seed=0, global_batch_size=4, micro_batch_size=4)))
    timesteps = torch.zeros(4, dtype=torch.long)
    first, second, again = (task._noise(batch, timesteps, step)[2].clone() for step in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, second)
    deviation = (first - batch["frames"]) / (0.5 * batch["logvar"]).exp()
    # 4 x 6 x 3 x 8 x 8 = 4608 values: standard errors 0.015 of the mean and 0.01 of the deviation
    assert abs(float(deviation.mean())) < 0.06 and abs(float(deviation.std()) - 1) < 0.05


def test_latents_of_another_autoencoder_are_refused_with_both_hashes(tree, tiny_shards, latents, tmp_path):
    other = write_autoencoder(tmp_path / "other", ShardSet.open(tiny_shards / "train"), seed=1)
    with pytest.raises(ValueError, match=f"latents of autoencoder {latents.sha256}, the configured one is {other}"):
        make_task(tree, autoencoder__path=str(tmp_path / "other"))


def test_what_does_not_fit_is_refused_in_one_line(tree, latents, tiny_shards):
    with pytest.raises(ValueError, match=f"holds latents of autoencoder {latents.sha256}; set autoencoder.path"):
        make_task({**tree, "autoencoder": None})
    with pytest.raises(ValueError, match=r"data.valid .* holds latents"):
        make_task(tree, data__valid=str(latents.folder / "valid"))
    expect = {"num_samples": 24, "frames": {**tree["data"]["expect"]["frames"], "shape": [3, 4, 4]}}
    with pytest.raises(ValueError, match=r"data.expect.frames.shape is \(3, 4, 4\), .*train has \(3, 8, 8\)"):
        make_task(tree, data__expect=expect)
    with pytest.raises(ValueError, match="patch_size 3 does not divide frames of 8x8"):
        make_task(tree, model__patch_size=3)
    with pytest.raises(FileNotFoundError, match="train one with"):
        make_task(tree, autoencoder__path="nowhere")
    with pytest.raises(ValueError, match=r"frames of 15x16 are no multiple of 2"):
        make_task(tree, data__train=str(tiny_shards / "train"), data__crop_size=[15, 16], data__augmentation={})
    for needing, process in {"noise_like_errors_of": "standard", "frames_relative_to": "dydiff"}.items():
        diffusion = {"process": process, needing: "regression"}
        assert make_task({**tree, "diffusion": diffusion}).diffusion.table.num_timesteps == 1000
        with pytest.raises(ValueError, match=f"{needing} needs frame_autocovariance"):  # of frames yet to be encoded
            make_task({**tree, "diffusion": diffusion}, data__train=str(tiny_shards / "train"))
    with pytest.raises(ValueError, match="holds latents; forecasts start from frames"):
        CaseReader.open(latents.folder / "test", parse_config(tree, "tiny.json", RunConfig).data)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_on_latents_forecasts_frames(tree, latents, tiny_shards, tmp_path):
    """Through the commands: train with validation, forecast from frames, score; then from Python; then given away."""
    config, folder = tmp_path / "latent.json", Path(tree["output_dir"])
    config.write_text(json.dumps(tree))
    trained = run([sys.executable, TRAIN, config])
    assert trained.returncode == 0, trained.stderr
    assert "pre-encoded" in trained.stdout and "validation CRPS" in trained.stdout
    assert json.loads((folder / "model" / "config.json").read_text())["autoencoder_sha256"] == latents.sha256
    shards, out = tiny_shards / "test", tmp_path / "forecasts"
    made = run([sys.executable, "tools/forecast.py", folder, "--shards", shards, "--out", out, "--members", "2"])
    assert made.returncode == 0, made.stderr
    scored = run([sys.executable, "tools/evaluate.py", out])
    assert scored.returncode == 0 and "CRPS" in scored.stdout, scored.stderr
    assert ForecastStore.open(out).request.patch_pixels is None and "blockiness" not in scored.stdout  # the view moves
    fixed = [tmp_path / "fixed", "--members", "2", "--cases", "1", "--no-random-shifts"]
    assert run([sys.executable, "tools/forecast.py", folder, "--shards", shards, "--out", *fixed]).returncode == 0
    assert ForecastStore.open(fixed[0]).request.patch_pixels == 4  # patches of 2x2 latent pixels, each of 2x2 pixels
    assert "blockiness_truth" in run([sys.executable, "tools/evaluate.py", fixed[0]]).stdout
    case = CaseReader.for_model(folder, shards).read(1)
    forecast = forecast_case(load_forecaster(folder), case, num_members=2)
    assert forecast.members.shape == (2, *case.truth.shape)
    stored = np.load(out / "case_000001.npz")["members"]
    np.testing.assert_allclose(forecast.members, stored, rtol=1e-3, atol=1e-3)  # convolutions round by batch size
    given = save_pretrained(folder, tmp_path / "given")
    facts = json.loads((given / "autoencoder" / "autoencoder.json").read_text())["facts"]
    assert facts == {"loss": {"perceptual": {"weights": "vgg.pth"}}}
    np.testing.assert_array_equal(forecast_case(load_forecaster(given), case, num_members=2).members, forecast.members)
