"""Rows of a table say the same as the coefficients themselves, and make a call one launch."""

import pytest
import torch
from kernel_cases import counter, random_tensor

from dydiff_kernels import (
    CoefficientTable,
    Gammas,
    Levels,
    Numbers,
    StepCoefficients,
    add_noise,
    denoising_loss,
    frame_mix,
    frame_unmix,
    reverse_step,
)

SHAPE, N = (3, 5, 2, 6, 6), 7
ROWS = torch.tensor([6, 0, 3])


def column(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, N, dtype=torch.float64)


LEVELS = Levels(column(0.2, 0.9), column(0.9, 0.3), column(0.5, 1), column(0.4, 1), column(-1, 1), column(0.5, -0.5))
STEPS = StepCoefficients(
    frame_gamma=column(0.5, 0.9),
    next_frame_gamma=column(0.6, 1),
    from_z=column(0.3, 0.8),
    from_output=column(-0.9, -0.1),
    signal=column(0.2, 0.9),
    clean=column(0.3, 1),
    previous=column(-0.2, 0),
    kept_noise=column(0.9, 0),
    sigma=column(0.3, 0),
)
X, OUTPUT = random_tensor(SHAPE), random_tensor(SHAPE, seed=1)
HISTORY = random_tensor((3, 2, 2, 6, 6), seed=2)


def of(coefficients, rows):
    """The plain coefficients of some rows."""
    rows = torch.full((len(X),), rows) if isinstance(rows, int) else rows
    return coefficients.each(lambda column: column.index_select(0, rows))


def loss_and_gradient(sample_weights, target, backend):
    output = OUTPUT.clone().requires_grad_()
    mask = (torch.arange(SHAPE[1]) >= 2).double()
    loss = denoising_loss(output, target, sample_weights=sample_weights, frame_weights=mask, backend=backend)
    (loss * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    return loss.detach(), output.grad


CALLS = {
    "add_noise": (LEVELS, lambda k, backend: add_noise(X, k, counter(3), backend=backend)[:2]),
    "reverse_step": (
        STEPS,
        lambda k, backend: reverse_step(
            X,
            OUTPUT,
            k,
            noise=counter(3),
            history=HISTORY,
            x0_prev=OUTPUT,
            return_x0=True,
            backend=backend,
        ),
    ),
    "frame_mix": (Gammas(column(0.3, 1)), lambda k, backend: [frame_mix(X, gammas(k), backend=backend)]),
    "frame_unmix": (Gammas(column(0.3, 1)), lambda k, backend: [frame_unmix(X, gammas(k), backend=backend)]),
    "denoising_loss": (Numbers(column(0, 2)), lambda k, backend: loss_and_gradient(weights(k), X, backend)),
}


def gammas(k):
    return k.gamma_bar if isinstance(k, Gammas) else k


def weights(k):
    return k.values if isinstance(k, Numbers) else k


@pytest.mark.parametrize("rows", [ROWS, ROWS.int(), 4], ids=["each", "int32", "one"])
@pytest.mark.parametrize("name", CALLS)
def test_rows_are_the_coefficients(name, rows, backend):
    """To the bit, but for the loss of GPUs, whose kernel multiplies the weights itself in float32."""
    coefficients, call = CALLS[name]
    found = call(CoefficientTable(coefficients, N).at(rows), backend)
    expected = call(of(coefficients, rows), backend)
    rounding = 2**-22 if (name, backend) == ("denoising_loss", "triton") else 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=0)


def test_rows_run_in_float64_too():
    x = X.double()
    found = add_noise(x, CoefficientTable(LEVELS, N).at(ROWS), x).z
    assert torch.equal(found, add_noise(x, of(LEVELS, ROWS), x).z) and found.dtype == torch.float64


def test_an_error_without_a_target(backend):
    found, expected = (loss_and_gradient(None, target, backend) for target in ("zero", torch.zeros_like(X)))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoefficientTable(LEVELS, 5), r"levels.signal has shape \(7,\); expected \(5,\)"),
        (lambda: CoefficientTable(Gammas(-column(0, 1)), N), r"gamma_bar holds -0.1.*; expected values in \[0, 1\]"),
        (
            lambda: frame_unmix(X, CoefficientTable(Gammas(column(0, 1)), N).at(ROWS)),
            r"frame_unmix: the table of gamma_bar holds 0.0; expected values in \(0, 1\]",
        ),
        (lambda: CoefficientTable(LEVELS, N).at(7), "row 7 is not in the table; expected 0 to 6"),
        (lambda: CoefficientTable(LEVELS, N).at(torch.tensor([0, -1])), "row -1 is not in the table"),
        (lambda: CoefficientTable(LEVELS, N).at(torch.ones(3)), r"rows are torch.float32 of shape \(3,\)"),
        (lambda: add_noise(X, CoefficientTable(LEVELS, N).at(ROWS[:2]), X), r"rows have shape \(2,\); expected \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_launch(name, backend):
    """Two for the loss, one for its gradient. What torch calculates here are checks of numbers on the CPU."""
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    from launch_counter import count_launches

    coefficients, call = CALLS[name]
    rows = CoefficientTable(coefficients, N).at(ROWS)
    call(rows, backend)
    with count_launches() as launches:
        call(rows, backend)
    kernels = {"denoising_loss": ["_denoising_loss_kernel", "_sum_kernel", "_denoising_loss_kernel"]}
    one = f"_{name}_kernel" if name in ("add_noise", "reverse_step") else "_frame_filter_kernel"
    assert launches.triton == kernels.get(name, [one])
    large = [name for name in launches.torch if name in ("clone", "_to_copy", "stack", "copy_", "index_select")]
    assert len(large) <= (2 if name == "denoising_loss" else 0), launches.torch
