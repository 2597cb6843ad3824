"""One reverse step: every option on every backend, and the identities that hold when the prediction is exact."""

import dataclasses
import itertools

import pytest
import torch
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, counter, levels, non_contiguous, random_tensor

from dydiff_kernels import ReverseStep, StepCoefficients, Stream, add_noise, frame_mix, normal, reverse_step


def random_coefficients(batch: int) -> StepCoefficients:
    """Levels in [0.3, 1), so that unmixing amplifies rounding by at most 3.4, and factors of order 1."""
    names = [field.name for field in dataclasses.fields(StepCoefficients)]
    return StepCoefficients(**{name: levels(batch, low=0.3, seed=10 + i) for i, name in enumerate(names)})


def ddim(alpha_bar, alpha_bar_next, gamma_bar, gamma_bar_next, eta=0.0, dependent_noise=True) -> StepCoefficients:
    """DDIM in the common form, as documented by ``StepCoefficients``."""
    sigma = eta * ((1 - alpha_bar_next) / (1 - alpha_bar)).sqrt() * (1 - alpha_bar / alpha_bar_next).sqrt()
    k = (1 - alpha_bar_next - sigma**2).sqrt() / (1 - alpha_bar).sqrt()
    b = alpha_bar_next.sqrt() - (k * alpha_bar.sqrt() if dependent_noise else 0)
    c = torch.zeros_like(k) if dependent_noise else -k * alpha_bar.sqrt()
    return StepCoefficients(alpha_bar, gamma_bar, gamma_bar_next, k, b, c, sigma)


