"""The process on tensors, for every row of the table: noising, estimates and steps against explicit matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from process_rows import (
    ROWS,
    ROWS_AND_PREDICTIONS,
    along_frames,
    ddim_step,
    draw,
    error_gain,
    level,
    make_step,
    noised,
    operators,
    output_for,
    process_of,
)

from dydiff_dist.diffusion import Step, StepWeights, build_process
from dydiff_dist.diffusion.samplers import ddim_weights
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, normal

N = 200

processes = st.builds(
    lambda row_and_prediction, **options: process_of(*row_and_prediction, num_timesteps=N, **options),
    st.sampled_from(ROWS_AND_PREDICTIONS),
    beta_schedule=st.sampled_from(["cosine", "linear", "scaled_linear"]),
    gamma_ratio=st.floats(0, 0.999),
)
dydiff_schedules = st.builds(
    lambda row, **options: process_of(row, num_timesteps=N, **options),
    st.sampled_from(["dydiff", "dydiff_independent", "correlated_noise"]),
    prediction=st.sampled_from(["eps", "v", "x0"]),
    gamma_schedule=st.sampled_from(["cosine", "linear_cumprod", "none"]),
    gamma_ratio=st.floats(0, 1),
)
any_process = processes | dydiff_schedules
shapes = st.builds(
    lambda B, S, rest: (B, S, *rest),
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from([(), (3,), (2, 3, 4)]),
)
pairs = st.tuples(st.integers(-1, N - 1), st.integers(0, N - 1)).map(sorted).filter(lambda pair: pair[0] < pair[1])


@settings(deadline=None, max_examples=100)
@given(d=any_process, shape=shapes, seed=st.integers(0, 2**32), data=st.data())
def test_add_noise_is_the_general_form(d, shape, seed, data):
    """z = a A x + s B ε and target p B ε + q A x (p ε + q x before mixing), each sample at a timestep of its own."""
    x, noise = draw(shape, seed)
    timesteps = data.draw(st.lists(st.integers(0, N - 1), min_size=shape[0], max_size=shape[0]))
    z, target, x0 = d.add_noise(x, torch.tensor(timesteps), noise)
    assert x0 is x
    for i, t in enumerate(timesteps):
        a, s, p, q = (column[t] for column in (d.table.signal, d.table.noise, *targets(d)))
        A, B = operators(d, t, shape[1])
        mean, mixed_noise = (along_frames(matrix, v[i : i + 1])[0] for matrix, v in ((A, x), (B, noise)))
        scale = max(1.0, a.item(), s.item(), p.abs().item(), q.abs().item())
        torch.testing.assert_close(z[i], a * mean + s * mixed_noise, rtol=0, atol=1e-13 * scale)
        expected = p * mixed_noise + q * mean if d.table.mixes_target else p * noise[i] + q * x[i]
        torch.testing.assert_close(target[i], expected, rtol=0, atol=1e-13 * scale)


def targets(d):
    return d.table.target_noise, d.table.target_signal


@settings(deadline=None, max_examples=150)
@given(d=any_process, shape=shapes, seed=st.integers(0, 2**32), timestep=st.integers(0, N - 1))
def test_the_true_target_gives_the_frames_and_the_noise(d, shape, seed, timestep):
    """x̂ = x; and ε̂ = ε, which a step to clean with weight 1 on ε̂ alone makes visible."""
    x, noise = draw(shape, seed)
    z, target, _ = d.add_noise(x, torch.full(shape[:1], timestep), noise)
    only_noise = Step(level(d, timestep), level(d, -1), StepWeights(clean=0.0, noise=1.0))
    noise_hat, x0_hat = make_step(d, z, target, only_noise)
    tolerance = 2e-15 * error_gain(d, timestep) + 1e-12
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=tolerance)
    lost = 1 / d.table.noise[timestep].clamp(max=1).item()
    torch.testing.assert_close(noise_hat, noise, rtol=0, atol=tolerance * lost)


@settings(deadline=None, max_examples=150)
@given(d=any_process, shape=shapes, seed=st.integers(0, 2**32), pair=pairs)
def test_ddim_step_lands_on_the_forward_process(d, shape, seed, pair):
    """η = 0 with the true target: z at t' is add_noise at t' of the same x and ε; at t' = -1 it is x."""
    x, noise = draw(shape, seed)
    after, timestep = pair
    z, target, _ = d.add_noise(x, torch.full(shape[:1], timestep), noise)
    z_next, x0_hat = make_step(d, z, target, ddim_step(d, timestep, after))
    tolerance = 4e-15 * error_gain(d, timestep) + 1e-12
    torch.testing.assert_close(z_next, noised(d, x, after, noise), rtol=0, atol=tolerance)
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=tolerance)


