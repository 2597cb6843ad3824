"""Noise like the errors of a simple forecast: what L is, where it acts, and that samplers are exact with it."""

from dataclasses import replace

import pytest
import torch
from gaussian_frames import S
from hypothesis import given, settings
from hypothesis import strategies as st
from process_rows import along_frames, ddim_step, draw, make_step, operators, output_for, predictions_of, process_of
from test_gaussian import assert_first_order_to_the_data, assert_order, errors_from_the_flow
from test_numerics import DTYPES, SHAPE, deviation, gains, perfect_step
from test_simple_forecast import Watch

from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.simple_forecast import LEAST_NOISE_VARIANCE, noise_operator
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, normal
from dydiff_kernels.backends import available_backends

H = 2
AUTOCOVARIANCE = 0.9 ** torch.arange(S).double()
NAMES = ("persistence", "regression")
ROWS = ("standard", "flow_matching_none", "edm_none")
KNOWN = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}


def process_with(name="regression", row="standard", prediction="v", **options):
    return process_of(row, prediction, **{**KNOWN, "noise_like_errors_of": name, **options})


def counter(stream, batch=3):
    return NoiseCounter(1, torch.arange(batch), 0, stream)


@pytest.mark.parametrize("name", NAMES)
def test_the_covariance_is_that_of_measured_errors(name):
    """AR(1) frames, drawn and forecast: by regression x^{H-1} 0.9^lead, since nothing older tells more."""
    L = noise_operator(AUTOCOVARIANCE, H, name)
    x = torch.linalg.cholesky(0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()) @ torch.randn(
        S, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    decay = torch.ones(S - H) if name == "persistence" else 0.9 ** torch.arange(1, S - H + 1)
    errors = x[H:] - decay.double()[:, None] * x[H - 1]
    K = errors @ errors.T / errors.shape[1]
    # of 400,000 draws, and regression's ridge
    torch.testing.assert_close(L[H:, H:] @ L[H:, H:].T, K / K.diagonal().mean(), rtol=0, atol=0.02)
    assert torch.equal(L[:H], torch.eye(S, dtype=torch.float64)[:H]) and not L[H:, :H].any()  # white on the history
    assert torch.equal(L, L.tril()) and (L @ L.T).diagonal()[H:].mean().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("lags", [[1.0, 1 - 1e-7, 1 - 4e-7, 1 - 9e-7], [1.0, 1.0, 1 - 1e-5, 1 - 2e-5]])
def test_no_direction_is_without_noise(lags):
    """Errors that all but grow in step, and an autocovariance that none can have, as one measured by lag may be."""
    L = noise_operator(torch.tensor(lags), 1, "persistence")[1:, 1:]
    assert torch.linalg.eigvalsh(L @ L.T).min() >= LEAST_NOISE_VARIANCE / (1 + LEAST_NOISE_VARIANCE) * (1 - 1e-9)


@pytest.mark.parametrize("relative_to", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_on_relative_frames_the_noise_is_like_the_errors_in_them(name, relative_to):
    """L Lᵀ is T K Tᵀ. Of one forecast that is what T x itself varies by: its noise differs from it in nothing."""
    d = process_with(name, frames_relative_to=relative_to)
    T, L, plain = d.table.frame_operator, d.table.noise_operator, noise_operator(AUTOCOVARIANCE, H, name)
    K = T[H:, H:] @ (plain @ plain.T)[H:, H:] @ T[H:, H:].T
    torch.testing.assert_close((L @ L.T)[H:, H:], K / K.diagonal().mean(), rtol=0, atol=1e-12)
    if name == relative_to:
        C = 0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()
        torch.testing.assert_close((T @ C @ T.T)[H:, H:], (L @ L.T)[H:, H:], rtol=0, atol=1e-9)
    # frames come back, and history as it was given
    (x,), (start,) = draw((2, S, 2, 4), num=1), draw((2, S, 2, 4), seed=1, num=1)
    grid = timestep_grid(d.table, 3)
    run = {"start": start_noise(d, x.shape, grid[0], start, dtype=x.dtype), "timesteps": grid, "history": x[:, :H]}
    frames = sample(d, lambda z, t: output_for(d, z, along_frames(T, x), int(t[0])), **run)
    torch.testing.assert_close(frames, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", available_backends("cpu"))
@pytest.mark.parametrize("name", NAMES)
def test_drawn_noise_has_the_covariance_and_white_history(name, backend):
    """Where training, the start and a step draw it; 80,000 columns: a covariance of 1.4 is off by 0.007."""
    d = process_with(name, backend=backend)
    LL = (d.table.noise_operator @ d.table.noise_operator.T).float()
    batch, zero = 20, torch.zeros(20, S, 40, 100)
    t = torch.full((batch,), 600)
    a, s = (float(column[600]) for column in (d.table.signal, d.table.noise))
    step = ddim_step(d, 600, 300, eta=1.0)
    drawn = {
        "add_noise": d.add_noise(zero, t, counter(Stream.DIFFUSION, batch)).z / s,
        "start": start_noise(d, zero.shape, 600, counter(Stream.SAMPLER_START, batch)) / (a * a + s * s) ** 0.5,
        "step": make_step(d, zero, zero, step, noise=counter(Stream.SAMPLER_ETA, batch)).z / step.weights.sigma,
    }
    for where, noise in drawn.items():
        columns = noise.transpose(0, 1).reshape(S, -1)
        covariance = columns @ columns.T / columns.shape[1]
        torch.testing.assert_close(covariance, LL, rtol=0, atol=0.04, msg=lambda text, w=where: f"{w}: {text}")


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("row", "prediction"), [(row, prediction) for row in ROWS for prediction in predictions_of(row)]
)
def test_noising_and_steps_are_those_of_the_matrices(row, prediction, named):
    d, t, after = process_with("persistence", row, prediction), 700, 300
    x, noise, fresh = draw((3, S, 2, 4), num=3)
    given, given_fresh = noise, fresh
    if named:  # drawn by name, and the same noise
        given, given_fresh = counter(Stream.DIFFUSION), counter(Stream.SAMPLER_ETA)
        noise, fresh = (normal(each, tuple(x.shape), dtype=x.dtype) for each in (given, given_fresh))
    z, target, x0 = d.add_noise(x, torch.full((3,), t), given)
    a, s, p, q = (column[t] for column in (d.table.signal, d.table.noise, d.table.target_noise, d.table.target_signal))
    L = operators(d, t, S)[1]
    n = along_frames(L, noise)
    size = max(1.0, s.item())
    torch.testing.assert_close(z, a * x + s * n, rtol=0, atol=1e-12 * size)
    torch.testing.assert_close(target, p * n + q * x, rtol=0, atol=1e-12 * size)
    assert x0 is x
    step = ddim_step(d, t, after, eta=1.0)
    result = make_step(d, z, target, step, noise=given_fresh, return_x0=True)
    expected = step.weights.clean * x + step.weights.noise * n + step.weights.sigma * along_frames(L, fresh)
    torch.testing.assert_close(result.x0, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    ratio=st.floats(0, 0.95),
    prediction=st.sampled_from(["eps", "v", "x0", "velocity", "edm"]),
    sampler=st.sampled_from(["ddim", "ancestral", "dpmpp_2m", "heun"]),
    seed=st.integers(0, 2**32),
)
def test_with_a_dynamics_operator_it_is_correlated_noise(ratio, prediction, sampler, seed):
    """L = D_γ: PYoCo's noise with constant γ̄, noising, samplers and known history alike."""
    theirs = build_process(
        process="correlated_noise", gamma_schedule="constant", gamma_ratio=ratio, prediction=prediction
    )
    plain = build_process(process="standard", prediction=prediction)
    D = mixing_matrix(torch.tensor([1 - ratio], dtype=torch.float64), S)[0]
    ours = replace(plain, table=replace(plain.table, noise_operator=D))
    x, noise, start = draw((2, S, 3), seed=seed, num=3)
    t = torch.tensor([100, 700])
    torch.testing.assert_close(tuple(ours.add_noise(x, t, noise)), tuple(theirs.add_noise(x, t, noise)), **ROUNDING)
    grid = timestep_grid(ours.table, 4, "log_snr")
    run = {"timesteps": grid, "sampler": sampler, "noise": draw(x.shape, seed=seed + 1, num=4), "history": x[:, :H]}
    results = []
    for d in (ours, theirs):
        begun = start_noise(d, x.shape, grid[0], start, dtype=torch.float64)
        results.append(sample(d, lambda z, t, d=d: output_for(d, z, z / 2, int(t[0])), start=begun, **run))
    torch.testing.assert_close(*results, **ROUNDING)


ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""float64's 1e-16, times what unmixing at γ̄ = 0.05 and dividing by a = 0.38 at the grid's first timestep enlarge."""


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("heun", 2)])
@pytest.mark.parametrize("row", ROWS)
def test_samplers_keep_their_order(row, sampler, order):
    """L⁻¹z is standard diffusion of L⁻¹x, so every solver is as accurate as there."""
    d = process_with("persistence", row, None, num_timesteps=100_000)
    assert_order(errors_from_the_flow(d, sampler), order)


@pytest.mark.parametrize("row", ROWS)
def test_ancestral_sampling_has_the_data_distribution(row):
    d = process_with("persistence", row, "x0")
    assert_first_order_to_the_data(d, 0.12 if row.startswith("edm") else 0.08)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_rounding_errors_are_as_predicted(prediction, dtype):
    """The noise is larger in late frames, and so is what storing it loses."""
    lags = 0.98 ** torch.arange(SHAPE[1]).double()
    d = process_with("persistence", prediction=prediction, frame_autocovariance=lags)
    white = process_of("standard", prediction)
    roundoff = torch.finfo(dtype).eps / 2
    for t, after in ((961, 941), (500, 480), (20, 10)):
        step = ddim_step(d, t, after)
        clean_error, step_error = (gain * roundoff for gain in gains(d, step))
        assert 1 <= gains(d, step)[1] / gains(white, step)[1] < 1.5  # the last frame's noise has variance 1.7
        z_next, x0, exact_z, exact_x0 = perfect_step(d, step, dtype)
        operations = 2 if dtype == torch.float32 else 1
        # L's product and noise as given round as often again
        assert deviation(x0 - exact_x0) <= operations * (clean_error + roundoff), (t, after)
        assert deviation(z_next - exact_z) <= operations * (step_error + 2 * roundoff), (t, after)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_a_forecast_on_every_backend_is_float64s(backend, row):
    """Start, fresh noise and known history of an ancestral run, all drawn by name."""
    results = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        d = process_with("persistence", row, "x0", backend=name)
        grid = timestep_grid(d.table, 6, "log_snr")
        history = draw((3, H, 2, 33), num=1)[0].to(dtype)
        start = start_noise(d, (3, S, 2, 33), grid[0], counter(Stream.SAMPLER_START), dtype=dtype)
        run = {"sampler": "ancestral", "noise": counter(Stream.SAMPLER_ETA), "history": history}
        results.append(sample(d, lambda z, t: z / (2 + z.square()), start=start, timesteps=grid, **run))
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-4)  # float32 in six steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_only(dtype):
    """Noise is formed in float32 and rounded with z alone, drawn or given."""
    d = process_with()
    (x, noise), t = draw((2, S, 3, 4), dtype=dtype), torch.tensor([5, 900])
    for white in (noise, counter(Stream.DIFFUSION, 2)):
        exact = white.double() if isinstance(white, torch.Tensor) else white
        ours, theirs = d.add_noise(x, t, white), d.add_noise(x.double(), t, exact)
        eps = torch.finfo(dtype).eps
        for half, full in zip(ours, theirs, strict=True):
            assert half.dtype == dtype
            torch.testing.assert_close(half.double(), full, rtol=eps / 2 * 1.01, atol=1e-5)
    assert start_noise(d, x.shape, 900, noise, dtype=dtype).dtype == dtype


def test_latents_are_drawn_in_the_same_pass():
    d, t = process_with(), torch.tensor([5, 900])
    mean, logvar, noise = draw((2, S, 3, 4), num=3)
    posterior = LatentPosterior(mean, logvar, counter(Stream.LATENT_POSTERIOR, 2), 0.5)
    x = 0.5 * (mean + (logvar / 2).exp() * normal(posterior.noise, tuple(mean.shape), dtype=torch.float64))
    torch.testing.assert_close(
        tuple(d.add_noise(posterior, t, noise)), tuple(d.add_noise(x, t, noise)), rtol=0, atol=1e-12
    )


def test_the_operator_is_put_on_a_device_once():
    """A recording of a sampling run may send nothing."""
    d, calls = process_with(), []
    for _ in range(2):
        with Watch() as watch:
            d.colored(torch.zeros(1, S, 4, device="meta"))
        calls.append([name for name in watch.done if "copy" in name or "linalg" in name])
    assert calls[0].count("aten::_to_copy") == 1 and not calls[1], calls


@pytest.mark.parametrize("relative", [{}, {"frames_relative_to": "regression"}])
def test_the_inputs_deviation_is_that_of_z(relative):
    """In the mean over frames, as anywhere; frames of unit variance keep it, as noise does."""
    d = process_with(normalize_input=True, **relative)
    torch.testing.assert_close(d.table.input_std, torch.ones_like(d.table.input_std), rtol=1e-9, atol=0)


def test_nothing_is_mixed_so_every_loss_space_is_the_same():
    x, noise = draw((2, S, 3))
    t, losses = torch.tensor([5, 900]), []
    for space in ("target", "mixed", "unmixed"):
        d = process_with(loss_space=space)
        losses.append(d.loss(0 * x, d.add_noise(x, t, noise).target, t)[1])
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_what_follows_from_data():
    assert DiffusionConfig(process="standard", noise_like_errors_of="regression").follows_from_data
    assert DiffusionConfig(frames_relative_to="persistence").follows_from_data
    assert DiffusionConfig(normalize_input=True).follows_from_data and not DiffusionConfig().follows_from_data


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_history_frames": 0}, "of 6 frames 0 are history, which must be 1 to 5"),
        ({"num_history_frames": S}, "of 6 frames 6 are history"),
        ({"frame_autocovariance": None}, "noise_like_errors_of needs frame_autocovariance"),
        ({"frame_autocovariance": [1.0] * S}, "a forecast by persistence makes no error by the data's"),
        ({"noise_like_errors_of": "red"}, "noise_like_errors_of is 'red'"),
        ({"process": "dydiff"}, "noise_like_errors_of is 'persistence', and process 'dydiff' mixes frames or noise by"),
        ({"process": "dydiff", "network_space": "unmixed"}, "process 'dydiff' mixes"),
        ({"process": "dydiff_independent"}, "process 'dydiff_independent' mixes"),
        ({"process": "correlated_noise"}, "process 'correlated_noise' mixes"),
        (
            {"process": "flow_matching", "mixes": "noise"},
            "use 'standard', or 'flow_matching' or 'edm' with mixes 'none'",
        ),
        ({"process": "edm", "mixes": "both"}, "process 'edm' mixes"),
    ],
)
def test_mistakes_are_one_line(options, words):
    right = {"process": "standard", "noise_like_errors_of": "persistence", **KNOWN}
    with pytest.raises(ValueError, match=words) as error:
        build_process(**{**right, **options})
    assert "\n" not in str(error.value)


def test_windows_of_another_length_are_refused():
    x = torch.zeros(1, S + 1, 4)
    with pytest.raises(ValueError, match="made for 6 frames, this sequence has 7"):
        start_noise(process_with(), x.shape, 3, x)
    with pytest.raises(ValueError, match=r"noise_operator has .*\(6, 6\).*; expected \(\(7, 7\)"):
        process_with().add_noise(x, torch.tensor([3]), x)
