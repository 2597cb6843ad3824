"""One reverse step: every option on every backend, and the identities that hold when the prediction is exact."""

import dataclasses
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
    random_operator,
    random_tensor,
    scaled,
)

from dydiff_kernels import Levels, ReverseStep, StepCoefficients, Stream, add_noise, normal, reverse_step


def operator_levels(operators: str, batch: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """γ̄ of the four operators, in [0.3, 1), so that unmixing amplifies rounding by at most 3.4."""
    frame_gamma, noise_gamma = operator_gammas(operators, batch, low=0.3, seed=seed)
    next_frame_gamma, next_noise_gamma = operator_gammas(operators, batch, low=0.3, seed=seed + 5)
    if operators == "shared":
        return dict(frame_gamma=frame_gamma, next_frame_gamma=next_frame_gamma)
    return dict(
        frame_gamma=frame_gamma,
        next_frame_gamma=next_frame_gamma,
        noise_gamma=noise_gamma,
        next_noise_gamma=next_noise_gamma,
    )


def random_step(batch: int, operators: str = "shared", mixes_output: bool = True) -> StepCoefficients:
    """Factors of order 1; from_z is 0 where it has to be."""
    names = ("from_z", "from_output", "signal", "clean", "previous", "kept_noise", "sigma")
    factors = {name: levels(batch, low=0.3, seed=20 + i) for i, name in enumerate(names)}
    factors["clean"] = -factors["clean"]
    if not mixes_output and operators != "shared":
        factors["from_z"] = torch.zeros(batch, dtype=torch.float64)
    return StepCoefficients(**operator_levels(operators, batch), **factors)


def ddim(start: Levels, end: Levels, shared: bool, eta: float = 0.0, mixes_output: bool = True) -> StepCoefficients:
    """DDIM from one timestep of a process to another, x̂ by the target's factors; ``eta`` is σ over s'."""
    a, s, p, q = start.signal, start.noise, start.target_noise, start.target_signal
    delta = a * p - s * q if mixes_output else torch.ones_like(a)
    sigma = eta * end.noise
    return StepCoefficients(
        frame_gamma=start.frame_gamma,
        next_frame_gamma=end.frame_gamma,
        noise_gamma=None if shared else start.noise_gamma,
        next_noise_gamma=None if shared else end.noise_gamma,
        from_z=p / delta if mixes_output else torch.zeros_like(a),
        from_output=-s / delta if mixes_output else torch.ones_like(a),
        signal=a,
        clean=end.signal,
        kept_noise=(end.noise**2 - sigma**2).sqrt() / s,
        sigma=sigma,
    )


def assert_same(actual: ReverseStep, expected: ReverseStep) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_matches(one, other, scale=40)  # two unmixings and a recurrence over rounding of order 1e-7


@pytest.mark.parametrize("mixes_output", [True, False])
@pytest.mark.parametrize("operators", OPERATORS)
def test_reference_is_the_definition(operators, mixes_output):
    """The formulas of ``StepCoefficients`` with matrices, all options at once; float64."""
    z, output, w, x0_prev = (random_tensor((2, 5, 7), seed=i).double() for i in range(4))
    history = random_tensor((2, 2, 7), seed=5).double()
    k = random_step(2, operators, mixes_output)
    A, A_next = (mixing_matrix(gamma, 5) for gamma in (k.frame_gamma, k.next_frame_gamma))
    B, B_next = A, A_next
    if operators != "shared":
        B, B_next = (mixing_matrix(gamma, 5) for gamma in (k.noise_gamma, k.next_noise_gamma))
    if mixes_output:
        x0 = apply_matrix(A.inverse(), scaled(k.from_z, z) + scaled(k.from_output, output))
    else:
        x0 = scaled(k.from_z, apply_matrix(A.inverse(), z)) + scaled(k.from_output, output)
    x0[:, :2] = history
    white = apply_matrix(B.inverse(), z - scaled(k.signal, apply_matrix(A, x0)))
    z_next = apply_matrix(A_next, scaled(k.clean, x0) + scaled(k.previous, x0_prev))
    z_next += apply_matrix(B_next, scaled(k.kept_noise, white) + scaled(k.sigma, w))
    options = dict(mixes_output=mixes_output, noise=w, history=history, x0_prev=x0_prev, return_x0=True)
    actual = reverse_step(z, output, k, **options)
    torch.testing.assert_close(actual.x0, x0, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(actual.z, z_next, rtol=1e-11, atol=1e-11)


def all_options(shape, dtype, step: StepCoefficients) -> list[dict]:
    """Every optional operand alone, and all of them; the last entry is the latter."""
    batch = shape[0]
    x0_prev, given = random_tensor(shape, dtype, seed=3), random_tensor(shape, dtype, seed=4)
    history = random_tensor((batch, max(1, shape[1] // 2), *shape[2:]), dtype, seed=6)
    plain = dataclasses.replace(step, previous=None, sigma=None)
    noisy, multistep = dataclasses.replace(step, previous=None), dataclasses.replace(step, sigma=None)
    return [
        dict(step=plain),
        dict(step=noisy, noise=given, return_x0=True),
        dict(step=noisy, noise=counter(batch, stream=Stream.SAMPLER_ETA)),
        dict(step=multistep, x0_prev=x0_prev, return_x0=True),
        dict(step=plain, history=history, return_x0=True),
        dict(step=noisy, noise=given, history=history),
        dict(step=step, noise=counter(batch), history=history, x0_prev=x0_prev, return_x0=True),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_matches_reference(backend, dtype, shape):
    z, output = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    for operators, mixes in itertools.product(OPERATORS, (True, False)):
        cases = all_options(shape, dtype, random_step(shape[0], operators, mixes))
        for options in cases if operators in ("shared", "different") else cases[-1:]:
            actual = reverse_step(z, output, mixes_output=mixes, **options, backend=backend)
            assert_same(actual, reverse_step(z, output, mixes_output=mixes, **options, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", COLORED_SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_an_operator_on_fresh_noise_matches_float64(backend, dtype, shape):
    """It acts on w alone, given or drawn, beside every other option; without noise it is of no matter."""
    z, output = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    L = random_operator(shape[1])
    exact_L = L.double().tril().expand(shape[0], -1, -1)
    for operators, mixes in itertools.product(("shared", "different"), (True, False)):
        for options in all_options(shape, dtype, random_step(shape[0], operators, mixes)):
            actual = reverse_step(z, output, mixes_output=mixes, noise_operator=L, **options, backend=backend)
            exact = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in options.items()}
            by_reference = reverse_step(
                z.double(), output.double(), mixes_output=mixes, noise_operator=L.double(), **exact
            )
            noise = exact.get("noise")
            if noise is not None:
                noise = noise if isinstance(noise, torch.Tensor) else normal(noise, shape, dtype=torch.float64)
                exact["noise"] = apply_matrix(exact_L, noise)
            truth = reverse_step(z.double(), output.double(), mixes_output=mixes, **exact)
            torch.testing.assert_close(by_reference.z, truth.z, rtol=1e-11, atol=1e-11)
            assert_same(actual, ReverseStep(*(None if t is None else t.to(dtype) for t in truth)))


def test_operators_given_twice_are_shared_ones(backend):
    """The path of operators on noise of their own gives what the shared ones give."""
    z, output, x0_prev = (random_tensor((2, 5, 63), seed=i) for i in range(3))
    k = random_step(2)
    twice = dataclasses.replace(k, noise_gamma=k.frame_gamma, next_noise_gamma=k.next_frame_gamma)
    options = dict(noise=counter(2), x0_prev=x0_prev, history=x0_prev[:, :2], return_x0=True, backend=backend)
    assert_same(reverse_step(z, output, twice, **options), reverse_step(z, output, k, **options))


# Factors of (p, q) from (a, s): eps, v, flow matching's velocity, and x itself, compared before mixing.
TARGETS = {
    "eps": lambda a, s: (torch.ones_like(a), torch.zeros_like(a)),
    "v": lambda a, s: (a, -s),
    "velocity": lambda a, s: (torch.ones_like(a), -torch.ones_like(a)),
    "x": lambda a, s: (torch.zeros_like(a), torch.ones_like(a)),
}


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("target", TARGETS)
def test_exact_prediction_moves_along_the_forward_process(target, operators):
    """DDIM with η = 0 and the true target lands on z_t' of the same x and ε; float64."""
    x, noise = random_tensor((3, 5, 7)).double(), random_tensor((3, 5, 7), seed=1).double()
    alpha_bar, gammas = levels(3, low=0.2, seed=3) * 0.5, operator_gammas(operators, 3, low=0.5, seed=4)
    next_gammas = [gamma * 0.5 + 0.5 for gamma in gammas]

    def process(alpha_bar, gammas):
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return Levels(a, s, *gammas, *TARGETS[target](a, s))

    start, end, one = process(alpha_bar, gammas), process(alpha_bar * 1.5, next_gammas), torch.ones(3).double()
    mixes = target != "x"
    z, exact, _ = add_noise(x, start, noise, mixes_target=mixes)
    expected = add_noise(x, end, noise).z
    options = dict(shared=operators == "shared", mixes_output=mixes)
    step = reverse_step(z, exact, ddim(start, end, **options), mixes_output=mixes, return_x0=True)
    torch.testing.assert_close(step.x0, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(step.z, expected, rtol=1e-10, atol=1e-10)
    clean = ddim(start, process(one, (one, one)), **options)
    torch.testing.assert_close(reverse_step(z, exact, clean, mixes_output=mixes).z, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operators", OPERATORS)
def test_full_stochasticity_keeps_the_forward_marginal(operators):
    """σ near s', exact prediction: z' has mean a' A' x and the covariance of s' B' ε; 5 standard errors."""
    n = 100_000
    x = random_tensor((1, 4, 1)).double().expand(1, 4, n)
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    a, a_next = (torch.tensor([alpha_bar]).double().sqrt() for alpha_bar in (0.3, 0.6))
    gammas = {"frames": (torch.tensor([0.5]).double(), torch.tensor([0.7]).double()), "none": (one, one)}
    gammas["noise"] = (torch.tensor([0.6]).double(), torch.tensor([0.9]).double())
    on_frames, on_noise = {
        "shared": ("frames", "frames"),
        "frames only": ("frames", "none"),
        "noise only": ("none", "noise"),
        "different": ("frames", "noise"),
    }[operators]
    start, end = (
        Levels(signal, (1 - signal**2).sqrt(), gammas[on_frames][i], gammas[on_noise][i], one, zero)
        for i, signal in enumerate((a, a_next))
    )
    z, target, _ = add_noise(x, start, random_tensor((1, 4, n), seed=1).double())
    k = ddim(start, end, shared=operators == "shared", eta=0.8)
    fresh = random_tensor((1, 4, n), seed=2).double()
    z_next = reverse_step(z, target, k, noise=fresh).z[0]
    deviation = z_next - a_next * apply_matrix(mixing_matrix(end.frame_gamma, 4), x)[0]
    basis = mixing_matrix(end.noise_gamma, 4)[0]
    assert deviation.mean(1).abs().max() < 5 * (0.4 / n) ** 0.5
    assert (deviation @ deviation.T / n - 0.4 * basis @ basis.T).abs().max() < 5 * 0.4 * (2 / n) ** 0.5


@pytest.mark.parametrize("operators", ["shared", "different"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_may_overwrite_inputs(backend, dtype, operators):
    """z' over z and x̂ over x̂_prev, as a multistep sampler without spare memory does it; the reference too."""
    for name in (backend, "reference"):
        z, output, x0_prev = (random_tensor((2, 5, 63), dtype, seed=i) for i in range(3))
        k, options = random_step(2, operators), dict(noise=counter(2), return_x0=True, backend=name)
        expected = reverse_step(z, output, k, x0_prev=x0_prev, **options)
        step = reverse_step(z, output, k, x0_prev=x0_prev, **options, out=ReverseStep(z, x0_prev))
        assert torch.equal(z, expected.z) and torch.equal(x0_prev, expected.x0)
        assert step.z is z and step.x0 is x0_prev


def plain_step(batch: int, operators: str = "shared") -> StepCoefficients:
    return dataclasses.replace(random_step(batch, operators), previous=None, sigma=None)


def test_mixed_storage(backend):
    """A bfloat16 network on a float32 trajectory."""
    z, output = random_tensor((2, 5, 63)), random_tensor((2, 5, 63), torch.bfloat16, seed=1)
    for operators in ("shared", "different"):
        actual = reverse_step(z, output, plain_step(2, operators), backend=backend)
        assert actual.z.dtype == torch.float32
        assert_same(actual, reverse_step(z, output, plain_step(2, operators), backend="reference"))


@pytest.mark.parametrize("operators", ["shared", "different"])
def test_non_contiguous_input(backend, operators):
    z, output = random_tensor((3, 4, 5, 6)), random_tensor((3, 4, 5, 6), seed=1)
    plain = plain_step(3, operators)
    expected = reverse_step(z, output, plain, backend="reference")
    for view, output_view in zip(non_contiguous(z), non_contiguous(output), strict=True):
        assert_same(reverse_step(view, output_view, plain, backend=backend), expected)
        given = view.clone(memory_format=torch.preserve_format)
        if given.stride() == view.stride():
            continue
        assert_same(reverse_step(view, output_view, plain, out=ReverseStep(given, None), backend=backend), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_drawn_noise_is_the_counters_noise(backend, shared):
    """With σ = 1 and nothing else, z' is w."""
    zero, one, x = torch.zeros(3), torch.ones(3), random_tensor((3, 4, 33))
    gammas = dict(frame_gamma=one, next_frame_gamma=one)
    if not shared:
        gammas.update(noise_gamma=one, next_noise_gamma=one)
    factors = dict(from_z=zero, from_output=zero, signal=zero, clean=zero, kept_noise=zero, sigma=one)
    named = counter(3, stream=Stream.SAMPLER_ETA)
    step = StepCoefficients(**gammas, **factors)
    z_next = reverse_step(x, x, step, noise=named, backend=backend).z
    assert torch.equal(reverse_step(x, x, step, noise=in_memory(named), backend=backend).z, z_next)
    assert (z_next - normal(named, (3, 4, 33), backend="reference")).abs().max() < 1e-6


def test_gradients_run_the_reference(backend):
    """Guidance that differentiates through a step gets its gradient; a kernel asked for by name refuses."""
    z, output = random_tensor((2, 3, 4)).requires_grad_(), random_tensor((2, 3, 4), seed=1)
    k = plain_step(2, "different")
    (gradient,) = torch.autograd.grad(reverse_step(z, output, k).z.square().sum(), z)
    leaf = z.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(reverse_step(leaf, output.double(), k).z.square().sum(), leaf)
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"requires a gradient, which the {backend} kernel does not pass on; detach"):
        reverse_step(z, output, k, backend=backend)


@pytest.mark.parametrize("operators", ["shared", "different"])
def test_gradcheck_in_float64(operators):
    inputs = [random_tensor((2, 3, 4), seed=i).double().requires_grad_() for i in range(4)]
    history = random_tensor((2, 1, 4), seed=5).double().requires_grad_()
    for mixes in (True, False):
        k = random_step(2, operators, mixes)

        def step(z, output, noise, x0_prev, history, k=k, mixes=mixes):
            options = dict(mixes_output=mixes, noise=noise, x0_prev=x0_prev, history=history, return_x0=True)
            return tuple(reverse_step(z, output, k, **options))

        assert torch.autograd.gradcheck(step, [*inputs, history])


X = torch.zeros(2, 3, 4)
HALF = torch.full((2,), 0.5)
PLAIN = StepCoefficients(
    frame_gamma=HALF, next_frame_gamma=HALF, from_z=HALF, from_output=HALF, signal=HALF, clean=HALF, kept_noise=HALF
)


def plain(**changes) -> StepCoefficients:
    return dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("output", "step", "options", "message"),
    [
        (X[:1], PLAIN, {}, "output has shape \\(1, 3, 4\\); expected \\(2, 3, 4\\), that of z"),
        (X, plain(clean=torch.ones(3)), {}, "step.clean has shape \\(3,\\); expected \\(2,\\)"),
        (X, plain(frame_gamma=0 * HALF), {}, "step.frame_gamma holds 0.0; expected values in \\(0, 1\\]"),
        (X, plain(noise_gamma=0 * HALF, next_noise_gamma=HALF), {}, "step.noise_gamma holds 0.0"),
        (X, plain(next_frame_gamma=4 * HALF), {}, "step.next_frame_gamma holds 2.0; expected values in \\[0, 1\\]"),
        (X, plain(noise_gamma=HALF), {}, "one of step.noise_gamma and step.next_noise_gamma is None"),
        (X, plain(from_z=HALF * float("inf")), {}, "step.from_z holds inf"),
        (X, plain(sigma=-HALF), {}, "step.sigma holds -0.5; expected values in \\[0, inf\\)"),
        (X, plain(sigma=160 * HALF), {}, "step.sigma is not 0, noise is None"),
        (X, plain(previous=HALF), {}, "step.previous is not 0, x0_prev is None"),
        (X, plain(noise_gamma=HALF, next_noise_gamma=HALF), {"mixes_output": False}, "step.from_z is not 0"),
        (X, PLAIN, {"history": torch.zeros(2, 4, 4)}, "expected 1 to 3 frames of z's shape"),
        (X, PLAIN, {"history": torch.zeros(2, 1, 5)}, "history has shape \\(2, 1, 5\\); expected \\(2, 1, 4\\)"),
        (X, PLAIN, {"x0_prev": X[:1]}, "x0_prev has shape"),
        (X, PLAIN, {"noise": X.double()}, "noise has dtype torch.float64"),
        (X, PLAIN, {"out": ReverseStep(X.double(), None)}, "out.z has shape, dtype, device"),
        (X, PLAIN, {"out": ReverseStep(X.clone().requires_grad_(), None)}, "out.z requires a gradient"),
    ],
)
def test_errors_name_expected_and_actual(output, step, options, message):
    with pytest.raises(ValueError, match=message):
        reverse_step(X, output, step, **options)