def test_samples_of_a_batch_take_steps_of_their_own():
    d = process_of("dydiff_independent", "v")
    x, noise = draw((3, 5, 2))
    now, after, weights = [900, 500, 3], [800, 480, -1], ddim_weights(level(d, 500), level(d, 480))
    z, target, _ = d.add_noise(x, torch.tensor(now), noise)
    levels = [d.table.at(torch.tensor(timesteps)) for timesteps in (now, after)]
    together = d.step(z, target, d.coefficients(*levels, [weights] * 3), weights)
    for i in range(3):
        part = slice(i, i + 1)
        alone = d.coefficients(*(d.table.at(torch.tensor([timesteps[i]])) for timesteps in (now, after)), [weights])
        for one, all_ in zip(d.step(z[part], target[part], alone, weights), together, strict=True):
            assert torch.equal(one, all_[part])


@settings(deadline=None, max_examples=80)
@given(d=any_process, num_frames=st.integers(1, 5), eta=st.floats(0, 1), pair=pairs)
def test_stochastic_step_keeps_the_marginal(d, num_frames, eta, pair):
    """η > 0: z' is linear in (x, ε, w), so its distribution is its matrices, read off unit vectors: nothing is sampled.

    The mean must be a' A' x and the covariance s'² B' B'ᵀ.
    """
    after, timestep = pair
    S = num_frames
    unit, zero = torch.eye(S, dtype=torch.float64), torch.zeros(S, S, dtype=torch.float64)

    def columns(x, noise, fresh):
        z, target, _ = d.add_noise(x, torch.full((S,), timestep), noise)
        return make_step(d, z, target, ddim_step(d, timestep, after, eta), noise=fresh)[0].T

    from_x, from_noise, from_fresh = columns(unit, zero, zero), columns(zero, unit, zero), columns(zero, zero, unit)
    A, B = operators(d, after, S)
    a, s = level(d, after).signal, level(d, after).noise
    tolerance = 4e-15 * error_gain(d, timestep) + 1e-12
    torch.testing.assert_close(from_x, a * A, rtol=0, atol=tolerance)
    covariance = from_noise @ from_noise.T + from_fresh @ from_fresh.T
    torch.testing.assert_close(covariance, s**2 * B @ B.T, rtol=0, atol=10 * max(1.0, s) * tolerance)
    if eta > 0.01 and after >= 0:
        assert from_fresh.abs().max() > 0


@pytest.mark.parametrize("row", ["dydiff", "dydiff_independent", "correlated_noise", "flow_matching_noise"])
def test_stochastic_step_in_distribution(row):
    """The same by Monte Carlo, end to end: lag covariances of z' after an ancestral step."""
    d = process_of(row, "v", gamma_ratio=0.9)
    x = torch.zeros(1, 4, 200_000, dtype=torch.float64)
    noise, fresh = draw((1, 4, 200_000), seed=3)
    z, target, _ = d.add_noise(x, torch.tensor([800]), noise)
    z_next, _ = make_step(d, z, target, ddim_step(d, 800, 500, eta=1.0), noise=fresh)
    measured = torch.cov(z_next[0])
    B = operators(d, 500, 4)[1]
    # standard error of a covariance of 200,000 unit pairs: 0.003
    torch.testing.assert_close(measured, d.table.noise[500] ** 2 * B @ B.T, rtol=0, atol=0.015)


# -- standard diffusion -----------------------------------------------------------------------------------------------


def plain_step(prediction, now, after, z, output, eta, fresh):
    """DDIM of standard diffusion as Song et al. 2021 write it, for scalar levels: an independent implementation."""
    a, s = now
    if prediction == "eps":
        x0, eps = (z - s * output) / a, output
    elif prediction == "v":
        x0, eps = a * z - s * output, s * z + a * output
    else:
        x0, eps = output, (z - a * output) / s
    sigma = eta * math.sqrt((1 - after[0] ** 2) / (1 - a**2)) * math.sqrt(1 - (a / after[0]) ** 2)
    direction = math.sqrt(1 - after[0] ** 2 - sigma**2)
    return after[0] * x0 + direction * eps + (sigma * fresh if eta else 0), x0


