"""The Dynamics operator: against its definition, its inverse, its gradients, on every backend."""

import pytest
import torch
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, levels, non_contiguous, random_tensor

from dydiff_kernels import frame_mix, frame_unmix

OPS = [frame_mix, frame_unmix]


def test_reference_is_the_definition():
    """The recurrence as a matrix: D[s, s'] = √γ c^(s-s'), without √γ in the first column; c = √(1-γ)."""
    frames, gamma = 6, 0.3
    matrix = torch.zeros(frames, frames, dtype=torch.float64)
    for s in range(frames):
        for before in range(s + 1):
            matrix[s, before] = (1 - gamma) ** ((s - before) / 2) * (gamma**0.5 if before else 1.0)
    x = random_tensor((1, frames, 4)).double()
    gamma_bar = torch.tensor([gamma], dtype=torch.float64)
    torch.testing.assert_close(frame_mix(x, gamma_bar)[0], matrix @ x[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(frame_unmix(x, gamma_bar)[0], torch.linalg.solve(matrix, x[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_output_and_gradient_match_reference(backend, op, dtype, shape):
    x, grad = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=2)
    gamma_bar = levels(shape[0])
    results = []
    for name in (backend, "reference"):
        leaf = x.clone().requires_grad_()
        y = op(leaf, gamma_bar, backend=name)
        y.backward(grad)
        results.append((y.detach(), leaf.grad))
    for actual, expected in zip(*results, strict=True):
        assert_matches(actual, expected, scale=10)  # unmixing divides by √γ̄ ≥ 0.22


@pytest.mark.parametrize("op", OPS)
def test_non_contiguous_input(backend, op):
    x, gamma_bar = random_tensor((3, 4, 5, 6)), levels(3)
    expected = op(x, gamma_bar, backend="reference")
    for view in non_contiguous(x):
        assert not view.is_contiguous()
        assert_matches(op(view, gamma_bar, backend=backend), expected, scale=10)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_gives_the_same_and_returns_its_input(backend, op, dtype):
    x, gamma_bar = random_tensor((2, 5, 63), dtype), levels(2)
    expected = op(x, gamma_bar, backend=backend)
    for view in (x.clone(), *non_contiguous(x)):
        result = op(view, gamma_bar, backend=backend, inplace=True)
        assert result.data_ptr() == view.data_ptr() and torch.equal(view, expected)


def test_inplace_passes_gradients(backend):
    x, gamma_bar = random_tensor((2, 4, 7)).requires_grad_(), levels(2)
    frame_mix(x * 2.0, gamma_bar, backend=backend, inplace=True).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    frame_mix(other * 2.0, gamma_bar, backend="reference").square().sum().backward()
    assert_matches(x.grad, other.grad, scale=10)


def test_unmix_inverts_mix(backend):
    x, gamma_bar = random_tensor((3, 8, 123)), levels(3, low=0.3)
    torch.testing.assert_close(
        frame_unmix(frame_mix(x, gamma_bar, backend=backend), gamma_bar, backend=backend), x, rtol=0, atol=5e-6
    )  # float32 rounding of y times (1 + √0.7)/√0.3 = 3.4


@pytest.mark.parametrize("op", OPS)
def test_gamma_one_changes_nothing(backend, op):
    x = random_tensor((2, 5, 33))
    assert torch.equal(op(x, torch.ones(2), backend=backend), x)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_twice_in_float64(op):
    x = random_tensor((2, 4, 3)).double().requires_grad_()
    gamma_bar = torch.tensor([0.5, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: op(x, gamma_bar), (x,))
    assert torch.autograd.gradgradcheck(lambda x: op(x, gamma_bar), (x,))


def test_mixing_keeps_white_noise_at_unit_variance():
    y = frame_mix(random_tensor((1, 6, 200_000)), torch.tensor([0.4]))
    assert (y.var(2) - 1).abs().max() < 5 * (2 / 200_000) ** 0.5
    lag_one = (y[:, 1:] * y[:, :-1]).mean(2)
    assert (lag_one - 0.6**0.5).abs().max() < 5 * (2 / 200_000) ** 0.5


@pytest.mark.parametrize(
    ("x", "gamma_bar", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), torch.ones(2), "dtype torch.int32; expected one of float32"),
        (torch.zeros(2), torch.ones(2), "shape \\(2,\\); expected \\(B, S"),
        (torch.zeros(2, 0, 4), torch.ones(2), "at least one frame"),
        (torch.zeros(2, 3), torch.ones(3), "gamma_bar has shape \\(3,\\); expected \\(2,\\)"),
        (torch.zeros(2, 3), 0.5, "gamma_bar is float"),
        (torch.zeros(2, 3), torch.tensor([0.5, 1.5]), "gamma_bar holds 1.5; expected values in \\(0, 1\\]"),
        (torch.zeros(2, 3), torch.tensor([0.5, float("nan")]), "gamma_bar holds nan"),
        (
            torch.zeros(2, 3),
            torch.tensor([0.5, 0.0]),
            "frame_unmix: gamma_bar holds 0.0; expected values in \\(0, 1\\]",
        ),
    ],
)
def test_errors_name_expected_and_actual(x, gamma_bar, message):
    with pytest.raises(ValueError, match=message):
        frame_unmix(x, gamma_bar)
