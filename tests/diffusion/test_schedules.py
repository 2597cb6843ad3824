"""Schedules against their check values, against the formulas written out again, and at their limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import build_process
from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.schedules import alpha_bar_schedule, gamma_bar_schedule


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
    gamma_bar = build_process(num_timesteps=1000, gamma_schedule="cosine", gamma_ratio=ratio).table.frame_gamma
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
    roots = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 10, dtype=torch.float64)
    scaled = alpha_bar_schedule(10, "scaled_linear")
    torch.testing.assert_close(scaled, (1 - roots**2).cumprod(0), rtol=1e-15, atol=0)


def test_linear_cumprod_falls_linearly_and_stays_positive():
    gamma_bar = gamma_bar_schedule(1000, "linear_cumprod")
    linear = 1 - torch.arange(1, 1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(gamma_bar[:-1], linear, rtol=1e-12, atol=0)
    # the last step, to 0, is clipped to a decrement of 0.999
    assert gamma_bar[-1].item() == pytest.approx(1e-6, rel=1e-9)


@pytest.mark.parametrize("arguments", [("none",), ("cosine", 0.0), ("linear_carry", 0.0)])
def test_no_mixing_is_exactly_one(arguments):
    assert torch.equal(gamma_bar_schedule(1000, *arguments), torch.ones(1000, dtype=torch.float64))
    assert not build_process(gamma_schedule=arguments[0], gamma_ratio=0.0).table.mixes


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_linear_carry_is_nowcastdits_schedule(alpha):
    """arXiv 2609.37038, Eq. 3 and 4: the share carried over is α²(1-t)²/(1 + α²(1-t)²), and t = 1 is clean."""
    d = build_process(
        process="flow_matching", mixes="noise", gamma_schedule="linear_carry", gamma_ratio=alpha**2 / (1 + alpha**2)
    )
    noise = d.table.noise  # 1 - t
    odds = (alpha * noise).square()
    torch.testing.assert_close(1 - d.table.noise_gamma, odds / (1 + odds), rtol=0, atol=1e-15)
    largest = mixing_matrix(d.table.noise_gamma[-1:], 5)[0]
    correlation = (largest @ largest.T)[3, 4].item()
    assert correlation == pytest.approx(alpha / (1 + alpha**2) ** 0.5, rel=1e-12)  # 0.447 at 0.5
    assert bool((d.table.noise_gamma.diff() < 0).all()) and d.table.noise_gamma[0] > 1 - 1e-6


def test_constant_mixing():
    assert torch.equal(gamma_bar_schedule(7, "constant", 0.8), torch.full((7,), 1 - 0.8, dtype=torch.float64))


@pytest.mark.parametrize("container", [list, np.asarray, torch.tensor])
def test_explicit_gamma_bar(container):
    values = [1.0, 0.8, 0.3]
    d = build_process(num_timesteps=3, gamma_schedule=container(values))
    torch.testing.assert_close(d.table.frame_gamma, torch.tensor(values, dtype=torch.float64), rtol=1e-7, atol=0)


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
    assert torch.equal(build_process(snr_factor=factor).table.signal, scaled.sqrt())
    ended = alpha_bar_schedule(1000, "cosine", snr_factor=factor, zero_terminal_snr=True)
    assert ended[-1].item() == 0 and bool((ended.diff() < 0).all())


def test_log_snr():
    table = build_process(prediction="v", zero_terminal_snr=True).table
    alpha_bar = table.signal.square()
    torch.testing.assert_close(table.log_snr, 0.5 * (alpha_bar / (1 - alpha_bar)).log(), rtol=1e-9, atol=1e-12)
    assert table.log_snr[-1] == -math.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: alpha_bar_schedule(1, "cosine"), "num_timesteps is 1"),
        (lambda: alpha_bar_schedule(10, "cosin"), "choose one of cosine, linear, scaled_linear"),
        (lambda: alpha_bar_schedule(10, "cosine", snr_factor=0.0), "snr_factor is 0.0; it must be positive"),
        (
            lambda: gamma_bar_schedule(10, "linear"),
            "choose one of cosine, linear_cumprod, linear_carry, constant, none",
        ),
        (lambda: gamma_bar_schedule(10, "cosine", 1.5), r"gamma_ratio is 1.5; it must lie in \[0, 1\]"),
        (lambda: gamma_bar_schedule(10, "constant", 1.0), "gamma_bar 0 has no inverse"),
        (lambda: gamma_bar_schedule(10, "linear_carry", 1.0), "gamma_ratio is 1 with gamma_schedule 'linear_carry'"),
        (lambda: gamma_bar_schedule(10, [0.5, 0.5]), r"shape \(2,\)"),
        (lambda: gamma_bar_schedule(2, [0.5, 0.0]), r"outside \(0, 1\]"),
        (lambda: gamma_bar_schedule(2, [0.5, math.nan]), r"outside \(0, 1\]"),
    ],
)
def test_refused_schedules(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
