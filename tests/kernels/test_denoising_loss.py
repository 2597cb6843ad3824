"""The weighted loss: value and gradient on every backend, and masks."""

import pytest
import torch
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, levels, non_contiguous, random_tensor

from dydiff_kernels import denoising_loss


def loss_and_gradient(output, target, upstream, **options):
    leaf = output.clone().requires_grad_()
    loss = denoising_loss(leaf, target, **options)
    loss.backward(upstream)
    return loss.detach(), leaf.grad


def weights_for(shape):
    """Positive sample weights, and frame weights with the first frame masked where there are several."""
    frame_weights = torch.linspace(0.0, 2.0, shape[1]) if shape[1] > 1 else torch.ones(1)
    return dict(sample_weights=levels(shape[0], seed=5) * 3, frame_weights=frame_weights)


def test_reference_is_the_definition():
    output, target = random_tensor((2, 3, 4)).double(), random_tensor((2, 3, 4), seed=1).double()
    w, f = torch.tensor([2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 3.0]).double()
    error = (output - target).square().mean(2)
    expected = w * (error * f).sum(1) / f.sum()
    torch.testing.assert_close(denoising_loss(output, target, sample_weights=w, frame_weights=f), expected)
    torch.testing.assert_close(denoising_loss(output, target).mean(), torch.nn.functional.mse_loss(output, target))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", [torch.float32, None], ids=["target-float32", "target-same"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_loss_and_gradient_match_reference(backend, dtype, target_dtype, shape):
    output, target = random_tensor(shape, dtype), random_tensor(shape, target_dtype or dtype, seed=1)
    upstream = levels(shape[0], seed=6).float()
    for options in ({}, weights_for(shape)):
        loss, grad = loss_and_gradient(output, target, upstream, backend=backend, **options)
        expected, expected_grad = loss_and_gradient(output, target, upstream, backend="reference", **options)
        # Sums of up to 2200 positive float32 terms in another order: relative error below 1e-6.
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        assert_matches(grad, expected_grad)


def test_masked_frames_are_not_looked_at(backend):
    """NaN on masked frames, of output and target, reaches neither loss nor gradient."""
    output, target = random_tensor((2, 4, 33)), random_tensor((2, 4, 33), seed=1)
    output[:, :2] = target[:, :2] = float("nan")
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0])
    for name in (backend, "reference"):
        loss, grad = loss_and_gradient(output, target, torch.ones(2), frame_weights=mask, backend=name)
        torch.testing.assert_close(loss, (output - target)[:, 2:].square().mean((1, 2)))
        assert (grad[:, :2] == 0).all() and grad.isfinite().all()


def test_frame_weights_per_sample(backend):
    output, target = random_tensor((2, 3, 33)), random_tensor((2, 3, 33), seed=1)
    f = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 3.0]])
    loss = denoising_loss(output, target, frame_weights=f, backend=backend)
    error = (output - target).square().mean(2)
    torch.testing.assert_close(loss, (error * f).sum(1) / f.sum(1), rtol=2e-6, atol=0)


def test_non_contiguous_input(backend):
    output, target = random_tensor((3, 4, 5, 6)), random_tensor((3, 4, 5, 6), seed=1)
    expected, expected_grad = loss_and_gradient(output, target, torch.ones(3), backend="reference")
    for view, target_view in zip(non_contiguous(output), non_contiguous(target), strict=True):
        loss, grad = loss_and_gradient(view, target_view, torch.ones(3), backend=backend)
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        assert_matches(grad, expected_grad)


def test_gradcheck_in_float64():
    output, target = random_tensor((2, 3, 4)).double().requires_grad_(), random_tensor((2, 3, 4), seed=1).double()
    f = torch.tensor([0.0, 1.0, 2.0])
    assert torch.autograd.gradcheck(lambda o: denoising_loss(o, target, frame_weights=f), (output,))


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (X[:, :2], {}, "target has shape \\(2, 2, 4\\); expected \\(2, 3, 4\\), that of output"),
        (X.double(), {}, "float64 cannot be mixed"),
        (X.clone().requires_grad_(), {}, "target requires a gradient"),
        (None, {}, "target is NoneType; expected a tensor"),
        (X, {"sample_weights": torch.ones(3)}, "sample_weights has shape \\(3,\\); expected \\(2,\\)"),
        (X, {"sample_weights": -torch.ones(2)}, "sample_weights holds -1.0"),
        (X, {"frame_weights": torch.ones(2)}, "frame_weights has shape \\(2,\\); expected \\(3,\\) or \\(2, 3\\)"),
        (X, {"frame_weights": torch.zeros(3)}, "expected no negative value and a positive sum"),
    ],
)
def test_errors_name_expected_and_actual(target, options, message):
    with pytest.raises(ValueError, match=message):
        denoising_loss(X, target, **options)
