"""Losses: spaces, frames, weights, and their report by timestep."""

import pytest
import torch

from dydiff_dist.diffusion import DynamicalDiffusion, frame_mix, frame_unmix, loss_by_timestep_bin

T = torch.tensor([30, 600, 980])


def draw(seed=0, shape=(3, 5, 2, 4)):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_square(error):
    return error.square().flatten(1).mean(1)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_default_is_plain_mean_squared_error(prediction):
    output, target = draw()
    loss, per_sample = DynamicalDiffusion(prediction=prediction).loss(output, target, T)
    torch.testing.assert_close(per_sample, mean_square(output - target), rtol=1e-14, atol=0)
    torch.testing.assert_close(loss, (output - target).square().mean(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("prediction", "network_space", "loss_space", "change"),
    [
        ("v", "mixed", "mixed", None),
        ("v", "mixed", "unmixed", frame_unmix),
        ("eps", "mixed", "unmixed", frame_unmix),
        ("x0", "mixed", "unmixed", None),
        ("x0", "mixed", "mixed", frame_mix),
        ("v", "unmixed", "target", None),
        ("v", "unmixed", "unmixed", None),
        ("v", "unmixed", "mixed", frame_mix),
    ],
)
def test_loss_space(prediction, network_space, loss_space, change):
    d = DynamicalDiffusion(prediction=prediction, network_space=network_space, loss_space=loss_space)
    output, target = draw()
    error = output - target
    expected = error if change is None else change(error, d.gamma_bar[T])
    torch.testing.assert_close(d.loss(output, target, T)[1], mean_square(expected), rtol=1e-12, atol=0)


def test_controls_separate_input_from_weighting():
    """An error made by standard diffusion and the same error made mixed cost the same in either loss space."""
    x, noise = draw(0)
    error, _ = draw(1)
    for loss_space in ("mixed", "unmixed"):
        mixed = DynamicalDiffusion(prediction="v", loss_space=loss_space)
        unmixed = DynamicalDiffusion(prediction="v", loss_space=loss_space, network_space="unmixed")
        target_mixed, target_unmixed = mixed.add_noise(x, T, noise)[1], unmixed.add_noise(x, T, noise)[1]
        torch.testing.assert_close(target_mixed, frame_mix(target_unmixed, mixed.gamma_bar[T]), rtol=0, atol=1e-13)
        ours, _ = mixed.loss(target_mixed + frame_mix(error, mixed.gamma_bar[T]), target_mixed, T)
        control, _ = unmixed.loss(target_unmixed + error, target_unmixed, T)
        torch.testing.assert_close(ours, control, rtol=1e-12, atol=0)


def test_future_frames_only():
    d = DynamicalDiffusion(loss_frames="future")
    output, target = draw()
    expected = mean_square((output - target)[:, 2:])
    torch.testing.assert_close(d.loss(output, target, T, num_history_frames=2)[1], expected, rtol=1e-14, atol=0)
    output[:, :2] += 100
    torch.testing.assert_close(d.loss(output, target, T, num_history_frames=2)[1], expected, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match=r"num_history_frames is 5; .* in 0\.\.4"):
        d.loss(output, target, T, num_history_frames=5)


def test_history_counts_unless_told_otherwise():
    output, target = draw()
    all_frames = DynamicalDiffusion().loss(output, target, T, num_history_frames=2)[0]
    torch.testing.assert_close(all_frames, (output - target).square().mean(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weights_x0_errors_by_min_of_snr_and_limit(prediction):
    """A given error of x0 has the weight min(SNR, 5), whatever the network predicts (γ none: spaces coincide)."""
    d = DynamicalDiffusion(prediction=prediction, min_snr=5.0, gamma_schedule="none")
    x, noise = draw(0)
    error, _ = draw(1)
    z, target = d.add_noise(x, T, noise)
    alpha_bar = d.alpha_bar[T]
    a, s = alpha_bar.sqrt().view(3, 1, 1, 1), (1 - alpha_bar).sqrt().view(3, 1, 1, 1)
    x0_hat = x + error
    noise_hat = (z - a * x0_hat) / s
    output = {"eps": noise_hat, "v": a * noise_hat - s * x0_hat, "x0": x0_hat}[prediction]
    weight = (alpha_bar / (1 - alpha_bar)).clamp(max=5)
    torch.testing.assert_close(d.loss(output, target, T)[1], weight * mean_square(error), rtol=1e-9, atol=0)


def test_min_snr_per_frame():
    d = DynamicalDiffusion(prediction="x0", min_snr=5.0)
    output, target = draw()
    timesteps = torch.tensor([[-1, 10, 500, 900, 999]] * 3)
    levels = torch.cat((torch.ones(1).double(), d.alpha_bar))[timesteps[0] + 1]
    weight = (levels / (1 - levels)).clamp(max=5)
    expected = ((output - target).square().flatten(2).mean(2) * weight).mean(1)
    torch.testing.assert_close(d.loss(output, target, timesteps)[1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_output_is_averaged_in_float32(dtype):
    output, target = (x.to(dtype) for x in draw())
    loss, per_sample = DynamicalDiffusion().loss(output, target, T)
    assert loss.dtype == per_sample.dtype == torch.float32
    torch.testing.assert_close(loss.double(), (output.double() - target.double()).square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss_space", ["target", "mixed", "unmixed"])
def test_gradient_of_the_loss(loss_space):
    d = DynamicalDiffusion(prediction="v", loss_space=loss_space, min_snr=5.0, loss_frames="future")
    output, target = draw(shape=(3, 4, 2))
    assert torch.autograd.gradcheck(
        lambda x: d.loss(x, target, T, num_history_frames=1)[0], output.clone().requires_grad_()
    )


def test_loss_by_timestep_bin_adds_up():
    per_sample = torch.tensor([1.0, 2.0, 4.0, 8.0])
    sums, counts = loss_by_timestep_bin(per_sample, torch.tensor([0, 249, 250, 999]), 1000, 4)
    assert sums.tolist() == [3.0, 4.0, 0.0, 8.0]
    assert counts.tolist() == [2.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="num_bins is 0"):
        loss_by_timestep_bin(per_sample, torch.tensor([0, 0, 0, 0]), 1000, 0)
