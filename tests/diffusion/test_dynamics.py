"""The Dynamics operator: inverse, statistics of mixed noise, variance of mixed data, exact gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import frame_mix, frame_unmix
from dydiff_dist.diffusion.dynamics import mixed_signal_variance, mixing_matrix, unmix_gain

LEVELS = st.floats(1e-4, 1.0)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([(), (3,), (2, 3, 4)]))


def draw(shape, seed):
    B, S, rest = shape
    return torch.randn(B, S, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 2**32), data=st.data())
def test_unmix_inverts_mix(shape, seed, data):
    x = draw(shape, seed)
    gamma_bar = torch.tensor(data.draw(st.lists(LEVELS, min_size=len(x), max_size=len(x))), dtype=torch.float64)
    # rounding (1e-16 of values below 6) grows by the gain of D⁻¹, 200 at the smallest level, and with the frames
    torch.testing.assert_close(frame_unmix(frame_mix(x, gamma_bar), gamma_bar), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(frame_mix(frame_unmix(x, gamma_bar), gamma_bar), x, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(gamma=LEVELS, num_frames=st.integers(1, 12))
def test_mixed_noise_is_stationary_ar1_of_unit_variance(gamma, num_frames):
    """Cov(D ε) = D Dᵀ, with D read off the operator column by column: exact, no sampling."""
    columns = torch.eye(num_frames, dtype=torch.float64)  # sample r is the r-th unit vector along frames
    D = frame_mix(columns, torch.full((num_frames,), gamma, dtype=torch.float64)).T
    frame = torch.arange(num_frames)
    lag_one = (1 - gamma) ** 0.5
    ar1 = lag_one ** (frame[:, None] - frame[None, :]).abs().double()
    torch.testing.assert_close(D @ D.T, ar1, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        mixing_matrix(torch.tensor([gamma], dtype=torch.float64), num_frames)[0], D, rtol=0, atol=1e-14
    )


@settings(deadline=None, max_examples=20)
@given(gamma=st.floats(0.05, 1.0), seed=st.integers(0, 2**32))
def test_variance_of_drawn_noise_is_kept(gamma, seed):
    noise = draw((1, 6, (40_000,)), seed)
    mixed = frame_mix(noise, torch.tensor([gamma], dtype=torch.float64))
    # standard error of a variance over 40,000 values: √(2/40000) = 0.007; 6 of them, over 6 frames and 20 examples
    assert bool(((mixed.var(2) - 1).abs() < 0.045).all())


@settings(deadline=None, max_examples=30)
@given(gamma=LEVELS, num_frames=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_mixed_signal_variance_is_that_of_mixed_data(gamma, num_frames, seed):
    """With the sample's own second moments as covariance the formula holds exactly, not only in expectation."""
    data = draw((1, num_frames, (50,)), seed).cumsum(1)
    covariance = data[0] @ data[0].T / 50
    levels = torch.tensor([gamma], dtype=torch.float64)
    measured = frame_mix(data, levels).square().mean()
    torch.testing.assert_close(mixed_signal_variance(levels, covariance)[0], measured, rtol=1e-12, atol=0)


def test_mixed_signal_variance_by_lag_and_limits():
    levels = torch.tensor([1.0, 0.5], dtype=torch.float64)
    white = torch.tensor([1.0, *[0.0] * 199], dtype=torch.float64)
    torch.testing.assert_close(mixed_signal_variance(levels, white), torch.ones(2).double(), rtol=0, atol=1e-12)
    constant = mixed_signal_variance(levels, torch.ones(400, dtype=torch.float64))
    b = 0.5**0.5
    # the first frames, where the recurrence is still growing, weigh 1 in 400
    torch.testing.assert_close(constant, torch.tensor([1.0, (1 + b) / (1 - b)]).double(), rtol=2e-2, atol=0)
    assert (1 + b) / (1 - b) == pytest.approx(5.83, abs=0.01)


@settings(deadline=None, max_examples=30)
@given(gamma=LEVELS, num_frames=st.integers(2, 8))
def test_unmix_gain_is_the_growth_of_white_errors(gamma, num_frames):
    levels = torch.tensor([gamma], dtype=torch.float64)
    inverse = torch.linalg.inv(mixing_matrix(levels, num_frames)[0])
    growth = inverse.square().sum(1).sqrt()  # frame 0 is never mixed
    torch.testing.assert_close(growth[1:], unmix_gain(levels).expand(num_frames - 1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("op", [frame_mix, frame_unmix])
@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 5), (3, 4, 2, 2)])
def test_gradients_are_exact(op, shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gamma_bar = torch.linspace(0.05, 1.0, shape[0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: op(x, gamma_bar), x)
    assert torch.autograd.gradgradcheck(lambda x: op(x, gamma_bar), x)
