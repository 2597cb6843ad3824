"""The objective: spaces, frames, weights, and their report by timestep."""

import pytest
import torch
from process_rows import ROWS_AND_PREDICTIONS, along_frames, operators, output_for, process_of

from dydiff_dist.diffusion import build_process, frame_mix, frame_unmix, loss_by_timestep_bin

T = torch.tensor([30, 600, 980])


def draw(seed=0, shape=(3, 5, 2, 4)):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_square(error):
    return error.square().flatten(1).mean(1)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_default_is_plain_mean_squared_error(prediction):
    output, target = draw()
    loss, per_sample = build_process(prediction=prediction).loss(output, target, T)
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
    d = build_process(prediction=prediction, network_space=network_space, loss_space=loss_space)
    output, target = draw()
    error = output - target
    expected = error if change is None else change(error, build_process().table.frame_gamma[T])
    torch.testing.assert_close(d.loss(output, target, T)[1], mean_square(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss_space", ["mixed", "unmixed"])
@pytest.mark.parametrize(
    ("row", "change_back"), [("flow_matching_both", frame_unmix), ("edm_frames", frame_unmix), ("edm_noise", None)]
)
def test_loss_space_of_other_processes(row, change_back, loss_space):
    """The space is that of the frames: where they are not mixed there is one space."""
    d = process_of(row, loss_space=loss_space)
    output, target = draw()
    changes = change_back is not None and loss_space == "unmixed"
    expected = change_back(output - target, d.table.frame_gamma[T]) if changes else output - target
    torch.testing.assert_close(d.loss(output, target, T)[1], mean_square(expected), rtol=1e-12, atol=0)


def test_controls_separate_input_from_weighting():
    """An error made by standard diffusion and the same error made mixed cost the same in either loss space."""
    x, noise = draw(0)
    error, _ = draw(1)
    for loss_space in ("mixed", "unmixed"):
        mixed = build_process(prediction="v", loss_space=loss_space)
        unmixed = build_process(prediction="v", loss_space=loss_space, network_space="unmixed")
        target_mixed, target_unmixed = mixed.add_noise(x, T, noise)[1], unmixed.add_noise(x, T, noise)[1]
        gamma_bar = mixed.table.frame_gamma[T]
        torch.testing.assert_close(target_mixed, frame_mix(target_unmixed, gamma_bar), rtol=0, atol=1e-13)
        ours, _ = mixed.loss(target_mixed + frame_mix(error, gamma_bar), target_mixed, T)
        control, _ = unmixed.loss(target_unmixed + error, target_unmixed, T)
        torch.testing.assert_close(ours, control, rtol=1e-12, atol=0)


def test_future_frames_only():
    d = build_process(loss_frames="future")
    output, target = draw()
    expected = mean_square((output - target)[:, 2:])
    torch.testing.assert_close(d.loss(output, target, T, num_history_frames=2)[1], expected, rtol=1e-14, atol=0)
    output[:, :2] += 100
    torch.testing.assert_close(d.loss(output, target, T, num_history_frames=2)[1], expected, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match=r"num_history_frames is 5; .* in 0\.\.4"):
        d.loss(output, target, T, num_history_frames=5)


def test_history_counts_unless_told_otherwise():
    output, target = draw()
    all_frames = build_process().loss(output, target, T, num_history_frames=2)[0]
    torch.testing.assert_close(all_frames, (output - target).square().mean(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("row", "prediction"), ROWS_AND_PREDICTIONS)
def test_min_snr_weights_x0_errors_by_min_of_snr_and_limit(row, prediction):
    """A given error of the frames, mixed as they are in z, has the weight min(SNR, 5), whatever the network predicts.

    An output before mixing is compared before mixing.
    """
    d = process_of(row, prediction, min_snr=5.0)
    x, noise = draw(0)
    error, _ = draw(1)
    z, target, _ = d.add_noise(x, T, noise)
    output, errors = torch.empty_like(z), torch.empty_like(z)
    for i, t in enumerate(T.tolist()):
        part = slice(i, i + 1)
        output[part] = output_for(d, z[part], (x + error)[part], t)
        mixed = along_frames(operators(d, t, z.shape[1])[0], error[part])
        errors[part] = mixed if d.table.mixes_target else error[part]
    weight = (d.table.signal[T] / d.table.noise[T]).square().clamp(max=5)
    # at edm's first timesteps the noise is 0.002, and errors of z of 1e-16 are divided by it
    torch.testing.assert_close(d.loss(output, target, T)[1], weight * mean_square(errors), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_output_is_averaged_in_float32(dtype):
    output, target = (x.to(dtype) for x in draw())
    loss, per_sample = build_process().loss(output, target, T)
    assert loss.dtype == per_sample.dtype == torch.float32
    torch.testing.assert_close(loss.double(), (output.double() - target.double()).square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss_space", ["target", "mixed", "unmixed"])
def test_gradient_of_the_loss(loss_space):
    d = build_process(prediction="v", loss_space=loss_space, min_snr=5.0, loss_frames="future")
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
