"""Noise as large and as correlated as the errors of a simple forecast: its covariance, the process, its samplers."""

import pytest
import torch
from gaussian_frames import S
from process_rows import along_frames, ddim_step, draw, make_step, operators, output_for
from test_gaussian import assert_order, errors_from_the_flow

from dydiff_dist.diffusion import build_process
from dydiff_dist.diffusion.forecast_errors import LEAST_VARIANCE, forecast_error_operator
from dydiff_kernels import NoiseCounter, Stream, normal

H = 2
AUTOCOVARIANCE = 0.9 ** torch.arange(S).double()
KINDS = ("persistence_error", "regression_error")


def process_with(kind: str, **options):
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    return build_process(process="standard", prediction="v", noise_covariance=kind, **given, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_covariance_is_that_of_measured_errors(kind):
    """AR(1) frames, drawn and forecast: by regression x^{H-1} 0.9^lead, since nothing older tells more."""
    L = forecast_error_operator(AUTOCOVARIANCE, H, kind)
    x = torch.linalg.cholesky(0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()) @ torch.randn(
        S, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    decay = torch.ones(S - H) if kind == "persistence_error" else 0.9 ** torch.arange(1, S - H + 1)
    errors = x[H:] - decay.double()[:, None] * x[H - 1]
    K = errors @ errors.T / errors.shape[1]
    torch.testing.assert_close(L[H:, H:] @ L[H:, H:].T, K / K.diagonal().mean(), rtol=0, atol=0.02)
    assert torch.equal(L[:H], torch.eye(S, dtype=torch.float64)[:H]) and not L[H:, :H].any()
    assert torch.equal(L, L.tril()) and (L @ L.T)[H:, H:].diagonal().mean().item() == pytest.approx(1, rel=1e-9)


def test_a_covariance_that_is_not_positive_definite_is_taken_all_the_same():
    """Measured by lag, with fewer frames at the long ones, it may be slightly off."""
    L = forecast_error_operator(torch.tensor([1.0, 1.0, 1.0 - 1e-5, 1.0 - 2e-5]), 1, "regression_error")
    assert torch.linalg.eigvalsh(L[1:, 1:] @ L[1:, 1:].T).min() > LEAST_VARIANCE / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [False, True])
def test_noising_and_steps_are_those_of_the_matrices(kind, named):
    d, t, after = process_with(kind), 700, 300
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_samplers_keep_their_order(kind, sampler, order):
    """Whitened frames L⁻¹x follow standard diffusion, so every solver is exact as there."""
    d = process_with(kind, num_timesteps=100_000)
    assert_order(errors_from_the_flow(d, sampler, (128, 256)), order, last=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_history_frames": 0}, "of 6 frames 0 are history, which must be 1 to 5"),
        ({"num_history_frames": S}, "of 6 frames 6 are history"),
        ({"frame_autocovariance": None}, "noise_covariance needs frame_autocovariance"),
        ({"process": "correlated_noise"}, "process 'correlated_noise' mixes the noise; use one that leaves it"),
        ({"noise_covariance": "red"}, "noise_covariance is 'red'"),
    ],
)
def test_mistakes_are_one_line(options, words):
    right = {"process": "standard", "noise_covariance": "regression_error", "num_history_frames": H}
    with pytest.raises(ValueError, match=words):
        build_process(**{"frame_autocovariance": AUTOCOVARIANCE, **right, **options})


def test_windows_of_another_length_are_refused():
    x = torch.zeros(1, S + 1, 4)
    with pytest.raises(ValueError, match="noise is of 6 frames, the sequence has 7"):
        process_with("regression_error").add_noise(x, torch.tensor([3]), x)