def assert_same(actual: ReverseStep, expected: ReverseStep) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_matches(one, other, scale=40)  # two unmixings and a recurrence over rounding of order 1e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_matches_reference(backend, dtype, shape):
    batch = shape[0]
    z, output, uncond, x0_prev, given = (random_tensor(shape, dtype, seed=i) for i in range(5))
    history = random_tensor((batch, max(1, shape[1] // 2), *shape[2:]), dtype, seed=6)
    k = random_coefficients(batch)
    plain = dataclasses.replace(k, c=None, sigma=None)
    cases = [
        dict(coefficients=plain),
        dict(coefficients=dataclasses.replace(k, c=None), noise=given, return_x0=True),
        dict(coefficients=dataclasses.replace(k, c=None), noise=counter(batch, stream=Stream.SAMPLER_ETA)),
        dict(coefficients=dataclasses.replace(k, sigma=None), x0_prev=x0_prev, return_x0=True),
        dict(coefficients=plain, uncond_output=uncond, guidance_scale=2.5),
        dict(coefficients=plain, history=history, return_x0=True),
        dict(coefficients=k, dependent_noise=False, noise=given, history=history),
        dict(coefficients=k, dependent_noise=False, noise=counter(batch), return_x0=True),
        dict(
            coefficients=k,
            uncond_output=uncond,
            guidance_scale=levels(batch, seed=30) * 4,
            noise=counter(batch),
            history=history,
            x0_prev=x0_prev,
            return_x0=True,
        ),
    ]
    for options, prediction in itertools.product(cases, ("eps", "v", "x0")):
        actual = reverse_step(z, output, prediction=prediction, **options, backend=backend)
        assert_same(actual, reverse_step(z, output, prediction=prediction, **options, backend="reference"))


@pytest.mark.parametrize("dependent_noise", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_exact_prediction_moves_along_the_forward_process(prediction, dependent_noise):
    """DDIM with η = 0 and the true target lands on z_t' of the same x and ε; float64."""
    x, noise = random_tensor((3, 5, 7)).double(), random_tensor((3, 5, 7), seed=1).double()
    alpha_bar, gamma_bar = levels(3, low=0.2, seed=3) * 0.5, levels(3, low=0.5, seed=4)
    alpha_bar_next, gamma_bar_next = (alpha_bar * 1.5), (gamma_bar * 0.5 + 0.5)
    options = dict(prediction=prediction, dependent_noise=dependent_noise)
    z, target, _ = add_noise(x, alpha_bar, gamma_bar, noise, **options)
    expected = add_noise(x, alpha_bar_next, gamma_bar_next, noise, **options).z
    k = ddim(alpha_bar, alpha_bar_next, gamma_bar, gamma_bar_next, dependent_noise=dependent_noise)
    step = reverse_step(z, target, k, **options, return_x0=True)
    torch.testing.assert_close(step.x0, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(step.z, expected, rtol=1e-10, atol=1e-10)
    clean = ddim(alpha_bar, torch.ones(3).double(), gamma_bar, torch.ones(3).double(), dependent_noise=dependent_noise)
    torch.testing.assert_close(reverse_step(z, target, clean, **options).z, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dependent_noise", [True, False])
def test_full_stochasticity_keeps_the_forward_marginal(dependent_noise):
    """η = 1, exact prediction: z' has mean √ᾱ' D x and the covariance of √(1-ᾱ') ε̃; 5 standard errors."""
    n = 100_000
    x = random_tensor((1, 4, 1)).double().expand(1, 4, n)
    alpha_bar, alpha_bar_next, gamma_bar, gamma_bar_next = torch.tensor([[0.3], [0.6], [0.5], [0.7]]).double()
    noise = random_tensor((1, 4, n), seed=1).double()
    z, target, _ = add_noise(x, alpha_bar, gamma_bar, noise, dependent_noise=dependent_noise)
    k = ddim(alpha_bar, alpha_bar_next, gamma_bar, gamma_bar_next, eta=1.0, dependent_noise=dependent_noise)
    fresh = random_tensor((1, 4, n), seed=2).double()
    z_next = reverse_step(z, target, k, dependent_noise=dependent_noise, noise=fresh).z[0]
    deviation = z_next - alpha_bar_next.sqrt() * frame_mix(x, gamma_bar_next)[0]
    basis = frame_mix(torch.eye(4, dtype=torch.float64)[None], gamma_bar_next)[0] if dependent_noise else torch.eye(4)
    expected = 0.4 * (basis @ basis.T).double()
    assert deviation.mean(1).abs().max() < 5 * (0.4 / n) ** 0.5
    assert (deviation @ deviation.T / n - expected).abs().max() < 5 * 0.4 * (2 / n) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_may_overwrite_inputs(backend, dtype):
    """z' over z and x̂ over x̂_prev, as a multistep sampler without spare memory does it."""
    z, output, x0_prev = (random_tensor((2, 5, 63), dtype, seed=i) for i in range(3))
    options = dict(prediction="v", noise=counter(2), return_x0=True)
    expected = reverse_step(z, output, random_coefficients(2), x0_prev=x0_prev, **options, backend=backend)
    out = ReverseStep(z, x0_prev)
    reverse_step(z, output, random_coefficients(2), x0_prev=x0_prev, **options, out=out, backend=backend)
    assert torch.equal(z, expected.z) and torch.equal(x0_prev, expected.x0)


def test_mixed_storage(backend):
    """A bfloat16 network on a float32 trajectory."""
    z, output = random_tensor((2, 5, 63)), random_tensor((2, 5, 63), torch.bfloat16, seed=1)
    plain = dataclasses.replace(random_coefficients(2), c=None, sigma=None)
    actual = reverse_step(z, output, plain, backend=backend)
    assert actual.z.dtype == torch.float32
    assert_same(actual, reverse_step(z, output, plain, backend="reference"))


def test_non_contiguous_input(backend):
    z, output = random_tensor((3, 4, 5, 6)), random_tensor((3, 4, 5, 6), seed=1)
    plain = dataclasses.replace(random_coefficients(3), c=None, sigma=None)
    expected = reverse_step(z, output, plain, backend="reference")
    for view, output_view in zip(non_contiguous(z), non_contiguous(output), strict=True):
        assert_same(reverse_step(view, output_view, plain, backend=backend), expected)
        room = view.clone(memory_format=torch.preserve_format)
        if room.stride() == view.stride():
            continue
        assert_same(reverse_step(view, output_view, plain, out=ReverseStep(room, None), backend=backend), expected)


def test_drawn_noise_is_the_counters_noise(backend):
    """With σ = 1 and nothing else, z' is n."""
    zero, one = torch.zeros(3), torch.ones(3)
    k = StepCoefficients(one, one, one, a=zero, b=zero, sigma=one)
    named = counter(3, stream=Stream.SAMPLER_ETA)
    x = random_tensor((3, 4, 33))
    z_next = reverse_step(x, x, k, noise=named, backend=backend).z
    assert (z_next - normal(named, (3, 4, 33), backend="reference")).abs().max() < 1e-6


X = torch.zeros(2, 3, 4)
PLAIN = StepCoefficients(*[torch.full((2,), 0.5)] * 5)


@pytest.mark.parametrize(
    ("output", "coefficients", "options", "message"),
    [
        (X[:1], PLAIN, {}, "output has shape \\(1, 3, 4\\); expected \\(2, 3, 4\\), that of z"),
        (X, dataclasses.replace(PLAIN, a=torch.ones(3)), {}, "coefficients.a has shape \\(3,\\); expected \\(2,\\)"),
        (X, dataclasses.replace(PLAIN, gamma_bar=torch.zeros(2)), {}, "coefficients.gamma_bar holds 0"),
        (X, dataclasses.replace(PLAIN, alpha_bar=torch.full((2,), 2.0)), {}, "coefficients.alpha_bar holds 2.0"),
        (X, dataclasses.replace(PLAIN, sigma=torch.ones(2)), {}, "sigma holds 1.0, noise is None"),
        (X, dataclasses.replace(PLAIN, c=torch.ones(2)), {}, "c is not 0, x0_prev is None"),
        (X, PLAIN, {"x0_prev": X, "dependent_noise": False}, "multistep samplers need dependent noise"),
        (X, PLAIN, {"guidance_scale": 2.0}, "guidance_scale is 2.0, uncond_output is None"),
        (X, PLAIN, {"history": torch.zeros(2, 4, 4)}, "expected 1 to 3 frames of z's shape"),
        (X, PLAIN, {"history": torch.zeros(2, 1, 5)}, "history has shape \\(2, 1, 5\\); expected \\(2, 1, 4\\)"),
        (X, PLAIN, {"prediction": "score"}, "prediction is 'score'"),
        (X.clone().requires_grad_(), PLAIN, {}, "output requires a gradient"),
        (X, PLAIN, {"out": ReverseStep(X.double(), None)}, "out.z has shape, dtype, device"),
    ],
)
def test_errors_name_expected_and_actual(output, coefficients, options, message):
    with pytest.raises(ValueError, match=message):
        reverse_step(X, output, coefficients, **options)
