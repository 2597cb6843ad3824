"""The forward process and its targets, on every backend, with given and with drawn noise."""

import itertools

import pytest
import torch
from kernel_cases import (
    COLORED_SHAPES,
    DTYPES,
    OPERATORS,
    SHAPE_IDS,
    SHAPES,
    apply_matrix,
    assert_matches,
    counter,
    in_memory,
    levels,
    mixing_matrix,
    non_contiguous,
    operator_gammas,
    random_levels,
    random_operator,
    random_tensor,
    scaled,
)

from dydiff_kernels import LatentPosterior, Levels, NoisedLatents, Stream, add_noise, normal


def assert_same(actual: NoisedLatents, expected: NoisedLatents, scale: float = 4) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_matches(one, other, scale=scale)


def matrix_truth(x, noise, k: Levels, mixes_target: bool):
    """z and target from matrices."""
    A, B = (mixing_matrix(gamma, x.shape[1]) for gamma in (k.frame_gamma, k.noise_gamma))
    mean, mixed = apply_matrix(A, x), apply_matrix(B, noise)
    of_noise, of_signal = (mixed, mean) if mixes_target else (noise, x)
    target = scaled(k.target_noise, of_noise) + scaled(k.target_signal, of_signal)
    return scaled(k.signal, mean) + scaled(k.noise, mixed), target


@pytest.mark.parametrize("mixes_target", [True, False])
@pytest.mark.parametrize("operators", OPERATORS)
def test_reference_is_the_definition(operators, mixes_target):
    x, noise = random_tensor((2, 5, 7)).double(), random_tensor((2, 5, 7), seed=1).double()
    k = random_levels(2, operators)
    z, target, x0 = add_noise(x, k, noise, mixes_target=mixes_target, with_x0=True)
    expected_z, expected_target = matrix_truth(x, noise, k, mixes_target)
    torch.testing.assert_close(z, expected_z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, expected_target, rtol=1e-12, atol=1e-12)
    assert x0 is x


