"""Small γ̄ and ᾱ in float32 and bfloat16: finite, as accurate as promised, and refused where nothing is left."""

import pytest
import torch

from dydiff_dist.diffusion import DynamicalDiffusion, sample
from dydiff_dist.diffusion.accuracy import clean_gain, step_gain

SMALLEST = {"gamma_ratio": 1.0}  # γ̄ and ᾱ fall to 2.4e-9
SHAPE = (4, 8, 3, 16)


def draw(dtype, seed=0):
    x, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype), noise.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_finite_or_refused_at_every_timestep(prediction, dependent, dtype):
    """From the largest timestep down: a clear refusal above some timestep, finite and accurate results below it."""
    d = DynamicalDiffusion(prediction=prediction, dependent_noise=dependent, **SMALLEST)
    x, noise = draw(dtype)
    for t in (999, 998, 990, 900, 500, 0):
        timesteps = torch.full((4,), t)
        z, target = d.add_noise(x, timesteps, noise)
        assert bool(z.isfinite().all())
        assert bool(target.isfinite().all())
        error = clean_gain(d, d.table.levels(timesteps)).max().item() * torch.finfo(dtype).eps / 2
        if error >= 1:
            with pytest.raises(
                ValueError, match=f"timestep {t} with prediction '{prediction}'.* use .*, or a smaller gamma_ratio"
            ):
                d.predict(z, timesteps, target)
            continue
        x0_hat, noise_hat = d.predict(z, timesteps, target)
        assert bool(x0_hat.isfinite().all())
        assert bool(noise_hat.isfinite().all())
        # the estimate itself is rounded to storage too
        deviation = (x0_hat.double() - x.double()).square().mean().sqrt()
        assert deviation <= error + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_smallest_gamma_bar_in_float32(prediction, dtype):
    """What the docs promise at γ̄ = 2.4e-9: v is right to 1 % in float32, x0 in any storage while nothing is unmixed."""
    d = DynamicalDiffusion(prediction=prediction, **SMALLEST)
    assert d.gamma_bar[999] == pytest.approx(2.4288e-9, rel=1e-4)
    x, noise = draw(dtype)
    t = torch.full((4,), 999)
    z, target = d.add_noise(x, t, noise)
    if prediction == "v" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"use float32 storage, prediction 'x0', smaller timesteps, or"):
            d.predict(z, t, target)
        return
    x0_hat, _ = d.predict(z, t, target)
    assert (x0_hat.double() - x.double()).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma_ratio", [0.0, 1.0])
def test_step_is_finite_and_accurate_or_refused(prediction, dependent, dtype, gamma_ratio):
    """Small steps from the largest timesteps are fine in bfloat16; large ones, which trust x̂ there, are refused."""
    d = DynamicalDiffusion(prediction=prediction, dependent_noise=dependent, gamma_ratio=gamma_ratio)
    x, noise = draw(dtype)
    for t, t_prev in ((999, 998), (999, 900), (998, 990), (998, 500), (990, -1), (961, 941), (500, 480), (0, -1)):
        timesteps, before = torch.full((4,), t), torch.full((4,), t_prev)
        z, target = d.add_noise(x, timesteps, noise)
        gain = step_gain(d, d.table.levels(timesteps), d.table.levels(before)).max().item()
        error = gain * torch.finfo(dtype).eps / 2
        clean_error = clean_gain(d, d.table.levels(timesteps)).max().item() * torch.finfo(dtype).eps / 2
        if error >= 1 or clean_error >= 1e3:
            with pytest.raises(ValueError, match=f"from timestep {t} to {t_prev} with prediction '{prediction}'"):
                d.step(z, timesteps, before, target)
            continue
        z_prev, x0_hat = d.step(z, timesteps, before, target)
        expected = d.add_noise(x.double(), before, noise.double())[0] if t_prev >= 0 else x.double()
        assert bool(x0_hat.isfinite().all())
        deviation = (z_prev.double() - expected).square().mean().sqrt()
        # storage rounds the result too; in float32 each of some four operations rounds as much as the storage
        operations = 4 if dtype == torch.float32 else 1
        assert deviation <= operations * error + torch.finfo(dtype).eps, (t, t_prev, deviation, error)


def test_eps_at_the_smallest_levels_is_refused_in_float32_and_right_in_float64():
    d = DynamicalDiffusion(prediction="eps", **SMALLEST)
    t = torch.full((4,), 999)
    x, noise = draw(torch.float32)
    z, target = d.add_noise(x, t, noise)
    with pytest.raises(
        ValueError, match=r"from timestep 999 to 300 .* use prediction 'v' or 'x0', smaller timesteps, or"
    ):
        d.step(z, t, torch.full((4,), 300), target)
    x, noise = draw(torch.float64)
    z, target = d.add_noise(x, t, noise)
    torch.testing.assert_close(d.predict(z, t, target)[0], x, rtol=0, atol=1e-5)


def test_sampling_refuses_before_the_network_runs():
    d = DynamicalDiffusion(prediction="v", **SMALLEST)

    def denoise(z, timesteps):
        raise AssertionError("the network ran")

    with pytest.raises(ValueError, match="from timestep 999 to 500 with prediction 'v' in bfloat16"):
        sample(d, denoise, start=draw(torch.bfloat16)[0], timesteps=[999, 500])


def test_sampling_refuses_a_coarse_network_output():
    """A network under autocast returns bfloat16 for a float32 z: its rounding counts as much."""
    d = DynamicalDiffusion(prediction="v", **SMALLEST)
    with pytest.raises(ValueError, match="in bfloat16"):
        sample(d, lambda z, t: z.bfloat16(), start=draw(torch.float32)[0], timesteps=[999, 500])


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_steps_from_pure_noise(prediction):
    d = DynamicalDiffusion(prediction=prediction, zero_terminal_snr=True)
    x, noise = draw(torch.float64)
    t = torch.full((4,), 999)
    z, target = d.add_noise(x, t, noise)
    for t_prev in (500, -1):
        before = torch.full((4,), t_prev)
        expected = d.add_noise(x, before, noise)[0] if t_prev >= 0 else x
        torch.testing.assert_close(d.step(z, t, before, target)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage_only(dtype):
    """Against float64 on the same stored input, the result is off by no more than its own rounding and float32's."""
    d = DynamicalDiffusion(prediction="v")
    x, noise = draw(dtype)
    t = torch.tensor([1, 300, 700, 981])
    half, exact = d.add_noise(x, t, noise), d.add_noise(x.double(), t, noise.double())
    for stored, precise in zip(half, exact, strict=True):
        assert stored.dtype == dtype
        torch.testing.assert_close(stored.double(), precise, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    stepped = d.step(half[0], t, t - 1, half[1])[0]
    precise = d.step(half[0].double(), t, t - 1, half[1].double())[0]
    torch.testing.assert_close(stepped.double(), precise, rtol=torch.finfo(dtype).eps / 2, atol=2e-5)
