"""Grids of timesteps: the authors' own, distinct and descending whatever the spacing and the process."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dydiff_dist.diffusion import build_process, timestep_grid


@pytest.mark.parametrize(("num_steps", "first"), [(50, 981), (25, 961), (20, 951), (1, 1)])
def test_uniform_grid_is_the_authors(num_steps, first):
    grid = timestep_grid(build_process().table, num_steps)
    assert grid == [t + 1 for t in range(0, 1000, 1000 // num_steps)][::-1]
    assert grid[0] == first


@settings(deadline=None, max_examples=150)
@given(
    num_timesteps=st.integers(2, 1200),
    data=st.data(),
    spacing=st.sampled_from(["uniform", "quadratic", "log_snr", "trailing"]),
    process=st.sampled_from(["dydiff", "flow_matching", "edm"]),
    zero_terminal_snr=st.booleans(),
)
def test_grids_are_distinct_descending_timesteps(num_timesteps, data, spacing, process, zero_terminal_snr):
    num_steps = data.draw(st.integers(1, num_timesteps))
    path = {"zero_terminal_snr": zero_terminal_snr} if process == "dydiff" else {}
    table = build_process(num_timesteps=num_timesteps, process=process, prediction="v", **path).table
    grid = timestep_grid(table, num_steps, spacing)
    assert all(a > b for a, b in pairwise(grid))
    assert num_timesteps > grid[0] >= grid[-1] >= 0
    if spacing == "trailing":
        assert len(grid) == num_steps
        assert grid[0] == num_timesteps - 1


def test_spacings():
    table = build_process().table
    quadratic, by_snr = (timestep_grid(table, 10, spacing) for spacing in ("quadratic", "log_snr"))
    for grid in (quadratic, by_snr):
        assert len(grid) == 10
        assert (grid[0], grid[-1]) == (901, 1)
    second_differences = torch.tensor(quadratic).diff().diff()
    assert bool(((second_differences - second_differences[0]).abs() <= 2).all())  # rounding of three integers
    steps = table.log_snr[by_snr].diff()
    # near clean, neighbouring integers are far apart in λ
    torch.testing.assert_close(steps[:6], steps[:6].mean().expand(6), rtol=0.05, atol=0)


@pytest.mark.parametrize("process", ["flow_matching", "edm"])
def test_equal_steps_in_log_snr_of_any_path(process):
    table = build_process(process=process, num_timesteps=100_000).table
    steps = table.log_snr[timestep_grid(table, 10, "log_snr")].diff()
    torch.testing.assert_close(steps[:6], steps[:6].mean().expand(6), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "num_steps is 0"),
        ((1001,), r"num_steps is 1001; it must lie in 1\.\.1000"),
        ((10, "karras"), "choose one of uniform, quadratic, log_snr, trailing"),
    ],
)
def test_refused_grids(arguments, words):
    with pytest.raises(ValueError, match=words):
        timestep_grid(build_process().table, *arguments)
