"""Samplers: convergence orders on a Gaussian whose exact solution is known, noise, guidance, chunks, rollout."""

import math
from itertools import pairwise

import pytest
import torch

from dydiff_dist.diffusion import (
    DynamicalDiffusion,
    frame_mix,
    frame_unmix,
    guided,
    in_chunks,
    rollout,
    sample,
    staggered_grid,
    start_noise,
    timestep_grid,
)
from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.schedules import log_snr
from dydiff_kernels import NoiseCounter, Stream, normal

S = 6


# -- a problem with a known solution ----------------------------------------------------------------------------------


class GaussianFrames:
    """x ~ N(0, C) along frames, C = 1.5² · 0.8^lag: the best denoiser is linear, and so is the exact flow to clean.

    In the eigenvectors of C (eigenvalues c), u has variance ᾱ c + 1 - ᾱ at every level, and the deterministic flow just
    rescales: u(t') = u(t) √((ᾱ' c + 1 - ᾱ')/(ᾱ c + 1 - ᾱ)).
    """

    def __init__(self):
        frame = torch.arange(S)
        covariance = 2.25 * 0.8 ** (frame[:, None] - frame[None, :]).abs().double()
        self.variances, self.vectors = torch.linalg.eigh(covariance)

    def filtered(self, u_BSP, gain_S):
        """V diag(gain) Vᵀ u."""
        return torch.einsum("sk,k,rk,brp->bsp", self.vectors, gain_S, self.vectors, u_BSP)

    def denoiser(self, d):
        """The network output that stands for E[x | z], for a process ``d`` with dependent noise."""

        def denoise(z, timesteps):
            gamma_bar, alpha_bar = d.gamma_bar[timesteps], d.alpha_bar[timesteps[0]]
            u = frame_unmix(z, gamma_bar)
            gain = alpha_bar.sqrt() * self.variances / (alpha_bar * self.variances + 1 - alpha_bar)
            x = self.filtered(u, gain)
            noise = (u - alpha_bar.sqrt() * x) / (1 - alpha_bar).sqrt()
            v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x
            return {"eps": frame_mix(noise, gamma_bar), "v": frame_mix(v, gamma_bar), "x0": x}[d.prediction]

        return denoise

    def solution(self, d, start, timestep):
        """Where the exact flow takes z at ``timestep``."""
        alpha_bar = d.alpha_bar[timestep]
        u = frame_unmix(start, d.gamma_bar[timestep].expand(len(start)))
        return self.filtered(u, (self.variances / (alpha_bar * self.variances + 1 - alpha_bar)).sqrt())


