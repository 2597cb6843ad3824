"""The process: predictions invert add_noise, steps land on the forward marginal, γ none is plain diffusion."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import DynamicalDiffusion, frame_mix, frame_unmix
from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_kernels import NoiseCounter, Stream, normal

PREDICTIONS = ("eps", "v", "x0")
N = 200

processes = st.builds(
    DynamicalDiffusion,
    num_timesteps=st.just(N),
    beta_schedule=st.sampled_from(["cosine", "linear", "scaled_linear"]),
    gamma_schedule=st.sampled_from(["cosine", "linear_cumprod", "none"]),
    gamma_ratio=st.floats(0, 1),
    prediction=st.sampled_from(PREDICTIONS),
    dependent_noise=st.booleans(),
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.sampled_from([(), (3,), (2, 3, 4)]))


def draw(shape, seed, dtype=torch.float64):
    B, S, rest = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, B, S, *rest, dtype=torch.float64, generator=generator).to(dtype)


def worst_gain(d, timesteps):
    """How much an elementwise rounding error may grow on the way to x̂."""
    alpha_bar, gamma_bar = d.alpha_bar[timesteps].min(), d.gamma_bar[timesteps].min()
    return (4 / (alpha_bar * gamma_bar).sqrt()).item()


@settings(deadline=None, max_examples=150)
@given(d=processes, shape=shapes, seed=st.integers(0, 2**32), data=st.data())
def test_predict_inverts_add_noise(d, shape, seed, data):
    x, noise = draw(shape, seed)
    timesteps = torch.tensor(data.draw(st.lists(st.integers(0, N - 1), min_size=shape[0], max_size=shape[0])))
    z, target = d.add_noise(x, timesteps, noise)
    x0_hat, noise_hat = d.predict(z, timesteps, target)
    tolerance = 2e-15 * worst_gain(d, timesteps) + 1e-12
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=tolerance)
    carried = frame_mix(noise, d.gamma_bar[timesteps]) if d.dependent_noise else noise
    smallest_noise = (1 - d.alpha_bar[timesteps]).sqrt().min().item()
    torch.testing.assert_close(noise_hat, carried, rtol=0, atol=tolerance + 1e-14 / smallest_noise)


@settings(deadline=None, max_examples=60)
@given(d=processes, shape=shapes, seed=st.integers(0, 2**32), data=st.data())
def test_add_noise_is_the_method(d, shape, seed, data):
    """z and target against the formulas of the method, with D as a matrix."""
    x, noise = draw(shape, seed)
    timesteps = torch.tensor(data.draw(st.lists(st.integers(0, N - 1), min_size=shape[0], max_size=shape[0])))
    D = mixing_matrix(d.gamma_bar[timesteps], shape[1])

    def mixed(x):
        return torch.einsum("bsr,br...->bs...", D, x)

    alpha_bar = d.alpha_bar[timesteps].view(-1, *[1] * (x.ndim - 1))
    mean, carried = mixed(x), mixed(noise) if d.dependent_noise else noise
    z, target = d.add_noise(x, timesteps, noise)
    torch.testing.assert_close(z, alpha_bar.sqrt() * mean + (1 - alpha_bar).sqrt() * carried, rtol=0, atol=1e-13)
    expected = {"eps": carried, "v": alpha_bar.sqrt() * carried - (1 - alpha_bar).sqrt() * mean, "x0": x}
    torch.testing.assert_close(target, expected[d.prediction], rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=150)
@given(d=processes, shape=shapes, seed=st.integers(0, 2**32), data=st.data())
def test_ddim_step_lands_on_the_forward_process(d, shape, seed, data):
    """η = 0 with the true target: z at t' is add_noise at t' of the same x and ε; at t' = -1 it is x."""
    x, noise = draw(shape, seed)
    pairs = st.tuples(st.integers(-1, N - 1), st.integers(0, N - 1)).map(sorted).filter(lambda p: p[1] >= 0)
    pairs = data.draw(st.lists(pairs, min_size=shape[0], max_size=shape[0]))
    before, timesteps = (torch.tensor(t) for t in zip(*pairs, strict=True))
    z, target = d.add_noise(x, timesteps, noise)
    z_prev, x0_hat = d.step(z, timesteps, before, target)
    expected = torch.stack(
        [
            d.add_noise(x[i : i + 1], before[i : i + 1], noise[i : i + 1])[0][0] if before[i] >= 0 else x[i]
            for i in range(len(x))
        ]
    )
    tolerance = 4e-15 * worst_gain(d, timesteps) + 1e-12
    torch.testing.assert_close(z_prev, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(d=processes, num_frames=st.integers(1, 5), eta=st.floats(0, 1), data=st.data())
def test_stochastic_step_keeps_the_marginal(d, num_frames, eta, data):
    """η > 0: z' is linear in (x, ε, n), so its distribution is its matrices, read off unit vectors: nothing is sampled.

    The mean must be √ᾱ' D' x and the covariance (1-ᾱ') D' D'ᵀ, or (1-ᾱ') I with independent noise.
    """
    before, timestep = sorted(data.draw(st.lists(st.integers(0, N - 1), min_size=2, max_size=2, unique=True)))
    S = num_frames
    unit, zero = torch.eye(S, dtype=torch.float64), torch.zeros(S, S, dtype=torch.float64)
    t, t_prev = torch.full((S,), timestep), torch.full((S,), before)

    def columns(x, noise, fresh):
        z, target = d.add_noise(x, t, noise)
        return d.step(z, t, t_prev, target, eta=eta, noise=fresh)[0].T

    from_x, from_noise, from_fresh = columns(unit, zero, zero), columns(zero, unit, zero), columns(zero, zero, unit)
    D = mixing_matrix(d.gamma_bar[before : before + 1], S)[0]
    alpha_bar = d.alpha_bar[before]
    carried = D @ D.T if d.dependent_noise else torch.eye(S, dtype=torch.float64)
    tolerance = 4e-15 * worst_gain(d, t) + 1e-12
    torch.testing.assert_close(from_x, alpha_bar.sqrt() * D, rtol=0, atol=tolerance)
    covariance = from_noise @ from_noise.T + from_fresh @ from_fresh.T
    torch.testing.assert_close(covariance, (1 - alpha_bar) * carried, rtol=0, atol=10 * tolerance)
    if eta > 0.01:
        assert from_fresh.abs().max() > 0


@pytest.mark.parametrize("dependent", [True, False])
def test_stochastic_step_in_distribution(dependent):
    """The same by Monte Carlo, end to end: lag covariances of z' after an ancestral step."""
    d = DynamicalDiffusion(prediction="v", dependent_noise=dependent, gamma_ratio=0.9)
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(1, 4, 200_000, dtype=torch.float64)
    noise, fresh = torch.randn(2, 1, 4, 200_000, dtype=torch.float64, generator=generator)
    t, t_prev = torch.tensor([800]), torch.tensor([500])
    z, target = d.add_noise(x, t, noise)
    z_prev, _ = d.step(z, t, t_prev, target, eta=1.0, noise=fresh)
    measured = torch.cov(z_prev[0])
    D = mixing_matrix(d.gamma_bar[500:501], 4)[0]
    expected = (1 - d.alpha_bar[500]) * (D @ D.T if dependent else torch.eye(4, dtype=torch.float64))
    # standard error of a covariance of 200,000 unit pairs: 0.003
    torch.testing.assert_close(measured, expected, rtol=0, atol=0.015)


# -- standard diffusion -----------------------------------------------------------------------------------------------


def plain_step(prediction, alpha_bar, alpha_bar_prev, z, output, eta, fresh):
    """DDIM of standard diffusion as Song et al. 2021 write it, for scalar levels: an independent implementation."""
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction == "eps":
        x0, eps = (z - s * output) / a, output
    elif prediction == "v":
        x0, eps = a * z - s * output, s * z + a * output
    else:
        x0, eps = output, (z - a * output) / s
    sigma = eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * math.sqrt(1 - alpha_bar / alpha_bar_prev)
    direction = math.sqrt(1 - alpha_bar_prev - sigma**2)
    return math.sqrt(alpha_bar_prev) * x0 + direction * eps + (sigma * fresh if eta else 0), x0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_mixing_is_bit_equal_to_plain_diffusion(prediction, dependent, dtype):
    d = DynamicalDiffusion(gamma_schedule="none", prediction=prediction, dependent_noise=dependent)
    x, noise = draw((1, 5, (2, 3, 4)), 0, dtype)
    output, fresh = draw((1, 5, (2, 3, 4)), 1, dtype)
    for t, t_prev, eta in [(981, 961, 0.0), (500, 480, 1.0), (21, 1, 0.3), (1, -1, 0.0), (700, 10, 0.7)]:
        alpha_bar = d.alpha_bar[t].item()
        alpha_bar_prev = d.alpha_bar[t_prev].item() if t_prev >= 0 else 1.0
        z, target = d.add_noise(x, torch.tensor([t]), noise)
        a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        assert torch.equal(z, a * x + s * noise)
        assert torch.equal(target, {"eps": noise, "v": a * noise - s * x, "x0": x}[prediction])
        expected, expected_x0 = plain_step(prediction, alpha_bar, alpha_bar_prev, z, output, eta, fresh)
        result, x0_hat = d.step(z, torch.tensor([t]), torch.tensor([t_prev]), output, eta=eta, noise=fresh)
        assert torch.equal(result, expected)
        assert torch.equal(x0_hat, expected_x0)


def test_unmixed_network_space_is_plain_diffusion():
    plain = DynamicalDiffusion(gamma_schedule="none", prediction="v")
    unmixed = DynamicalDiffusion(gamma_ratio=0.9, prediction="v", network_space="unmixed")
    x, noise = draw((2, 5, (3,)), 0)
    t, t_prev = torch.tensor([400, 900]), torch.tensor([300, 10])
    for ours, theirs in zip(unmixed.add_noise(x, t, noise), plain.add_noise(x, t, noise), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(unmixed.step(x, t, t_prev, noise)[0], plain.step(x, t, t_prev, noise)[0])
    assert unmixed.gamma_bar[-1] < 0.11


# -- per-frame timesteps ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(prediction=st.sampled_from(PREDICTIONS), shape=shapes, seed=st.integers(0, 2**32))
def test_timesteps_per_frame(prediction, shape, seed):
    """Each frame at its own level, -1 included: predictions invert, and a DDIM step lands on the levels it goes to."""
    d = DynamicalDiffusion(num_timesteps=N, prediction=prediction, gamma_ratio=0.9)
    x, noise = draw(shape, seed)
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(-1, N - 10, shape[:2], generator=generator)
    before = (timesteps * torch.rand(shape[:2], generator=generator)).floor().long().minimum(timesteps)
    z, target = d.add_noise(x, timesteps, noise)
    z_prev, x0_hat = d.step(z, timesteps, before, target)
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(z_prev, d.add_noise(x, before, noise)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dependent", [True, False])
def test_equal_timesteps_per_frame_are_one_timestep(prediction, dependent):
    d = DynamicalDiffusion(prediction=prediction, dependent_noise=dependent)
    x, noise = draw((2, 5, (3,)), 0)
    t, t_prev = torch.tensor([400, 900]), torch.tensor([300, 10])
    if not dependent:
        with pytest.raises(ValueError, match="need dependent_noise=True"):
            d.add_noise(x, t[:, None].expand(2, 5), noise)
        return
    per_frame = [tensor[:, None].expand(2, 5) for tensor in (t, t_prev)]
    for one, many in zip(d.add_noise(x, t, noise), d.add_noise(x, per_frame[0], noise), strict=True):
        assert torch.equal(one, many)
    assert torch.equal(d.step(x, t, t_prev, noise)[0], d.step(x, *per_frame, noise)[0])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_frames_stay_whatever_the_network_says(prediction):
    d = DynamicalDiffusion(prediction=prediction)
    x, noise = draw((2, 4, (3,)), 0)
    timesteps, before = torch.tensor([[-1, -1, 500, 800]] * 2), torch.tensor([[-1, -1, 400, 700]] * 2)
    z, _ = d.add_noise(x, timesteps, noise)
    z_prev, x0_hat = d.step(z, timesteps, before, 10 * noise)
    torch.testing.assert_close(x0_hat[:, :2], x[:, :2], rtol=0, atol=1e-12)
    unmixed = frame_unmix(z_prev, d.gamma_bar[700].expand(2))
    torch.testing.assert_close(unmixed[:, :2], x[:, :2], rtol=0, atol=1e-12)


def test_one_operator_per_sequence_that_of_its_noisiest_frame():
    d = DynamicalDiffusion(gamma_ratio=0.9)
    x, noise = draw((2, 3, ()), 0)
    timesteps = torch.tensor([[-1, 900, 100], [50, 30, 700]])
    z, _ = d.add_noise(x, timesteps, noise)
    alpha_bar = torch.cat((torch.ones(1, dtype=torch.float64), d.alpha_bar))[timesteps + 1]
    u = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(z, frame_mix(u, d.gamma_bar[[900, 700]]), rtol=0, atol=1e-14)


# -- history, noise, input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_history_replaces_the_estimate_and_its_noise(prediction, dependent):
    """A network wrong on history frames only: with known history the step is exact all the same.

    The error is made in the unmixed frames: a mixed one would reach one frame further.
    """
    d = DynamicalDiffusion(prediction=prediction, dependent_noise=dependent)
    x, noise = draw((2, 6, (3,)), 0)
    t, t_prev = torch.tensor([600, 900]), torch.tensor([300, -1])
    z, _ = d.add_noise(x, t, noise)
    wrong = x.clone()
    wrong[:, :2] += 1
    levels = d.levels(t, z)
    implied = DynamicalDiffusion(prediction="x0", dependent_noise=dependent)
    _, wrong_noise = implied.predict(z, t, wrong)
    mean = frame_mix(wrong, levels.gamma_bar)
    a, s = levels.alpha_bar.sqrt()[:, None, None], (1 - levels.alpha_bar).sqrt()[:, None, None]
    output = {"eps": wrong_noise, "v": a * wrong_noise - s * mean, "x0": wrong}[prediction]
    z_prev, x0_hat = d.step(z, t, t_prev, output, history=x[:, :2])
    torch.testing.assert_close(x0_hat, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(z_prev[:1], d.add_noise(x[:1], t_prev[:1], noise[:1])[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(z_prev[1], x[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_counter_names_the_same_noise_as_the_tensor(dtype):
    d = DynamicalDiffusion(prediction="v")
    x = draw((3, 4, (2, 5)), 0, dtype)[0]
    counter = NoiseCounter(seed=7, sample_index=torch.tensor([5, 0, 2**33]), step=11, stream=Stream.DIFFUSION)
    drawn = normal(counter, x.shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    t = torch.tensor([10, 500, 900])
    # storage is rounded once; a float32 kernel may differ from the tensor path in the last bits
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for named, given_ in zip(d.add_noise(x, t, counter), d.add_noise(x, t, drawn), strict=True):
        assert named.dtype == dtype
        torch.testing.assert_close(named, given_, rtol=0, atol=tolerance)
    by_name = d.step(x, t, t - 10, x, eta=1.0, noise=counter)[0]
    torch.testing.assert_close(by_name, d.step(x, t, t - 10, x, eta=1.0, noise=drawn)[0], rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=20)
@given(ratio=st.floats(0, 0.99), dependent=st.booleans(), timestep=st.integers(0, N - 1))
def test_normalised_input_has_unit_variance(ratio, dependent, timestep):
    """Covariances pushed through add_noise's own matrices give exactly 1, averaged over frames."""
    S = 6
    lags = 0.9 ** torch.arange(S, dtype=torch.float64)
    frame = torch.arange(S)
    covariance = lags[(frame[:, None] - frame[None, :]).abs()]
    for given_ in (lags, covariance):
        d = DynamicalDiffusion(
            num_timesteps=N,
            gamma_ratio=ratio,
            dependent_noise=dependent,
            normalize_input=True,
            frame_autocovariance=given_,
        )
        unit, zero = torch.eye(S, dtype=torch.float64), torch.zeros(S, S, dtype=torch.float64)
        t = torch.full((S,), timestep)
        from_x = d.model_input(d.add_noise(unit, t, zero)[0], t).T
        from_noise = d.model_input(d.add_noise(zero, t, unit)[0], t).T
        variance = from_x @ covariance @ from_x.T + from_noise @ from_noise.T
        torch.testing.assert_close(variance.diagonal().mean(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)


def test_input_is_z_itself_unless_normalised():
    z = draw((2, 3, ()), 0)[0]
    assert DynamicalDiffusion().model_input(z, torch.tensor([1, 2])) is z


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timesteps", "words"),
    [
        (torch.tensor([0, 1000]), r"hold 1000; they must lie in 0\.\.999"),
        (torch.tensor([-1, 5]), r"hold -1; they must lie in 0\.\.999"),
        (torch.tensor([0.0, 1.0]), "timesteps are torch.float32"),
        (torch.tensor([0, 1, 2]), r"have shape \(3,\) for frames of shape \(2, 4, 3\)"),
        (torch.tensor([[-2] * 4] * 2), r"hold -2; they must lie in -1\.\.999"),
        (5, "timesteps are int"),
    ],
)
def test_refused_timesteps(timesteps, words):
    x, noise = draw((2, 4, (3,)), 0)
    with pytest.raises(ValueError, match=words):
        DynamicalDiffusion().add_noise(x, timesteps, noise)


def test_refused_steps():
    d = DynamicalDiffusion()
    z, output = draw((2, 4, (3,)), 0)
    t = torch.tensor([500, 300])
    with pytest.raises(ValueError, match="prev_timesteps lie above timesteps"):
        d.step(z, t, torch.tensor([400, 301]), output)
    with pytest.raises(ValueError, match="give noise like z, or a NoiseCounter"):
        d.step(z, t, t - 100, output, eta=1.0)
    with pytest.raises(ValueError, match=r"eta is -0\.5"):
        d.step(z, t, t - 100, output, eta=-0.5)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 4\)"):
        d.add_noise(z, t, z[..., 0])
    for shape in ((2, 5, 3), (2, 2, 4), (1, 2, 3), (2,)):
        with pytest.raises(ValueError, match="history has shape"):
            d.step(z, t, t - 100, output, history=torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"frames have dtype torch\.int64"):
        d.add_noise(z.long(), t, z)
    with pytest.raises(ValueError, match="match them"):
        d.step(z, t, (t - 100)[:, None].expand(2, 4), output)
