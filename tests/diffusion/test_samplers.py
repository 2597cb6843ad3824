"""Samplers' steps as numbers: published forms written out again, what comes of η, refusals."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_frames import GaussianFrames, S
from process_rows import level, process_of

from dydiff_dist.diffusion import build_process, sample, timestep_grid
from dydiff_dist.diffusion.samplers import SAMPLERS, ddim_weights, find_sampler


def start():
    return torch.randn(2, S, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def estimate(d, denoise, z, timestep):
    """x̂ of processes without mixing, from the network's output by the table."""
    model_input = d.model_input(z, torch.full((2,), timestep))
    p, a, s = d.table.target_noise[timestep], d.table.signal[timestep], d.table.noise[timestep]
    output = denoise(model_input, torch.full((2,), timestep))
    return (p * z - s * output) / (a * p - s * d.table.target_signal[timestep])


def test_2m_equals_the_published_form():
    """u' = (σ'/σ) u - √ᾱ' (e^{-h} - 1) (x̂ + (x̂ - x̂_before)/(2r)) on γ none, written out from Lu et al. 2022."""
    d = build_process(prediction="v", gamma_schedule="none")
    denoise = GaussianFrames().denoiser(d)
    grid = timestep_grid(d.table, 8)
    z = start()
    x_before = h_before = None
    for t, t_next in zip(grid, [*grid[1:], -1], strict=True):
        a, s = d.table.signal[t], d.table.noise[t]
        x = a * z - s * denoise(z, torch.tensor([t, t]))
        if t_next < 0:
            z = x
            break
        h = d.table.log_snr[t_next] - d.table.log_snr[t]
        X = x if x_before is None else x + (x - x_before) * h / (2 * h_before)
        z = d.table.noise[t_next] / s * z - d.table.signal[t_next] * torch.expm1(-h) * X
        x_before, h_before = x, h
    result = sample(d, denoise, start=start(), timesteps=grid, sampler="dpmpp_2m")
    torch.testing.assert_close(result, z, rtol=0, atol=1e-12)


def test_euler_on_flow_matching_moves_along_the_velocity():
    """z' = z + (τ' - τ) v, from pure noise (τ = 1) to clean (τ = 0)."""
    d = build_process(process="flow_matching")
    denoise = GaussianFrames().denoiser(d)
    grid = timestep_grid(d.table, 10, "trailing")
    z, tau = start(), [(t + 1) / 1000 for t in [*grid, -1]]
    assert tau[0] == 1 and tau[-1] == 0
    for t, (now, after) in zip(grid, pairwise(tau), strict=True):
        z = z + (after - now) * denoise(z, torch.tensor([t, t]))
    result = sample(d, denoise, start=start(), timesteps=grid, sampler="euler")
    torch.testing.assert_close(result, z, rtol=0, atol=1e-13)


def test_euler_on_edm_is_that_of_karras():
    """z' = z + (σ' - σ) (z - x̂)/σ (Karras et al. 2022, Eq. 3 and Algorithm 1 without its corrector)."""
    d = build_process(process="edm")
    denoise = GaussianFrames().denoiser(d)
    grid = timestep_grid(d.table, 10, "trailing")
    z = 80 * start()
    for t, t_next in pairwise([*grid, -1]):
        sigma, sigma_next = level(d, t).noise, level(d, t_next).noise
        z = z + (sigma_next - sigma) * (z - estimate(d, denoise, z, t)) / sigma
    result = sample(d, denoise, start=80 * start(), timesteps=grid, sampler="euler")
    torch.testing.assert_close(result, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", ["standard", "flow_matching_none", "edm_none"])
def test_heun_is_the_trapezoid_rule_in_the_ratio_of_signal_and_noise(row):
    """z'/s' = z/s + (ρ' - ρ) (x̂ + x̂₁)/2 with ρ = a/s, x̂₁ at Euler's z', and plain Euler to clean."""
    d = process_of(row)
    denoise = GaussianFrames().denoiser(d)
    grid = timestep_grid(d.table, 10)
    z = first = level(d, grid[0]).noise * start()
    for t, t_next in pairwise([*grid, -1]):
        now, after, x = level(d, t), level(d, t_next), estimate(d, denoise, z, t)
        if t_next < 0:
            z = x
            break
        step = after.signal / after.noise - now.signal / now.noise
        euler = after.noise * (z / now.noise + step * x)
        z = after.noise * (z / now.noise + step * (x + estimate(d, denoise, euler, t_next)) / 2)
    result = sample(d, denoise, start=first, timesteps=grid, sampler="heun")
    torch.testing.assert_close(result, z, rtol=0, atol=1e-11)


@pytest.mark.parametrize("row", ["dydiff", "flow_matching_none", "edm_none"])
def test_weights_of_ddim(row):
    """η = 1 is the deviation of the forward process' posterior; s'² is shared out for any η; none at the end."""
    d = process_of(row)
    now, after = level(d, 700), level(d, 400)
    posterior = after.noise**2 * (1 - (now.signal * after.noise / (after.signal * now.noise)) ** 2)
    assert ddim_weights(now, after, 1.0).sigma == pytest.approx(math.sqrt(posterior), rel=1e-12)
    for eta in (0.0, 0.3, 1.0):
        weights = ddim_weights(now, after, eta)
        assert weights.clean == after.signal
        assert weights.noise**2 + weights.sigma**2 == pytest.approx(after.noise**2, rel=1e-12)
        assert (weights.sigma == 0) == (eta == 0)
        assert ddim_weights(now, level(d, -1), eta)[:2] == (1.0, 0.0)
        assert ddim_weights(now, level(d, -1), eta).sigma == 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("row", ["dydiff", "flow_matching_none", "edm_none"])
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_steps_are_finite_and_come_to_clean(name, row, zero_terminal_snr):
    """From pure noise too, where λ is infinite."""
    d = process_of(row, "v", zero_terminal_snr=zero_terminal_snr)
    levels = [level(d, t) for t in [*timestep_grid(d.table, 7, "trailing"), -1]]
    steps = SAMPLERS[name].steps(levels, SAMPLERS[name].eta)
    assert (steps[0].now, steps[-1].after) == (levels[0], levels[-1])
    assert steps[-1].weights[:3] == (1.0, 0.0, ())
    assert len(steps) == (13 if name == "heun" else 7)
    for step in steps:
        numbers = (step.weights.clean, step.weights.noise, step.weights.sigma, *step.weights.previous)
        assert all(math.isfinite(number) for number in numbers)
    for before, after in pairwise(steps):
        assert before.after == after.now


@pytest.mark.parametrize(
    ("name", "eta", "words"),
    [
        ("dpmp_2m", 0.0, "sampler is 'dpmp_2m'; did you mean 'dpmpp_2m'"),
        ("rk45", 0.0, "choose one of ddim, ancestral, dpmpp_2m"),
        ("dpmpp_2m", 0.5, "only 'ddim' takes it"),
        ("ancestral", 0.5, "only 'ddim' takes it"),
        ("ddim", -1.0, "must not be negative"),
    ],
)
def test_refused_samplers(name, eta, words):
    with pytest.raises(ValueError, match=words):
        find_sampler(name, eta)