def gaussian_error(d, grid, sampler):
    """Root mean square distance of a sampler's result from the exact flow, over 200 starts."""
    problem = GaussianFrames()
    noise = torch.randn(2, S, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = start_noise(d, noise.shape, grid[0], noise, dtype=torch.float64)
    result = sample(d, problem.denoiser(d), start=start, timesteps=grid, sampler=sampler)
    return (result - problem.solution(d, start, grid[0])).square().mean().sqrt().item()


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_convergence_order(sampler, order, prediction):
    """Error against steps on a log-log line: slope -1 for DDIM, -2 for 2M. N is large: grids are nearly continuous."""
    d = DynamicalDiffusion(num_timesteps=100_000, prediction=prediction)
    steps = (32, 64, 128, 256)
    errors = []
    for num_steps in steps:
        fraction = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        lowest, highest = log_snr(d.alpha_bar)[95_000], log_snr(d.alpha_bar)[1_000]
        wanted = lowest + (highest - lowest) * fraction[:-1]
        grid = torch.searchsorted(-log_snr(d.alpha_bar), -wanted).tolist()
        errors.append(flow_error(d, grid, stop=1_000, sampler=sampler))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert abs(slopes[-1] - order) < 0.15, (errors, slopes)
    assert all(abs(slope - order) < 0.35 for slope in slopes), (errors, slopes)


def flow_error(d, grid, stop, sampler):
    """As ``gaussian_error``, at timestep ``stop``: the step from there to clean is first order in every solver."""
    problem = GaussianFrames()
    noise = torch.randn(2, S, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = start_noise(d, noise.shape, grid[0], noise, dtype=torch.float64)
    arrived = {}
    sample(
        d,
        problem.denoiser(d),
        start=start,
        timesteps=[*grid, stop],
        sampler=sampler,
        callback=lambda step: arrived.setdefault(step.index, step.z),
    )
    alpha_bar = d.alpha_bar[stop]
    to_clean = (problem.variances / (alpha_bar * problem.variances + 1 - alpha_bar)).sqrt()
    u = frame_unmix(arrived[len(grid) - 1], d.gamma_bar[stop].expand(2))
    exact = problem.filtered(problem.solution(d, start, grid[0]), 1 / to_clean)
    return (u - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("gamma_ratio", [0.0, 0.5, 0.9])
def test_2m_with_20_steps_beats_ddim_with_50(gamma_ratio):
    d = DynamicalDiffusion(prediction="v", gamma_ratio=gamma_ratio)
    grids = {k: timestep_grid(1000, k) for k in (20, 50)}
    ddim, second_order = gaussian_error(d, grids[50], "ddim"), gaussian_error(d, grids[20], "dpmpp_2m")
    assert second_order < ddim
    assert gaussian_error(d, grids[50], "dpmpp_2m") < second_order / 3


def test_2m_equals_the_published_form():
    """u' = (σ'/σ) u - √ᾱ' (e^{-h} - 1) (x̂ + (x̂ - x̂_before)/(2r)) on γ none, written out from Lu et al. 2022."""
    d = DynamicalDiffusion(prediction="v", gamma_schedule="none")
    denoise = GaussianFrames().denoiser(d)
    grid = timestep_grid(1000, 8)
    z = start = torch.randn(2, S, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_before = h_before = None
    for t, t_next in zip(grid, [*grid[1:], -1], strict=True):
        alpha_bar = d.alpha_bar[t]
        x = alpha_bar.sqrt() * z - (1 - alpha_bar).sqrt() * denoise(z, torch.tensor([t, t]))
        if t_next < 0:
            z = x
            break
        h = log_snr(d.alpha_bar[t_next]) - log_snr(alpha_bar)
        X = x if x_before is None else x + (x - x_before) * h / (2 * h_before)
        ratio = ((1 - d.alpha_bar[t_next]) / (1 - alpha_bar)).sqrt()
        z = ratio * z - d.alpha_bar[t_next].sqrt() * torch.expm1(-h) * X
        x_before, h_before = x, h
    result = sample(d, denoise, start=start, timesteps=grid, sampler="dpmpp_2m")
    torch.testing.assert_close(result, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dependent", [True, False])
def test_ancestral_sampling_has_the_data_distribution(dependent):
    """With the exact denoiser a run is linear in its noise, so the covariance of its samples is its matrices, read off
    unit vectors: it must approach that of the data at first order in the steps."""
    d = DynamicalDiffusion(prediction="x0", dependent_noise=dependent)
    problem = GaussianFrames()
    covariance = problem.vectors @ problem.variances.diag() @ problem.vectors.T

    def denoise(z, timesteps):
        if dependent:
            return problem.denoiser(d)(z, timesteps)
        alpha_bar = d.alpha_bar[timesteps[0]]
        D = mixing_matrix(d.gamma_bar[timesteps[:1]], S)[0]  # z = √ᾱ D x + √(1-ᾱ) ε
        total = alpha_bar * D @ covariance @ D.T + (1 - alpha_bar) * torch.eye(S, dtype=torch.float64)
        return torch.einsum("sr,brp->bsp", alpha_bar.sqrt() * covariance @ D.T @ torch.linalg.inv(total), z)

    def error(num_steps):
        grid = timestep_grid(1000, num_steps)
        units = torch.eye(S * (num_steps + 1), dtype=torch.float64).unflatten(1, (num_steps + 1, S, 1))
        start = start_noise(d, (len(units), S, 1), grid[0], units[:, 0], dtype=torch.float64)
        noise = units[:, 1:].transpose(0, 1)
        columns = sample(d, denoise, start=start, timesteps=grid, sampler="ancestral", noise=noise)[..., 0]
        return (columns.T @ columns - covariance).abs().max().item()

    errors = [error(num_steps) for num_steps in (50, 100, 200)]
    assert errors[2] < 0.08, errors  # of variances of 2.25
    assert all(1.6 < a / b < 2.4 for a, b in pairwise(errors)), errors


# -- the loop ---------------------------------------------------------------------------------------------------------


def oracle(d, x):
    """A denoiser that knows the clean frames."""
    known = DynamicalDiffusion(prediction="x0", gamma_schedule=d.gamma_bar, dependent_noise=d.dependent_noise)

    def denoise(z, timesteps):
        _, noise = known.predict(z, timesteps, x)
        return noise

    return denoise


def draw(seed=0, shape=(3, S, 2, 4), dtype=torch.float64):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("dependent", [True, False])
def test_an_oracle_is_reproduced(sampler, dependent):
    d = DynamicalDiffusion(dependent_noise=dependent)
    x, noise = draw()
    grid = timestep_grid(1000, 10)
    start = start_noise(d, x.shape, grid[0], noise, dtype=torch.float64)
    fresh = torch.randn(10, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if sampler == "dpmpp_2m" and not dependent:
        with pytest.raises(ValueError, match="needs dependent noise"):
            sample(d, oracle(d, x), start=start, timesteps=grid, sampler=sampler)
        return
    result = sample(d, oracle(d, x), start=start, timesteps=grid, sampler=sampler, noise=fresh)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-10)


def test_counter_noise_is_counted_on_per_step():
    d = DynamicalDiffusion(prediction="v")
    x, noise = draw()
    grid = timestep_grid(1000, 5)
    counter = NoiseCounter(seed=3, sample_index=torch.tensor([4, 5, 6]), step=70, stream=Stream.SAMPLER_ETA)
    steps = [
        NoiseCounter(seed=3, sample_index=counter.sample_index, step=70 + k, stream=Stream.SAMPLER_ETA)
        for k in range(5)
    ]
    drawn = torch.stack([normal(step, x.shape, dtype=torch.float64) for step in steps])
    by_name, by_value = (
        sample(d, lambda z, t: z * 0.1, start=noise, timesteps=grid, eta=0.7, noise=n) for n in (counter, drawn)
    )
    assert torch.equal(by_name, by_value)
    no_noise = sample(d, lambda z, t: z * 0.1, start=noise, timesteps=grid)
    assert not torch.allclose(by_name, no_noise)


def test_history_is_clamped_in_every_step_and_in_the_result():
    d = DynamicalDiffusion(prediction="v")
    x, noise = draw()
    seen = []
    result = sample(
        d,
        lambda z, t: z * 0.1,
        start=noise,
        timesteps=timestep_grid(1000, 5),
        history=x[:, :2],
        callback=lambda step: seen.append(step),
    )
    assert [step.index for step in seen] == list(range(5))
    assert [int(step.timestep) for step in seen] == timestep_grid(1000, 5)
    assert all(torch.equal(step.x0_hat[:, :2], x[:, :2]) for step in seen)
    assert torch.equal(result[:, :2], x[:, :2])
    assert torch.equal(result, seen[-1].z)


def test_network_sees_the_normalised_input():
    d = DynamicalDiffusion(prediction="v", normalize_input=True, frame_autocovariance=torch.full((S,), 4.0))
    _, noise = draw()
    seen = []

    def denoise(z, timesteps):
        seen.append(z)
        return z * 0

    sample(d, denoise, start=noise, timesteps=[500])
    torch.testing.assert_close(seen[0], noise / d.input_std[500], rtol=1e-14, atol=0)


def test_start_noise():
    d = DynamicalDiffusion()
    _, noise = draw()
    gamma_bar = d.gamma_bar[981].expand(3)
    assert torch.equal(start_noise(d, noise.shape, 981, noise, dtype=torch.float64), frame_mix(noise, gamma_bar))
    independent = DynamicalDiffusion(dependent_noise=False)
    assert torch.equal(start_noise(independent, noise.shape, 981, noise, dtype=torch.float64), noise)
    counter = NoiseCounter(seed=0, sample_index=torch.arange(3), step=0, stream=Stream.SAMPLER_START)
    drawn = start_noise(d, noise.shape, 981, counter, dtype=torch.float64)
    assert torch.equal(drawn, frame_mix(normal(counter, noise.shape, dtype=torch.float64), gamma_bar))
    with pytest.raises(ValueError, match="sampling was asked for frames of shape"):
        start_noise(d, (3, S, 2, 5), 981, noise)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timesteps": [1, 500]}, "do not descend"),
        ({"timesteps": []}, r"have shape \(0,\)"),
        ({"timesteps": [500.0]}, "dtype torch.float"),
        ({"timesteps": torch.ones(3, 4).long()}, r"give K integers or \(K, 6\)"),
        ({"timesteps": [1000]}, r"run from 1000 to 1000; they must lie in 0\.\.999"),
        ({"timesteps": [500, -1]}, r"run from 500 to -1; they must lie in 0\.\.999"),
        ({"sampler": "euler"}, "choose one of ddim, ancestral, dpmpp_2m"),
        ({"eta": 0.5}, "draws noise; give a NoiseCounter"),
        ({"sampler": "ancestral"}, "draws noise"),
        ({"sampler": "dpmpp_2m", "eta": 0.5}, "only 'ddim' takes it"),
        ({"eta": -1.0}, "must not be negative"),
        ({"eta": 1.0, "noise": torch.zeros(3, 3, S, 2, 4)}, "noise holds 3 steps; the grid has 2"),
    ],
)
def test_refused_sampling(options, words):
    _, noise = draw()
    with pytest.raises(ValueError, match=words):
        sample(DynamicalDiffusion(), lambda z, t: z, **{"start": noise, "timesteps": [500, 1], **options})


# -- frames at their own timesteps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
def test_staggered_sampling_reproduces_an_oracle_and_keeps_finished_frames(sampler, prediction):
    d = DynamicalDiffusion(prediction=prediction)
    x, noise = draw()
    grid = staggered_grid(timestep_grid(1000, 6), S, delay_steps=2)
    start = start_noise(d, x.shape, int(grid.max()), noise, dtype=torch.float64)
    fresh = torch.randn(len(grid), *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reached = []

    def denoise(z, timesteps):
        _, target = d.add_noise(x, timesteps, noise_in(z, timesteps))
        return target

    def noise_in(z, timesteps):
        levels = d.levels(timesteps, z)
        a, s = (
            level.view(*timesteps.shape, 1, 1) for level in (levels.alpha_bar.sqrt(), (1 - levels.alpha_bar).sqrt())
        )
        return torch.where(s > 0, (frame_unmix(z, levels.gamma_bar) - a * x) / s.clamp(min=1e-9), 0.0)

    def finished(step):
        done = step.timestep < 0
        reached.append((step.x0_hat[:, done] - x[:, done]).abs().max().item() if done.any() else 0.0)

    result = sample(d, denoise, start=start, timesteps=grid, sampler=sampler, noise=fresh, callback=finished)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-9)
    assert max(reached) < 1e-9


# -- around the loop --------------------------------------------------------------------------------------------------


def test_guidance_is_linear_in_the_weight():
    conditional, unconditional = (lambda z, t: z + 1), (lambda z, t: 2 * z)
    z, t = torch.tensor([3.0]), torch.tensor([0])
    assert guided(conditional, unconditional, 2.5)(z, t).item() == 6 + 2.5 * (4 - 6)
    assert guided(conditional, unconditional, 1) is conditional
    assert guided(conditional, unconditional, 0) is unconditional


def test_chunks_do_not_change_samples():
    d = DynamicalDiffusion(prediction="v")
    index = torch.arange(7) + 100
    grid = timestep_grid(1000, 4)

    def forecast(part):
        def counter(stream):
            return NoiseCounter(seed=1, sample_index=index[part], step=0, stream=stream)

        shape = (len(index[part]), 4, 2, 3)
        start = start_noise(d, shape, grid[0], counter(Stream.SAMPLER_START))
        return sample(d, lambda z, t: z * 0.3, start=start, timesteps=grid, eta=1.0, noise=counter(Stream.SAMPLER_ETA))

    whole = in_chunks(forecast, 7, 7)
    assert whole.shape == (7, 4, 2, 3)
    assert torch.equal(in_chunks(forecast, 7, 3), whole)
    with pytest.raises(ValueError, match="chunk_size 0"):
        in_chunks(forecast, 7, 0)


def test_rollout_continues_from_the_last_frames():
    """A forecast that counts on by one makes an unbroken count, whatever the window."""
    windows = []

    def forecast(history, window):
        windows.append(window)
        return torch.cat((history, history[:, -1:] + torch.arange(1, 4).view(1, 3, 1)), 1)

    history = torch.tensor([[[1], [2]], [[5], [6]]])
    future = rollout(forecast, history, 7)
    assert future[..., 0].tolist() == [[3, 4, 5, 6, 7, 8, 9], [7, 8, 9, 10, 11, 12, 13]]
    assert windows == [0, 1, 2]
    with pytest.raises(ValueError, match="forecasts nothing after 2 history frames"):
        rollout(lambda history, window: history, history, 1)
    with pytest.raises(ValueError, match="num_future_frames is 0"):
        rollout(forecast, history, 0)


def test_rollout_with_history_longer_than_a_windows_future():
    history = torch.arange(5).view(1, 5, 1)
    future = rollout(lambda h, window: torch.cat((h, h[:, -1:] + 1, h[:, -1:] + 2), 1), history, 6)
    assert future.flatten().tolist() == [5, 6, 7, 8, 9, 10]
