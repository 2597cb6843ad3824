"""Rounding: predicted as measured, finite, refused where nothing is left; small γ̄ and ᾱ in float32 and bfloat16."""

import math

import pytest
import torch
from process_rows import ROWS_AND_PREDICTIONS, ddim_step, draw, level, make_step, noised, predictions_of, process_of

from dydiff_dist.diffusion import Step, build_process, sample
from dydiff_dist.diffusion.accuracy import LARGEST_CLEAN_ERROR, check_steps, rounding_gains
from dydiff_dist.diffusion.samplers import ddim_weights

SMALLEST = {"gamma_ratio": 1.0}  # γ̄ and ᾱ fall to 2.4e-9
SHAPE = (4, 8, 3, 16)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = ((999, 998), (999, 900), (998, 990), (998, 500), (990, -1), (961, 941), (500, 480), (20, 10), (0, -1))


def gains(d, step):
    return tuple(gain.item() for gain in rounding_gains(d.table, [step], SHAPE[1]))


def perfect_step(d, step, dtype):
    """A step with the true target, both z and the target stored as ``dtype``: (z', x̂) and the exact ones, float64."""
    x, noise = (values.to(dtype).double() for values in draw(SHAPE))
    z, target, _ = d.add_noise(x, torch.full((4,), step.now.timestep), noise)
    z_next, x0 = make_step(d, z.to(dtype), target.to(dtype), step)
    assert z_next.dtype == x0.dtype == dtype
    return z_next.double(), x0.double(), noised(d, x, step.after.timestep, noise), x


def deviation(error):
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma_ratio", [0.5, 1.0])
@pytest.mark.parametrize(("row", "prediction"), ROWS_AND_PREDICTIONS)
def test_a_step_is_as_accurate_as_predicted_or_refused(row, prediction, gamma_ratio, dtype):
    """Small steps from the largest timesteps are fine in bfloat16; large ones, which trust x̂ there, are refused."""
    constant = row.endswith("constant")
    d = process_of(row, prediction, gamma_ratio=0.9 if constant and gamma_ratio == 1 else gamma_ratio)
    roundoff = torch.finfo(dtype).eps / 2
    for t, after in PAIRS:
        step = ddim_step(d, t, after)
        clean_error, step_error = (gain * roundoff for gain in gains(d, step))
        size = max(1.0, math.hypot(step.after.signal, step.after.noise))
        if step_error >= size or clean_error >= LARGEST_CLEAN_ERROR:
            with pytest.raises(ValueError, match=f"from timestep {t} to {after} .* leaves no correct digit"):
                check_steps(d.table, [step], SHAPE[1], dtype)
            continue
        check_steps(d.table, [step], SHAPE[1], dtype)
        z_next, x0, exact_z, exact_x0 = perfect_step(d, step, dtype)
        # storage rounds the results too; in float32 each of some operations rounds as much as the storage
        operations = 2 if dtype == torch.float32 else 1
        assert bool(x0.isfinite().all())
        assert deviation(x0 - exact_x0) <= operations * (clean_error + roundoff), (t, after)
        assert deviation(z_next - exact_z) <= operations * (step_error + 2 * roundoff * size), (t, after)
        if t <= 961 and clean_error > 8 * roundoff:
            assert deviation(x0 - exact_x0) >= clean_error / 6, (t, after)


@pytest.mark.parametrize("prediction", predictions_of("dydiff"))
def test_gains_of_standard_diffusion_in_closed_form(prediction):
    """x̂ and z' are p/Δ z - s/Δ out and so on: by hand, for independent rounding errors of z and the output."""
    d = build_process(process="standard", prediction=prediction)
    for t, t_next in ((900, 700), (500, -1)):
        now, after = level(d, t), level(d, t_next)
        a, s, a_next, s_next = now.signal, now.noise, after.signal, after.noise
        p, q = d.table.target_noise[t].item(), d.table.target_signal[t].item()
        determinant, size = a * p - s * q, math.hypot(p, q)
        clean = math.hypot(p, s * size) / abs(determinant)
        of_z, of_output = (a_next * p - s_next * q) / determinant, (-a_next * s + s_next * a) / determinant
        expected = (clean, math.hypot(of_z, of_output * size))
        assert gains(d, Step(now, after, ddim_weights(now, after))) == pytest.approx(expected, rel=1e-9)


