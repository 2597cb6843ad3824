"""Autoencoders: units, files, periodicity, and one clear line for what is wrong."""

import json
import sys

import pytest
import torch
from small_autoencoders import small_autoencoder

from dydiff_dist.autoencoders import AutoencoderModelConfig, fetch_network, load_autoencoder, read_description
from dydiff_dist.autoencoders.files import copy_autoencoder, load_network
from dydiff_dist.autoencoders.networks import network_from_config


@pytest.fixture
def frames():
    """(2, 3, 2, 16, 16) in stored units."""
    return torch.randn(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def test_latents_and_frames_are_the_networks_in_the_described_units(tmp_path, frames):
    description = small_autoencoder(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    network = autoencoder.network
    shift, scale = (torch.tensor(v)[:, None, None] for v in (description.pixel_shift, description.pixel_scale))
    latent_shift, latent_scale = (
        torch.tensor(v)[:, None, None] for v in (description.latent_shift, description.latent_scale)
    )
    with torch.no_grad():
        raw = network.encode(((frames - shift) / scale).flatten(0, 1)).latent_dist
        mean = (raw.mean.unflatten(0, (2, 3)) - latent_shift) / latent_scale
        std = raw.std.unflatten(0, (2, 3)) / latent_scale
        decoded = network.decode((mean * latent_scale + latent_shift).flatten(0, 1)).sample.unflatten(0, (2, 3))
    posterior = autoencoder.encode(autoencoder.to_pixels(frames))
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close((0.5 * posterior.logvar).exp(), std)
    torch.testing.assert_close(autoencoder.to_frames(posterior.mean), decoded * scale + shift)


def test_the_batch_size_does_not_matter(tmp_path, frames):
    small_autoencoder(tmp_path)
    pixels = load_autoencoder(tmp_path).to_pixels(frames)
    one, all_at_once = (load_autoencoder(tmp_path, max_frames=n).encode(pixels).mean for n in (1, 64))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)  # convolutions round by batch size


def test_a_periodic_autoencoder_commutes_with_shifts_by_latent_pixels(tmp_path, frames):
    small_autoencoder(tmp_path / "periodic", periodic=True)
    small_autoencoder(tmp_path / "zeros")
    errors = {}
    for name in ("periodic", "zeros"):
        autoencoder = load_autoencoder(tmp_path / name)
        there = autoencoder.encode(autoencoder.to_pixels(frames.roll((4, 8), (-2, -1))))
        here = autoencoder.encode(autoencoder.to_pixels(frames))
        errors[name] = float((there.mean - here.mean.roll((1, 2), (-2, -1))).abs().max())
        shifted = autoencoder.to_frames(here.mean.roll((1, 2), (-2, -1)))
        errors[name] += float((shifted - autoencoder.to_frames(here.mean).roll((4, 8), (-2, -1))).abs().max())
    assert errors["periodic"] < 1e-4 < errors["zeros"]


def test_diffusers_reads_the_folder(tmp_path, frames):
    from diffusers import AutoencoderKL

    small_autoencoder(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    pixels = autoencoder.to_pixels(frames).flatten(0, 1)
    with torch.no_grad():
        theirs = AutoencoderKL.from_pretrained(tmp_path).encode(pixels).latent_dist.mean
        ours = autoencoder.network.encode(pixels).latent_dist.mean
    assert torch.equal(theirs, ours)


def test_the_hash_names_what_latents_follow_from(tmp_path):
    same = small_autoencoder(tmp_path / "a")
    assert small_autoencoder(tmp_path / "b", facts={"psnr": 30.0}).sha256 == same.sha256
    others = [{"seed": 1}, {"periodic": True}, {"latent_scale": (0.5, 0.25, 2.1)}, {"pixel_shift": (0.0, 0.2)}]
    hashes = {small_autoencoder(tmp_path / f"c{n}", **other).sha256 for n, other in enumerate(others)}
    assert len(hashes | {same.sha256}) == 5


def test_a_copy_is_the_same_autoencoder(tmp_path, frames):
    small_autoencoder(tmp_path / "run" / "model")
    copy_autoencoder(tmp_path / "run", tmp_path / "copy")
    copy_autoencoder(tmp_path / "run", tmp_path / "copy")
    one, two = (load_autoencoder(tmp_path / name) for name in ("run", "copy"))
    assert one.description == two.description
    assert torch.equal(one.history_latents(frames), two.history_latents(frames))


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_altered_files_are_refused_in_one_line(tmp_path):
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        small_autoencoder(tmp_path / name)
        damage(tmp_path / name / name)
        with pytest.raises(ValueError, match=f"{name} was altered or cut off"):
            load_autoencoder(tmp_path / name)
    (tmp_path / "config.json" / "autoencoder.json").write_text("{")
    with pytest.raises(ValueError, match=r"autoencoder.json.*damaged"):
        load_autoencoder(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"train one with tools/train_vae.py"):
        read_description(tmp_path / "nothing")


def test_frames_that_do_not_fit_are_refused_in_one_line(tmp_path):
    small_autoencoder(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="frames have 3 channels, the autoencoder takes 2"):
        autoencoder.encode(torch.zeros(1, 1, 3, 16, 16))
    with pytest.raises(ValueError, match="18x16 are no multiple of 4"):
        autoencoder.encode(torch.zeros(1, 1, 2, 18, 16))


def test_networks_are_found_in_folders_and_files(tmp_path):
    small_autoencoder(tmp_path)
    by_folder = fetch_network(str(tmp_path))
    by_file = fetch_network(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert by_folder == by_file
    assert isinstance(load_network(by_folder), torch.nn.Module)


def test_what_is_no_autoencoder_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        fetch_network(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder, no .safetensors file, and no hub name"):
        fetch_network("weights.bin")
    with pytest.raises(ValueError, match="class 'UNet2DModel' is not supported"):
        network_from_config({"_class_name": "UNet2DModel"})
    small_autoencoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 4}))
    with pytest.raises(ValueError, match=r"doesn't fit config.json"):
        load_network(fetch_network(str(tmp_path)))


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("We couldn't connect\nto the hub.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=r"can't be fetched from the hub \(We couldn't connect to") as info:
        fetch_network("owner/model/vae")
    assert "\n" not in str(info.value)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'dydiff_dist\[latents\]'"):
        network_from_config({"_class_name": "AutoencoderKL"})


def test_impossible_architectures_are_refused():
    with pytest.raises(ValueError, match="multiples of norm_groups 32"):
        AutoencoderModelConfig(latent_channels=4, channels=(64, 72))
    with pytest.raises(ValueError, match="at least one level"):
        AutoencoderModelConfig(latent_channels=4, channels=())
