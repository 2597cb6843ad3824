"""What a simple forecast leaves open: frames relative to it, noise like its errors, and that samplers are exact."""

import pytest
import torch
from gaussian_frames import S
from process_rows import along_frames, ddim_step, draw, make_step, operators, output_for, process_of
from test_gaussian import assert_order, errors_from_the_flow

from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.simple_forecast import LEAST_VARIANCE, SimpleForecast
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, normal

H = 2
AUTOCOVARIANCE = 0.9 ** torch.arange(S).double()
NAMES = ("persistence", "regression")


def process_with(name: str, **options):
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    return build_process(process="standard", prediction="v", noise_like_errors_of=name, **given, **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_covariance_is_that_of_measured_errors(name):
    """AR(1) frames, drawn and forecast: by regression x^{H-1} 0.9^lead, since nothing older tells more."""
    L = SimpleForecast.fit(AUTOCOVARIANCE, H, name).noise_operator()
    x = torch.linalg.cholesky(0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()) @ torch.randn(
        S, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    decay = torch.ones(S - H) if name == "persistence" else 0.9 ** torch.arange(1, S - H + 1)
    errors = x[H:] - decay.double()[:, None] * x[H - 1]
    K = errors @ errors.T / errors.shape[1]
    torch.testing.assert_close(L[H:, H:] @ L[H:, H:].T, K / K.diagonal().mean(), rtol=0, atol=0.02)
    assert torch.equal(L[:H], torch.eye(S, dtype=torch.float64)[:H]) and not L[H:, :H].any()
    assert torch.equal(L, L.tril()) and (L @ L.T)[H:, H:].diagonal().mean().item() == pytest.approx(1, rel=1e-9)


def test_a_covariance_that_is_not_positive_definite_is_taken_all_the_same():
    """Measured by lag, with fewer frames at the long ones, it may be slightly off."""
    L = SimpleForecast.fit(torch.tensor([1.0, 1.0, 1.0 - 1e-5, 1.0 - 2e-5]), 1, "regression").noise_operator()
    assert torch.linalg.eigvalsh(L[1:, 1:] @ L[1:, 1:].T).min() > LEAST_VARIANCE / 2


@pytest.mark.parametrize("name", NAMES)
def test_relative_frames_are_errors_of_unit_variance(name):
    T = SimpleForecast.fit(AUTOCOVARIANCE, H, name).relative_operator()
    (x,) = draw((S, 4), num=1)
    decay = 1.0 if name == "persistence" else 0.9 ** torch.arange(1, S - H + 1).double()[:, None]
    error = x[H:] - decay * x[H - 1]
    y = T @ x
    assert torch.equal(y[:H], x[:H]) and torch.equal(T, T.tril())
    torch.testing.assert_close(y[H:] / T.diagonal()[H:, None], error, rtol=0, atol=0.02)  # the ridge
    C = 0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()
    torch.testing.assert_close((T @ C @ T.T).diagonal(), torch.ones(S, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", ["dydiff", "standard", "correlated_noise_constant", "flow_matching_none", "edm_none"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_a_process_on_relative_frames_is_the_process_of_relative_frames(name, row, prediction):
    """Noising, target and samplers, with the history known: those of y = T x, and the result is x."""
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    d, plain = process_of(row, prediction, frames_relative_to=name, **given), process_of(row, prediction)
    T = SimpleForecast.fit(AUTOCOVARIANCE, H, name).relative_operator()
    x, noise, start = draw((2, S, 2, 4), num=3)
    y, t = along_frames(T, x), torch.tensor([100, 700])
    z, target, x0 = d.add_noise(x, t, noise)
    expected = plain.add_noise(y, t, noise)
    torch.testing.assert_close((z, target), (expected.z, expected.target), rtol=0, atol=1e-12)
    assert x0 is x

    def denoise(z, timesteps):  # of a network that forecasts half of each frame
        return output_for(plain, plain.model_input(z, timesteps), z / 2, int(timesteps[0]))

    run = {"timesteps": timestep_grid(d.table, 5, "log_snr"), "sampler": "ancestral", "noise": draw(x.shape, num=5)}
    begun = start_noise(d, x.shape, run["timesteps"][0], start, dtype=torch.float64)
    result = sample(d, denoise, start=begun, history=x[:, :H], **run)
    as_frames = sample(plain, denoise, start=begun, history=x[:, :H], **run)
    torch.testing.assert_close(along_frames(T, result), as_frames, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result[:, :H], x[:, :H], rtol=0, atol=1e-12)


def test_latents_are_drawn_before_they_are_made_relative():
    d = build_process(frames_relative_to="regression", frame_autocovariance=AUTOCOVARIANCE, num_history_frames=H)
    mean, logvar, noise = draw((2, S, 3, 4), num=3)
    t, counter = torch.tensor([5, 900]), NoiseCounter(3, torch.arange(2), 7, Stream.LATENT_POSTERIOR)
    drawn = normal(counter, tuple(mean.shape), dtype=torch.float64)
    x = 0.5 * (mean + (logvar / 2).exp() * drawn)
    result = d.add_noise(LatentPosterior(mean, logvar, counter, 0.5), t, noise)
    torch.testing.assert_close(tuple(result), tuple(d.add_noise(x, t, noise)), rtol=0, atol=1e-12)


def test_the_inputs_deviation_is_that_of_relative_frames():
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H, "normalize_input": True}
    std = build_process(process="standard", prediction="v", frames_relative_to="persistence", **given).table.input_std
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)  # T C Tᵀ has ones on its diagonal


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [False, True])
def test_noising_and_steps_are_those_of_the_matrices(name, named):
    d, t, after = process_with(name), 700, 300
    x, noise, fresh = draw((3, S, 2, 4), num=3)
    w = noise
    if named:  # drawn by its name, and the same noise
        counter = NoiseCounter(1, torch.arange(3), 0, Stream.DIFFUSION)
        noise = normal(counter, tuple(x.shape), dtype=x.dtype)
        w = counter
    z, target, _ = d.add_noise(x, torch.full((3,), t), w)
    a, s = d.table.signal[t], d.table.noise[t]
    L = operators(d, t, S)[1]
    n = along_frames(L, noise)
    torch.testing.assert_close(z, a * x + s * n, rtol=0, atol=1e-12)
    torch.testing.assert_close(target, a * n - s * x, rtol=0, atol=1e-12)
    step = ddim_step(d, t, after, eta=1.0)
    result = make_step(d, z, output_for(d, z, x, t), step, noise=fresh, return_x0=True)
    expected = step.weights.clean * x + step.weights.noise * n + step.weights.sigma * along_frames(L, fresh)
    torch.testing.assert_close(result.x0, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_samplers_keep_their_order(name, sampler, order):
    """Whitened frames L⁻¹x follow standard diffusion, so every solver is exact as there."""
    d = process_with(name, num_timesteps=100_000)
    assert_order(errors_from_the_flow(d, sampler, (128, 256)), order, last=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_history_frames": 0}, "of 6 frames 0 are history, which must be 1 to 5"),
        ({"num_history_frames": S}, "of 6 frames 6 are history"),
        ({"frame_autocovariance": None}, "noise_like_errors_of needs frame_autocovariance"),
        ({"process": "correlated_noise"}, "process 'correlated_noise' mixes the noise; use one that leaves it"),
        ({"noise_like_errors_of": "red"}, "noise_like_errors_of is 'red'"),
        ({"frames_relative_to": "persistence"}, "two ways to the same end"),
        ({"noise_like_errors_of": None, "frames_relative_to": "regression", "num_history_frames": 0}, "must be 1 to 5"),
        ({"frames_relative_to": "clima"}, "frames_relative_to is 'clima'"),
    ],
)
def test_mistakes_are_one_line(options, words):
    right = {"process": "standard", "noise_like_errors_of": "regression", "num_history_frames": H}
    with pytest.raises(ValueError, match=words):
        build_process(**{"frame_autocovariance": AUTOCOVARIANCE, **right, **options})


def test_windows_of_another_length_are_refused():
    x = torch.zeros(1, S + 1, 4)
    with pytest.raises(ValueError, match="made for 6 frames, this sequence has 7"):
        process_with("regression").add_noise(x, torch.tensor([3]), x)
