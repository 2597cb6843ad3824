"""Schedules against their check values, against the formulas written out again, and at their limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import DynamicalDiffusion
from dydiff_dist.diffusion.schedules import alpha_bar_schedule, gamma_bar_schedule, log_snr


def cosine_by_loop(num_timesteps, ratio):
    """The product over clipped decrements in plain Python, for γ̄ (and for ᾱ at ratio 1)."""

    def f(k):
        return math.cos((k / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    level, levels = 1.0, []
    for k in range(num_timesteps):
        now, after = (ratio * f(j) / f(0) + 1 - ratio for j in (k, k + 1))
        level *= 1 - min(max(1 - after / now, 0.0), 0.999)
        levels.append(level)
    return torch.tensor(levels, dtype=torch.float64)


@pytest.mark.parametrize(("ratio", "last", "tolerance"), [(0.5, 0.5, 1e-7), (0.9, 0.1, 1e-7), (1.0, 2.4288e-9, 5e-14)])
def test_last_gamma_bar(ratio, last, tolerance):
    """The check values of the method at N = 1000, to the digits they are given with."""
    gamma_bar = DynamicalDiffusion(num_timesteps=1000, gamma_schedule="cosine", gamma_ratio=ratio).gamma_bar
    assert gamma_bar.dtype == torch.float64
    assert gamma_bar.shape == (1000,)
    assert abs(gamma_bar[-1].item() - last) < tolerance


@settings(deadline=None, max_examples=30)
@given(num_timesteps=st.integers(2, 400), ratio=st.floats(0, 1))
def test_cosine_schedules_are_the_formula(num_timesteps, ratio):
    gamma_bar = gamma_bar_schedule(num_timesteps, "cosine", ratio)
    # relative: the smallest levels are 1e-9; rounding adds up over the product
    torch.testing.assert_close(gamma_bar, cosine_by_loop(num_timesteps, ratio), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        alpha_bar_schedule(num_timesteps, "cosine"), cosine_by_loop(num_timesteps, 1.0), rtol=1e-9, atol=0
    )
    assert bool((gamma_bar > 0).all())
    assert bool((gamma_bar <= 1).all())
    assert bool((gamma_bar.diff() <= 0).all())


def test_linear_schedules():
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    assert torch.equal(alpha_bar_schedule(1000, "linear"), (1 - betas).cumprod(0))
    roots = torch.linspace(0.01**0.5, 0.04**0.5, 10, dtype=torch.float64)
    scaled = alpha_bar_schedule(10, "scaled_linear", beta_start=0.01, beta_end=0.04)
    torch.testing.assert_close(scaled, (1 - roots**2).cumprod(0), rtol=1e-15, atol=0)


def test_linear_cumprod_falls_linearly_and_stays_positive():
    gamma_bar = gamma_bar_schedule(1000, "linear_cumprod")
    linear = 1 - torch.arange(1, 1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(gamma_bar[:-1], linear, rtol=1e-12, atol=0)
    # the last step, to 0, is clipped to a decrement of 0.999
    assert gamma_bar[-1].item() == pytest.approx(1e-6, rel=1e-9)


@pytest.mark.parametrize("arguments", [("none",), ("cosine", 0.0)])
def test_no_mixing_is_exactly_one(arguments):
    assert torch.equal(gamma_bar_schedule(1000, *arguments), torch.ones(1000, dtype=torch.float64))
    assert DynamicalDiffusion(gamma_schedule=arguments[0], gamma_ratio=0.0).is_standard


@pytest.mark.parametrize("container", [list, np.asarray, torch.tensor])
def test_explicit_gamma_bar(container):
    values = [1.0, 0.8, 0.3]
    d = DynamicalDiffusion(num_timesteps=3, gamma_schedule=container(values))
    torch.testing.assert_close(d.gamma_bar, torch.tensor(values, dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "scaled_linear"])
def test_zero_terminal_snr(schedule):
    plain = alpha_bar_schedule(1000, schedule)
    rescaled = alpha_bar_schedule(1000, schedule, zero_terminal_snr=True)
    assert rescaled[-1].item() == 0
    assert rescaled[0].item() == pytest.approx(plain[0].item(), rel=1e-12)
    assert bool((rescaled.diff() < 0).all())


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_snr_factor_multiplies_the_signal_to_noise_ratio(factor):
    plain, scaled = (alpha_bar_schedule(1000, "cosine", snr_factor=k) for k in (1.0, factor))
    torch.testing.assert_close(scaled / (1 - scaled), factor * plain / (1 - plain), rtol=1e-10, atol=0)
    assert torch.equal(DynamicalDiffusion(snr_factor=factor).alpha_bar, scaled)
    ended = alpha_bar_schedule(1000, "cosine", snr_factor=factor, zero_terminal_snr=True)
    assert ended[-1].item() == 0 and bool((ended.diff() < 0).all())


def test_log_snr():
    alpha_bar = torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=torch.float64)
    expected = torch.tensor([-math.inf, 0.0, math.log(2.0), math.inf], dtype=torch.float64)
    torch.testing.assert_close(log_snr(alpha_bar), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_timesteps": 1}, "num_timesteps is 1"),
        ({"beta_schedule": "cosin"}, "choose one of cosine, linear, scaled_linear"),
        ({"gamma_schedule": "linear"}, "choose one of cosine, linear_cumprod, none"),
        ({"gamma_ratio": 1.5}, r"gamma_ratio is 1.5; it must lie in \[0, 1\]"),
        ({"beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.05}, "beta_start 0.1 and beta_end 0.05"),
        ({"beta_start": 0.1}, "belong to the linear schedules"),
        ({"gamma_schedule": [0.5, 0.5]}, r"shape \(2,\)"),
        ({"num_timesteps": 2, "gamma_schedule": [0.5, 0.0]}, r"outside \(0, 1\]"),
        ({"num_timesteps": 2, "gamma_schedule": [0.5, math.nan]}, r"outside \(0, 1\]"),
        ({"prediction": "epsilon"}, "prediction is 'epsilon'; choose one of eps, v, x0"),
        ({"zero_terminal_snr": True, "prediction": "eps"}, "use prediction 'v' or 'x0'"),
        ({"loss_space": "unmixed", "gamma_ratio": 1.0, "prediction": "v"}, "use loss_space 'mixed'"),
        ({"normalize_input": True}, "needs frame_autocovariance"),
        ({"normalize_input": True, "frame_autocovariance": [[1.0, 0.5]]}, r"shape \(1, 2\)"),
        ({"min_snr": 0.0}, "min_snr is 0.0"),
        ({"snr_factor": 0.0}, "snr_factor is 0.0; it must be positive"),
        ({"backend": "cuda"}, "backend is 'cuda'; choose one of auto, triton, cpp, reference"),
    ],
)
def test_refused_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        DynamicalDiffusion(**arguments)
    assert "\n" not in str(error.value)