def test_targets_of_the_method_recover_mean_and_noise():
    """eps and v of arXiv 2503.00951: each gives A x and B ε back by the formulas of the method, in float64."""
    x, noise = random_tensor((2, 5, 7)).double(), random_tensor((2, 5, 7), seed=1).double()
    alpha_bar, gammas = levels(2, seed=3), operator_gammas("shared", 2, seed=4)
    a, s, one, zero = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.ones(2).double(), torch.zeros(2).double()
    mean, mixed = (apply_matrix(mixing_matrix(gammas[0], 5), t) for t in (x, noise))
    z, eps, _ = add_noise(x, Levels(a, s, *gammas, one, zero), noise)
    _, v, _ = add_noise(x, Levels(a, s, *gammas, a, -s), noise)
    torch.testing.assert_close(eps, mixed)
    torch.testing.assert_close(scaled(a, z) - scaled(s, v), mean)
    torch.testing.assert_close(scaled(s, z) + scaled(a, v), mixed)
    clean = add_noise(x, Levels(a, s, *gammas, zero, one), noise, mixes_target=False).target
    torch.testing.assert_close(clean, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_matches_reference(backend, dtype, shape):
    x, noise = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    for operators, mixes, source in itertools.product(OPERATORS, (True, False), (noise, counter(shape[0]))):
        arguments = (x, random_levels(shape[0], operators), source)
        actual = add_noise(*arguments, mixes_target=mixes, backend=backend)
        assert_same(actual, add_noise(*arguments, mixes_target=mixes, backend="reference"))


@pytest.mark.parametrize("mixes_target", [True, False])
@pytest.mark.parametrize("operators", OPERATORS)
def test_reference_with_an_operator_on_the_noise_is_the_definition(operators, mixes_target):
    x, noise = random_tensor((2, 5, 7)).double(), random_tensor((2, 5, 7), seed=1).double()
    k, L = random_levels(2, operators), random_operator(5, torch.float64)
    z, target, _ = add_noise(x, k, noise, noise_operator=L, mixes_target=mixes_target)
    expected_z, expected_target = matrix_truth(x, apply_matrix(L.tril()[None].expand(2, 5, 5), noise), k, mixes_target)
    torch.testing.assert_close(z, expected_z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, expected_target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", COLORED_SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_an_operator_on_the_noise_matches_float64(backend, dtype, shape):
    """Given and drawn noise, alone, before mixing and with a posterior drawn in the same pass."""
    x, noise = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    L, named = random_operator(shape[1]), counter(shape[0])
    cases = itertools.product(("noise only", "frames only"), (True, False), (noise, named))
    for operators, mixes, source in cases:
        k = random_levels(shape[0], operators)
        actual = add_noise(x, k, source, noise_operator=L, mixes_target=mixes, backend=backend)
        exact_noise = noise.double() if source is noise else normal(named, shape, dtype=torch.float64)
        exact = add_noise(x.double(), k, exact_noise, noise_operator=L.double(), mixes_target=mixes)
        # the frames' sum, in float32, of terms that cancel
        assert_same(actual, NoisedLatents(*(None if t is None else t.to(dtype) for t in exact)), scale=8)
    mean, logvar = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1) - 1
    posterior = LatentPosterior(mean, logvar, counter(shape[0], stream=Stream.LATENT_POSTERIOR), scale=0.18215)
    options = dict(noise_operator=L, with_x0=True, dtype=torch.float32)
    actual = add_noise(posterior, k, named, **options, backend=backend)
    assert_same(actual, add_noise(posterior, k, named, **options, backend="reference"), scale=8)


def test_a_dynamics_operator_given_as_a_matrix_is_that_of_the_levels(backend):
    """γ̄ = 0.3 on the noise of three samples, as a level and as an operator on all."""
    x, levels_of = random_tensor((3, 5, 63)), random_levels(3, "frames only")
    mixed = add_noise(x, levels_of._replace(noise_gamma=torch.full((3,), 0.3)), counter(3), backend=backend)
    D = mixing_matrix(torch.tensor([0.3]), 5)[0].float()
    assert_same(add_noise(x, levels_of, counter(3), noise_operator=D, backend=backend), mixed)


def test_large_noise_and_negative_factors(backend):
    """Variance-exploding levels, and flow matching's target ε - x."""
    x, noise = random_tensor((3, 4, 33)), random_tensor((3, 4, 33), seed=1)
    one, sigma = torch.ones(3).double(), torch.tensor([0.002, 1.0, 80.0]).double()
    k = Levels(one, sigma, *operator_gammas("different", 3), one, -one)
    expected_z, expected_target = matrix_truth(x.double(), noise.double(), k, True)
    result = add_noise(x, k, noise, backend=backend)
    torch.testing.assert_close(result.z.double(), expected_z, rtol=2e-6, atol=80 * 2e-6)
    torch.testing.assert_close(result.target.double(), expected_target, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_posterior_is_sampled_in_the_same_pass(backend, dtype, shape):
    mean, logvar = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1) - 1
    drawn, given = counter(shape[0], stream=Stream.LATENT_POSTERIOR), random_tensor(shape, dtype, seed=2)
    for mixes, noise in itertools.product((True, False), (drawn, given)):
        posterior = LatentPosterior(mean, logvar, noise, scale=0.18215)
        arguments = (posterior, random_levels(shape[0], "different"), counter(shape[0]))
        options = dict(mixes_target=mixes, with_x0=True, dtype=torch.float32)
        actual = add_noise(*arguments, **options, backend=backend)
        assert_same(actual, add_noise(*arguments, **options, backend="reference"))
        sample = noise if noise is given else normal(drawn, shape)
        assert_matches(actual.x0, 0.18215 * (mean.float() + (0.5 * logvar.float()).exp() * sample.float()))


def test_extreme_log_variances(backend):
    """The whole range that autoencoders clamp to, and far beyond it."""
    logvar = torch.tensor([[[-1000.0, -170.0, -30.0, -1e-4, 0.0, 1e-4, 20.0, 80.0]]])
    posterior = LatentPosterior(torch.zeros(1, 1, 8), logvar, torch.ones(1, 1, 8))
    x0 = add_noise(posterior, Levels(*[torch.ones(1)] * 6), torch.zeros(1, 1, 8), with_x0=True, backend=backend).x0
    torch.testing.assert_close(x0, (0.5 * logvar).exp(), rtol=1e-6, atol=1e-37)


def test_non_contiguous_input(backend):
    x, noise = random_tensor((3, 4, 5, 6)), random_tensor((3, 4, 5, 6), seed=1)
    k = random_levels(3, "different")
    expected = add_noise(x, k, noise, backend="reference")
    for view, noise_view in zip(non_contiguous(x), non_contiguous(noise), strict=True):
        assert_same(add_noise(view, k, noise_view, backend=backend), expected)


@pytest.mark.parametrize("by_reference", [False, True])
def test_results_into_given_memory(backend, by_reference):
    name = "reference" if by_reference else backend
    x, k = random_tensor((2, 5, 63)), random_levels(2)
    expected = add_noise(x, k, counter(2), with_x0=True, backend=name)
    memory = torch.full((4, 2, 5, 63), float("nan"))
    out = NoisedLatents(memory[0], memory[1], memory[2])
    results = add_noise(x, k, counter(2), with_x0=True, out=out, backend=name)
    assert [r.data_ptr() for r in results] == [r.data_ptr() for r in out]
    assert torch.equal(memory[0], expected.z) and torch.equal(memory[1], expected.target) and torch.equal(memory[2], x)
    assert memory[3].isnan().all()


def test_target_can_be_left_out(backend):
    x, k = random_tensor((2, 5, 63)), random_levels(2)
    full = add_noise(x, k, counter(2), backend=backend)
    bare = add_noise(x, k, counter(2), with_target=False, backend=backend)
    assert bare.target is None and bare.x0 is None and torch.equal(bare.z, full.z)


def test_drawn_noise_is_the_counters_noise(backend):
    """At a = 0, s = 1 and γ̄ = 1 z is the noise itself, for a sample in any batch."""
    named, zero, one = counter(3), torch.zeros(3), torch.ones(3)
    x, noise_alone = random_tensor((3, 4, 33)), Levels(zero, one, one, one, one, zero)
    z = add_noise(x, noise_alone, named, backend=backend).z
    assert torch.equal(add_noise(x, noise_alone, in_memory(named), backend=backend).z, z)
    assert (z - normal(named, (3, 4, 33), backend="reference")).abs().max() < 1e-6


def test_gradients_run_the_reference(backend):
    """Latents and noise that require a gradient get it; a kernel asked for by name refuses."""
    k = random_levels(2, "different")
    x, noise = (random_tensor((2, 3, 4), seed=i).requires_grad_() for i in range(2))
    results = add_noise(x, k, noise)
    gradients = torch.autograd.grad(results.z.sum() + results.target.square().sum(), (x, noise))
    leaves = [t.detach().double().requires_grad_() for t in (x, noise)]
    z, target = matrix_truth(*leaves, k, True)
    truth = torch.autograd.grad(z.sum() + target.square().sum(), leaves)
    for gradient, exact in zip(gradients, truth, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"requires a gradient, which the {backend} kernel does not pass on; detach"):
        add_noise(x, k, noise, backend=backend)
    with torch.no_grad():
        assert_same(
            add_noise(x, k, noise, backend=backend), NoisedLatents(*(r if r is None else r.detach() for r in results))
        )


def test_gradcheck_in_float64():
    k, inputs = (
        random_levels(2, "different"),
        [random_tensor((2, 3, 4), seed=i).double().requires_grad_() for i in range(2)],
    )
    for mixes in (True, False):
        assert torch.autograd.gradcheck(lambda x, n, m=mixes: add_noise(x, k, n, mixes_target=m)[:2], inputs)


X = torch.zeros(2, 3, 4)
K = Levels(*[torch.ones(2)] * 6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, K._replace(signal=torch.ones(3)), X), {}, "levels.signal has shape \\(3,\\); expected \\(2,\\)"),
        ((X, K._replace(signal=-torch.ones(2)), X), {}, "levels.signal holds -1.0; expected values in \\[0, inf\\)"),
        ((X, K._replace(noise=torch.full((2,), float("inf"))), X), {}, "levels.noise holds inf"),
        (
            (X, K._replace(frame_gamma=torch.zeros(2)), X),
            {},
            "levels.frame_gamma holds 0.0; expected values in \\(0, 1\\]",
        ),
        ((X, K._replace(noise_gamma=torch.full((2,), 1.5)), X), {}, "levels.noise_gamma holds 1.5"),
        ((X, K._replace(target_noise=torch.full((2,), float("nan"))), X), {}, "levels.target_noise holds nan"),
        ((X, K._replace(target_signal=0.5), X), {}, "levels.target_signal is float"),
        ((X, K, X[:1]), {}, "noise has shape \\(1, 3, 4\\); expected \\(2, 3, 4\\)"),
        ((X, K, X.double()), {}, "noise has dtype torch.float64; latents has torch.float32"),
        ((X, K, None), {}, "noise is NoneType; expected a tensor or a NoiseCounter"),
        ((X, K, counter(3)), {}, "names 3 samples"),
        ((X, K, X), {"dtype": torch.float64}, "dtype is torch.float64"),
        ((X, K, X), {"out": NoisedLatents(X[:1], None, None)}, "out.z has shape"),
        ((X, K, X), {"out": NoisedLatents(X[:, :1].expand(2, 3, 4), None, None)}, "out.z has strides"),
        ((LatentPosterior(X, X[:1], X), K, X), {}, "latents.logvar has shape"),
        ((X.to("meta"), K, X), {}, "noise is on cpu; expected meta"),
        (
            (X, K, X),
            {"noise_operator": torch.eye(4)},
            r"noise_operator has .* \(\(4, 4\), torch.float32, .* expected \(\(3, 3\)",
        ),
        ((X, K, X), {"noise_operator": torch.eye(3).double()}, "noise_operator has .* torch.float64, .* expected"),
        ((X, K, X), {"noise_operator": torch.eye(3).requires_grad_()}, "noise_operator requires a gradient"),
    ],
)
def test_errors_name_expected_and_actual(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        add_noise(*arguments, **options)
