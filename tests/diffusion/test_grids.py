"""Grids of timesteps: the authors' own, distinct and descending whatever the spacing, staggered over frames."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import DynamicalDiffusion, staggered_grid, timestep_grid
from dydiff_dist.diffusion.schedules import log_snr


@pytest.mark.parametrize(("num_steps", "first"), [(50, 981), (25, 961), (20, 951), (1, 1)])
def test_uniform_grid_is_the_authors(num_steps, first):
    grid = timestep_grid(1000, num_steps)
    assert grid == [t + 1 for t in range(0, 1000, 1000 // num_steps)][::-1]
    assert grid[0] == first


@settings(deadline=None, max_examples=150)
@given(
    num_timesteps=st.integers(2, 1200),
    data=st.data(),
    spacing=st.sampled_from(["uniform", "quadratic", "log_snr", "trailing"]),
    zero_terminal_snr=st.booleans(),
)
def test_grids_are_distinct_descending_timesteps(num_timesteps, data, spacing, zero_terminal_snr):
    num_steps = data.draw(st.integers(1, num_timesteps))
    d = DynamicalDiffusion(num_timesteps=num_timesteps, prediction="v", zero_terminal_snr=zero_terminal_snr)
    alpha_bar = d.alpha_bar
    grid = timestep_grid(num_timesteps, num_steps, spacing, alpha_bar=alpha_bar)
    assert all(a > b for a, b in pairwise(grid))
    assert num_timesteps > grid[0] >= grid[-1] >= 0
    if spacing == "trailing":
        assert len(grid) == num_steps
        assert grid[0] == num_timesteps - 1


def test_spacings():
    alpha_bar = DynamicalDiffusion().alpha_bar
    quadratic, by_snr = (timestep_grid(1000, 10, spacing, alpha_bar=alpha_bar) for spacing in ("quadratic", "log_snr"))
    for grid in (quadratic, by_snr):
        assert len(grid) == 10
        assert (grid[0], grid[-1]) == (901, 1)
    second_differences = torch.tensor(quadratic).diff().diff()
    assert bool(((second_differences - second_differences[0]).abs() <= 2).all())  # rounding of three integers
    steps = log_snr(alpha_bar)[by_snr].diff()
    # near clean, neighbouring integers are far apart in λ
    torch.testing.assert_close(steps[:6], steps[:6].mean().expand(6), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1000, 0), "num_steps is 0"),
        ((1000, 1001), r"num_steps is 1001; it must lie in 1\.\.1000"),
        ((1000, 10, "karras"), "choose one of uniform, quadratic, log_snr, trailing"),
        ((1000, 10, "log_snr"), "give alpha_bar"),
    ],
)
def test_refused_grids(arguments, words):
    with pytest.raises(ValueError, match=words):
        timestep_grid(*arguments)


def test_staggered_grid():
    grid = staggered_grid([9, 5, 1], num_frames=3, delay_steps=2)
    expected = [[9, 9, 9], [5, 9, 9], [1, 9, 9], [-1, 5, 9], [-1, 1, 9], [-1, -1, 5], [-1, -1, 1]]
    assert grid.tolist() == expected
    assert torch.equal(staggered_grid([9, 5, 1], 3, 0), torch.tensor([[9] * 3, [5] * 3, [1] * 3]))
