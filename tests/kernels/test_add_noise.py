"""The forward process and its targets, on every backend, with given and with drawn noise."""

import itertools

import pytest
import torch
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, counter, levels, non_contiguous, random_tensor

from dydiff_kernels import LatentPosterior, NoisedLatents, Stream, add_noise, frame_mix, normal

PREDICTIONS = ["eps", "v", "x0"]


def assert_same(actual: NoisedLatents, expected: NoisedLatents) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_matches(one, other, scale=4)


def test_reference_is_the_definition():
    """z, and each target recovers μ and ε̃ by the formulas of the method, in float64."""
    x, noise = random_tensor((2, 5, 7)).double(), random_tensor((2, 5, 7), seed=1).double()
    alpha_bar, gamma_bar = levels(2, seed=3), levels(2, seed=4)
    mean, mixed = frame_mix(x, gamma_bar), frame_mix(noise, gamma_bar)
    a, b = alpha_bar.sqrt()[:, None, None], (1 - alpha_bar).sqrt()[:, None, None]
    z, eps, _ = add_noise(x, alpha_bar, gamma_bar, noise, prediction="eps")
    _, v, x0 = add_noise(x, alpha_bar, gamma_bar, noise, prediction="v", with_x0=True)
    torch.testing.assert_close(z, a * mean + b * mixed)
    torch.testing.assert_close(eps, mixed)
    torch.testing.assert_close(a * z - b * v, mean)
    torch.testing.assert_close(b * z + a * v, mixed)
    assert x0 is x and add_noise(x, alpha_bar, gamma_bar, noise, prediction="x0").target is x
    independent = add_noise(x, alpha_bar, gamma_bar, noise, dependent_noise=False)
    torch.testing.assert_close(independent.target, noise)
    torch.testing.assert_close(independent.z, a * mean + b * noise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_matches_reference(backend, dtype, shape):
    x, noise = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    alpha_bar, gamma_bar = levels(shape[0], seed=3), levels(shape[0], seed=4)
    for prediction, dependent, source in itertools.product(PREDICTIONS, (True, False), (noise, counter(shape[0]))):
        arguments = (x, alpha_bar, gamma_bar, source)
        options = dict(prediction=prediction, dependent_noise=dependent)
        assert_same(
            add_noise(*arguments, **options, backend=backend), add_noise(*arguments, **options, backend="reference")
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_posterior_is_sampled_in_the_same_pass(backend, dtype, shape):
    mean, logvar = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1) - 1
    drawn, given = counter(shape[0], stream=Stream.LATENT_POSTERIOR), random_tensor(shape, dtype, seed=2)
    alpha_bar, gamma_bar = levels(shape[0], seed=3), levels(shape[0], seed=4)
    for prediction, noise in itertools.product(PREDICTIONS, (drawn, given)):
        posterior = LatentPosterior(mean, logvar, noise, scale=0.18215)
        arguments = (posterior, alpha_bar, gamma_bar, counter(shape[0]))
        options = dict(prediction=prediction, with_x0=True, dtype=torch.float32)
        actual = add_noise(*arguments, **options, backend=backend)
        assert_same(actual, add_noise(*arguments, **options, backend="reference"))
        sample = noise if noise is given else normal(drawn, shape)
        assert_matches(actual.x0, 0.18215 * (mean.float() + (0.5 * logvar.float()).exp() * sample.float()))


def test_extreme_log_variances(backend):
    """The whole range that autoencoders clamp to, and far beyond it."""
    logvar = torch.tensor([[[-1000.0, -170.0, -30.0, -1e-4, 0.0, 1e-4, 20.0, 80.0]]])
    posterior = LatentPosterior(torch.zeros(1, 1, 8), logvar, torch.ones(1, 1, 8))
    x0 = add_noise(posterior, torch.ones(1), torch.ones(1), torch.zeros(1, 1, 8), with_x0=True, backend=backend).x0
    torch.testing.assert_close(x0, (0.5 * logvar).exp(), rtol=1e-6, atol=1e-37)


def test_non_contiguous_input(backend):
    x, noise = random_tensor((3, 4, 5, 6)), random_tensor((3, 4, 5, 6), seed=1)
    alpha_bar, gamma_bar = levels(3, seed=3), levels(3, seed=4)
    expected = add_noise(x, alpha_bar, gamma_bar, noise, prediction="v", backend="reference")
    for view, noise_view in zip(non_contiguous(x), non_contiguous(noise), strict=True):
        assert_same(add_noise(view, alpha_bar, gamma_bar, noise_view, prediction="v", backend=backend), expected)


def test_results_into_given_memory(backend):
    x, levels_2 = random_tensor((2, 5, 63)), levels(2)
    expected = add_noise(x, levels_2, levels_2, counter(2), prediction="v", with_x0=True, backend=backend)
    room = torch.full((4, 2, 5, 63), float("nan"))
    out = NoisedLatents(room[0], room[1], room[2])
    results = add_noise(x, levels_2, levels_2, counter(2), prediction="v", with_x0=True, out=out, backend=backend)
    assert [r.data_ptr() for r in results] == [r.data_ptr() for r in out]
    assert torch.equal(room[0], expected.z) and torch.equal(room[1], expected.target) and torch.equal(room[2], x)
    assert room[3].isnan().all()


def test_target_can_be_left_out(backend):
    x, levels_2 = random_tensor((2, 5, 63)), levels(2)
    full = add_noise(x, levels_2, levels_2, counter(2), backend=backend)
    bare = add_noise(x, levels_2, levels_2, counter(2), with_target=False, backend=backend)
    assert bare.target is None and bare.x0 is None and torch.equal(bare.z, full.z)


def test_drawn_noise_is_the_counters_noise(backend):
    """At ᾱ = 0 and γ̄ = 1 z is the noise itself, for a sample in any batch."""
    named = counter(3)
    z = add_noise(random_tensor((3, 4, 33)), torch.zeros(3), torch.ones(3), named, backend=backend).z
    assert (z - normal(named, (3, 4, 33), backend="reference")).abs().max() < 1e-6


X = torch.zeros(2, 3, 4)
ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, torch.ones(3), ONES, X), {}, "alpha_bar has shape \\(3,\\); expected \\(2,\\)"),
        ((X, -ONES, ONES, X), {}, "alpha_bar holds -1.0"),
        ((X, ONES, ONES, X[:1]), {}, "noise has shape \\(1, 3, 4\\); expected \\(2, 3, 4\\)"),
        ((X, ONES, ONES, X.double()), {}, "noise has dtype torch.float64; latents has torch.float32"),
        ((X, ONES, ONES, None), {}, "noise is NoneType; expected a tensor or a NoiseCounter"),
        ((X, ONES, ONES, counter(3)), {}, "names 3 samples"),
        ((X, ONES, ONES, X), {"prediction": "epsilon"}, "prediction is 'epsilon'; expected one of eps, v, x0"),
        ((X.clone().requires_grad_(), ONES, ONES, X), {}, "latents requires a gradient"),
        ((X, ONES, ONES, X), {"dtype": torch.float64}, "dtype is torch.float64"),
        ((X, ONES, ONES, X), {"out": NoisedLatents(X[:1], None, None)}, "out.z has shape"),
        ((X, ONES, ONES, X), {"out": NoisedLatents(X[:, :1].expand(2, 3, 4), None, None)}, "out.z has strides"),
        ((LatentPosterior(X, X[:1], X), ONES, ONES, X), {}, "latents.logvar has shape"),
        ((X.to("meta"), ONES, ONES, X), {}, "noise is on cpu; expected meta"),
    ],
)
def test_errors_name_expected_and_actual(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        add_noise(*arguments, **options)
