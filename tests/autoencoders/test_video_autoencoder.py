"""Autoencoders that compress time: latent frames, actions, history on its own, forecasts; and one that looks ahead."""

from functools import partial

import numpy as np
import pytest
import torch
from frame_source import FrameSource, FrameSourceConfig

from dydiff_dist.autoencoders.adopt import adopt_autoencoder, measure_ratios
from dydiff_dist.autoencoders.files import load_autoencoder
from dydiff_dist.autoencoders.verify import verify_latents
from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.diffusion import build_process
from dydiff_dist.forecasting import Forecaster, SamplingConfig
from dydiff_dist.forecasting.frame_space import LatentFrames

RATIO = 4


def ltx(tmp_path):
    """A small LTX autoencoder with random weights, as diffusers saves it: 4 frames and 4x4 pixels to one."""
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    network = AutoencoderKLLTXVideo(
        in_channels=2,
        out_channels=2,
        latent_channels=3,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        encoder_causal=True,
        decoder_causal=False,
        timestep_conditioning=False,
    )
    network.save_pretrained(tmp_path / "ltx")
    return str(tmp_path / "ltx")


@pytest.fixture
def frames_folder(tmp_path):
    """Samples of 9 = 1 + 2·4 frames with 2 actions."""
    config = FrameSourceConfig(train=(3,), test=(2,), shape=(9, 2, 16, 16), num_actions=2, augmentations=())
    convert(FrameSource(config), tmp_path / "frames")
    return tmp_path / "frames"


@pytest.fixture
def autoencoder(frames_folder, tmp_path):
    adopt_autoencoder(ltx(tmp_path), ShardSet.open(frames_folder / "train"), tmp_path / "adopted", num_samples=3)
    return load_autoencoder(tmp_path / "adopted")


def test_nine_frames_become_three(frames_folder, autoencoder, encode, tmp_path):
    assert autoencoder.description.temporal_ratio == RATIO
    _, latents = encode(frames_folder, tmp_path / "latents", with_autoencoder=autoencoder)
    train = latents["train"]
    assert (train.schema.num_frames, train.schema.shape, train.schema.num_actions) == (3, (3, 4, 4), 2 * RATIO)
    assert train.manifest.latents.temporal_ratio == RATIO
    stored = train.read(train.address(1))
    truth = (pixels := ShardSet.open(frames_folder / "train")).read(pixels.address(1))
    np.testing.assert_array_equal(stored.actions[0], [0] * 6 + truth.actions[0].tolist())
    np.testing.assert_array_equal(stored.actions[2], truth.actions[5:9].ravel())
    history = autoencoder.encode_raw(autoencoder.to_pixels(torch.from_numpy(truth.frames[None, :5].copy()))).mean[0]
    np.testing.assert_allclose(stored.frames[:2], history, rtol=2e-3, atol=2e-3)  # float16
    judged = verify_latents(latents["test"], ShardSet.open(frames_folder / "test"), autoencoder, 2)
    assert np.isfinite(judged.scores.summary()["psnr"])


def test_other_lengths_are_refused(autoencoder, encode, tmp_path):
    convert(FrameSource(FrameSourceConfig(shape=(8, 2, 16, 16))), tmp_path / "eight")
    with pytest.raises(ValueError, match=r"8 frames do not fit an autoencoder of 4 frames per latent frame"):
        encode(tmp_path / "eight", tmp_path / "latents", with_autoencoder=autoencoder)


def test_forecasts_count_frames_and_follow_their_history(autoencoder):
    """With a network that repeats the last given latent frame, the forecast is the decoding of just that."""

    class Repeat(torch.nn.Module):
        def forward(self, z, timesteps, *, history, actions):
            assert actions.shape == (2 * 2, 3, 2 * RATIO)
            return torch.cat([history, history[:, -1:].expand(-1, z.shape[1] - history.shape[1], -1, -1, -1)], dim=1)

    forecaster = Forecaster(
        network=Repeat(),
        diffusion=build_process(prediction="x0"),
        sampling=SamplingConfig(num_steps=2),
        num_history_frames=2,
        num_future_frames=1,
        num_action_channels=2 * RATIO,
        frames=LatentFrames(autoencoder),
    )
    history, actions = torch.randn(2, 5, 2, 16, 16), torch.randn(2, 9, 2)
    forecast = partial(forecaster.forecast, history, actions=actions, num_members=2)
    latents = autoencoder.history_latents(history)
    expected = autoencoder.to_frames(torch.cat([latents, latents[:, -1:]], dim=1))[:, 5:]
    members = forecast()
    assert members.shape == (2, 2, 4, 2, 16, 16)
    torch.testing.assert_close(members[:, 0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(forecast(num_frames=3), members[:, :, :3], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"history has shape .* the model takes \(B, 5, 2, H, W\)"):
        forecaster.forecast(history[:, :4], actions=actions)


def test_an_autoencoder_that_looks_ahead_is_refused():
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    network = AutoencoderKLCogVideoX(
        in_channels=2,
        out_channels=2,
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=3,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=2,
    ).eval()
    with pytest.raises(ValueError, match="a history cannot be encoded on its own"):
        measure_ratios(network, 2)