def plain_step_of_the_table(d, step, z, output, fresh):
    """The table's formulas on single numbers."""
    a, s, p, q = (column[step.now.timestep].item() for column in (d.table.signal, d.table.noise, *targets(d)))
    determinant = a * p - s * q
    x0 = p / determinant * z + -s / determinant * output
    rest = step.weights.noise / s * (z - a * x0)
    return step.weights.clean * x0 + (rest + step.weights.sigma * fresh), x0


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("process", ["dydiff", "dydiff_independent", "standard", "correlated_noise"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_no_mixing_is_plain_diffusion(prediction, process, dtype, backend):
    """Bit for bit by the reference, to the last bits by kernels."""
    options = {"gamma_schedule": "none", "prediction": prediction}
    d = build_process(process=process, backend=backend, **options)
    x, noise = draw((1, 5, 2, 3, 4), 0, dtype)
    output, fresh = draw((1, 5, 2, 3, 4), 1, dtype)
    exact = backend == "reference" or dtype == torch.float64
    for t, after, eta in [(981, 961, 0.0), (500, 480, 1.0), (21, 1, 0.3), (1, -1, 0.0), (700, 10, 0.7)]:
        now_level, after_level = level(d, t), level(d, after)
        a, s = now_level.signal, now_level.noise
        z, target, _ = d.add_noise(x, torch.tensor([t]), noise)
        expected = {"eps": noise, "v": a * noise - s * x, "x0": x}[prediction]
        step = ddim_step(d, t, after, eta)
        result, x0_hat = make_step(d, z, output, step, noise=fresh)
        close = {"rtol": 0, "atol": 0} if exact else {"rtol": 0, "atol": 2e-6 / a}
        torch.testing.assert_close(z, a * x + s * noise, **close)
        torch.testing.assert_close(target, expected, **close)
        for ours, theirs in zip((result, x0_hat), plain_step_of_the_table(d, step, z, output, fresh), strict=True):
            torch.testing.assert_close(ours, theirs, **close)
        # the paper's form rounds elsewhere
        published = plain_step(prediction, (a, s), (after_level.signal, None), z.double(), output, eta, fresh)
        atol = (1e-14 if dtype == torch.float64 else 2e-6) / a
        for ours, theirs in zip((result, x0_hat), published, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol)


def test_unmixed_network_space_is_plain_diffusion():
    plain = build_process(gamma_schedule="none", prediction="v")
    unmixed = build_process(gamma_ratio=0.9, prediction="v", network_space="unmixed", loss_space="mixed")
    x, noise = draw((2, 5, 3))
    t = torch.tensor([400, 900])
    for ours, theirs in zip(unmixed.add_noise(x, t, noise), plain.add_noise(x, t, noise), strict=True):
        assert torch.equal(ours, theirs)
    step = ddim_step(plain, 900, 10)
    assert torch.equal(make_step(unmixed, x, noise, step)[0], make_step(plain, x, noise, step)[0])
    assert not unmixed.table.mixes
    assert unmixed.objective.gamma[-1] < 0.11
    with pytest.raises(ValueError, match="needs frames and noise mixed alike"):
        build_process(process="correlated_noise", network_space="unmixed")


# -- history, noise, input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "prediction"), ROWS_AND_PREDICTIONS)
def test_history_replaces_the_estimate_and_its_noise(row, prediction):
    """A network wrong on history frames only: with known history the step is exact all the same.

    The error is made in the unmixed frames: a mixed one would reach one frame further.
    """
    d = process_of(row, prediction)
    x, noise = draw((2, 6, 3))
    wrong = x.clone()
    wrong[:, :2] += 1
    for timestep, after in ((600, 300), (900, -1)):
        z = noised(d, x, timestep, noise)
        output = output_for(d, z, wrong, timestep)
        z_next, x0_hat = make_step(d, z, output, ddim_step(d, timestep, after), history=x[:, :2])
        torch.testing.assert_close(x0_hat, x, rtol=0, atol=2e-11)
        torch.testing.assert_close(z_next, noised(d, x, after, noise), rtol=0, atol=2e-11)
        assert not torch.allclose(make_step(d, z, output, ddim_step(d, timestep, after))[0], z_next, atol=1e-3)


@pytest.mark.parametrize("row", ["dydiff", "correlated_noise", "edm_both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_counter_names_the_same_noise_as_the_tensor(dtype, row):
    d = process_of(row, "v", sigma_max=5.0)
    x = draw((3, 4, 2, 5), 0, dtype)[0]
    counter = NoiseCounter(seed=7, sample_index=torch.tensor([5, 0, 2**33]), step=11, stream=Stream.DIFFUSION)
    drawn = normal(counter, x.shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    t = torch.tensor([10, 500, 900])
    # storage is rounded once; a float32 kernel may differ from the tensor path in the last bits
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for named, given_ in zip(d.add_noise(x, t, counter), d.add_noise(x, t, drawn), strict=True):
        assert named.dtype == dtype
        torch.testing.assert_close(named, given_, rtol=0, atol=tolerance)
    step = ddim_step(d, 500, 490, eta=1.0)
    by_name, by_value = (make_step(d, x, x, step, noise=n)[0] for n in (counter, drawn))
    torch.testing.assert_close(by_name, by_value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("row", ["dydiff", "dydiff_independent", "correlated_noise", "flow_matching_both"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_latents_are_drawn_from_their_posterior(row, prediction):
    d = process_of(row, prediction)
    mean, drawn = draw((3, 4, 2, 5))
    noise = draw(mean.shape, seed=1)[0]
    t = torch.tensor([10, 500, 900])
    logvar = torch.full_like(mean, -1.0)
    z, target, x0 = d.add_noise(LatentPosterior(mean, logvar, drawn, scale=0.5), t, noise)
    expected = 0.5 * (mean + math.exp(-0.5) * drawn)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-14)
    for ours, theirs in zip((z, target), d.add_noise(expected, t, noise)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert (target is x0) == (prediction == "x0")


@settings(deadline=None, max_examples=30)
@given(
    ratio=st.floats(0, 0.99),
    row=st.sampled_from([row for row in ROWS if not row.startswith("edm")]),
    timestep=st.integers(0, N - 1),
)
def test_normalised_input_has_unit_variance(ratio, row, timestep):
    """Covariances pushed through add_noise's own matrices give exactly 1, averaged over frames."""
    S = 6
    lags = 0.9 ** torch.arange(S, dtype=torch.float64)
    frame = torch.arange(S)
    covariance = lags[(frame[:, None] - frame[None, :]).abs()]
    for given_ in (lags, covariance):
        options = {"num_timesteps": N, "gamma_ratio": ratio}
        d = process_of(row, "v", normalize_input=True, frame_autocovariance=given_, **options)
        unit, zero = torch.eye(S, dtype=torch.float64), torch.zeros(S, S, dtype=torch.float64)
        t = torch.full((S,), timestep)
        from_x = d.model_input(d.add_noise(unit, t, zero)[0], t).T
        from_noise = d.model_input(d.add_noise(zero, t, unit)[0], t).T
        variance = from_x @ covariance @ from_x.T + from_noise @ from_noise.T
        torch.testing.assert_close(variance.diagonal().mean(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", ROWS)
def test_input_is_z_itself_unless_it_is_scaled(row):
    d, z, t = process_of(row), draw((2, 3))[0], torch.tensor([1, 999])
    if row.startswith("edm"):
        scale = 1 / (1 + d.table.noise[t].square()).sqrt()  # c_in of Karras et al. 2022 for data of unit variance
        torch.testing.assert_close(d.model_input(z, t), scale[:, None] * z, rtol=1e-14, atol=0)
    else:
        assert d.model_input(z, t) is z


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timesteps", "words"),
    [
        (torch.tensor([0, 1000]), r"hold 1000; they must lie in 0\.\.999"),
        (torch.tensor([-1, 5]), r"hold -1; they must lie in 0\.\.999"),
        (torch.tensor([0.0, 1.0]), "timesteps are torch.float32"),
        (torch.tensor([0, 1, 2]), r"have shape \(3,\) for frames of shape \(2, 4, 3\)"),
        (torch.tensor([[2] * 4] * 2), r"have shape \(2, 4\) for frames of shape \(2, 4, 3\)"),
        (5, "timesteps are int"),
    ],
)
def test_refused_timesteps(timesteps, words):
    x, noise = draw((2, 4, 3))
    with pytest.raises(ValueError, match=words):
        build_process().add_noise(x, timesteps, noise)
    with pytest.raises(ValueError, match=words):
        build_process().loss(x, noise, timesteps)


def test_refused_steps():
    d = build_process()
    z, output = draw((2, 4, 3))
    t = torch.tensor([500, 300])
    with pytest.raises(ValueError, match="noise is None; give noise"):
        make_step(d, z, output, ddim_step(d, 500, 400, eta=1.0))
    with pytest.raises(ValueError, match=r"noise has shape \(2, 4\)"):
        d.add_noise(z, t, z[..., 0])
    with pytest.raises(ValueError, match="previous holds 0 estimates; the weights are for 1"):
        make_step(d, z, output, Step(level(d, 500), level(d, 400), StepWeights(1.0, 0.5, (0.5,))), previous=[])
    for shape in ((2, 5, 3), (2, 2, 4), (1, 2, 3), (2,)):
        with pytest.raises(ValueError, match="history has shape"):
            history = torch.zeros(shape, dtype=torch.float64)
            make_step(d, z, output, ddim_step(d, 500, 400), history=history)
    with pytest.raises(ValueError, match=r"has dtype torch\.int64"):
        d.add_noise(z.long(), t, z)