def test_errors_of_x0_and_noise_that_cancel_are_not_added():
    """eps from ᾱ = 0.01 to 0.012: an error of x̂ is one of ε̂ too, and little of both is left in z'."""
    d = build_process(process="standard", prediction="eps", num_timesteps=100_000)
    alpha_bar = d.table.signal.square()
    t, after = (int((alpha_bar - wanted).abs().argmin()) for wanted in (0.01, 0.012))
    assert gains(d, ddim_step(d, t, after))[1] == pytest.approx(1.10, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_smallest_gamma_bar(prediction, dtype):
    """What the docs promise at γ̄ = 2.4e-9: v is right to 1 % in float32, x0 in any storage while nothing is unmixed."""
    d = build_process(prediction=prediction, **SMALLEST)
    assert d.table.frame_gamma[999] == pytest.approx(2.4288e-9, rel=1e-4)
    to_clean = ddim_step(d, 999, -1)
    if prediction == "v" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"use float32 storage, prediction 'v' or 'x0', smaller timesteps, or"):
            check_steps(d.table, [to_clean], SHAPE[1], dtype)
        return
    _, x0, _, exact = perfect_step(d, to_clean, dtype)
    assert deviation(x0 - exact) < 0.01


def test_eps_at_the_smallest_levels_is_refused_in_float32_and_right_in_float64():
    d = build_process(prediction="eps", **SMALLEST)
    step = ddim_step(d, 999, 300)
    with pytest.raises(
        ValueError, match=r"from timestep 999 to 300 .* use prediction 'v' or 'x0', smaller timesteps, or"
    ):
        check_steps(d.table, [step], SHAPE[1], torch.float32)
    check_steps(d.table, [step], SHAPE[1], torch.float64)
    _, x0, _, exact = perfect_step(d, step, torch.float64)
    torch.testing.assert_close(x0, exact, rtol=0, atol=1e-5)


def test_many_steps_are_judged_as_each_alone():
    d = build_process(process="correlated_noise", prediction="v")
    steps = [ddim_step(d, t, after) for t, after in PAIRS]
    together = rounding_gains(d.table, steps, 5)
    for i, step in enumerate(steps):
        for all_, one in zip(together, rounding_gains(d.table, [step], 5), strict=True):
            torch.testing.assert_close(all_[i], one[0], rtol=1e-12, atol=0)


def test_sampling_refuses_before_the_network_runs():
    d = build_process(prediction="v", **SMALLEST)

    def denoise(z, timesteps):
        raise AssertionError("the network ran")

    start = draw(SHAPE, dtype=torch.bfloat16)[0]
    with pytest.raises(ValueError, match="from timestep 999 to 500 with this prediction in bfloat16"):
        sample(d, denoise, start=start, timesteps=[999, 500])


def test_sampling_refuses_a_coarse_network_output():
    """A network under autocast returns bfloat16 for a float32 z: its rounding counts as much."""
    d = build_process(prediction="v", **SMALLEST)
    start = draw(SHAPE, dtype=torch.float32)[0]
    with pytest.raises(ValueError, match="in bfloat16"):
        sample(d, lambda z, t: z.bfloat16(), start=start, timesteps=[999, 500])


@pytest.mark.parametrize("sigma_max", [80.0, 2000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_noise_of_edm_is_no_loss(sigma_max, dtype):
    """Its z is large, and so are its rounding errors, beside which the data are not what counts."""
    d = build_process(process="edm", sigma_max=sigma_max)
    steps = [ddim_step(d, t, t - 20) for t in range(999, 100, -20)]
    check_steps(d.table, steps, SHAPE[1], dtype)


@pytest.mark.parametrize("prediction", ["v", "x0", "velocity", "edm"])
def test_zero_terminal_snr_steps_from_pure_noise(prediction):
    d = build_process(prediction=prediction, zero_terminal_snr=True)
    for after in (500, -1):
        z_next, _, exact, _ = perfect_step(d, ddim_step(d, 999, after), torch.float64)
        torch.testing.assert_close(z_next, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", ["dydiff", "dydiff_independent", "correlated_noise", "flow_matching_noise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage_only(dtype, row):
    """Against float64 on the same stored input, the result is off by no more than its own rounding and float32's."""
    d = process_of(row, "v")
    x, noise = draw(SHAPE, dtype=dtype)
    t = torch.tensor([1, 300, 700, 981])
    half, exact = d.add_noise(x, t, noise), d.add_noise(x.double(), t, noise.double())
    for stored, precise in zip(half, exact, strict=True):
        assert stored.dtype == dtype
        torch.testing.assert_close(stored.double(), precise, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    for timestep in t.tolist():
        step = ddim_step(d, timestep, timestep - 1)
        stepped = make_step(d, half[0], half[1], step)[0]
        precise = make_step(d, half[0].double(), half[1].double(), step)[0]
        torch.testing.assert_close(stepped.double(), precise, rtol=torch.finfo(dtype).eps / 2, atol=2e-5)
