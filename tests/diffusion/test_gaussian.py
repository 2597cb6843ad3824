"""Solvers on Gaussian frames, where the best denoiser is known for every process: orders, limits, distributions."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gaussian_frames import GaussianFrames, S, arrival, grid_of, root_mean_square, start_of
from process_rows import ROWS, process_of

from dydiff_dist.diffusion import frame_unmix, sample, samplers, start_noise, timestep_grid

STEPS = (32, 64, 128, 256)
WHITENED = [row for row in ROWS if process_of(row).table.is_whitened_standard]
CHANGING = [row for row in ROWS if row not in WHITENED]


def errors_from_the_flow(d, sampler, steps=STEPS):
    """Distance from the exact flow at the last timestep of the grid, over 200 starts."""
    errors = []
    for num_steps in steps:
        grid = grid_of(d, num_steps)
        exact = GaussianFrames().flow(d, start_of(d, grid[0]), grid[0], grid[-1])
        errors.append(root_mean_square(arrival(d, grid, sampler) - exact))
    return errors


def differences_between_runs(d, sampler):
    """Distance of each run from the one of twice as many steps: halves as errors do, towards a limit not known."""
    runs = [arrival(d, grid_of(d, num_steps), sampler) for num_steps in (*STEPS, 2 * STEPS[-1])]
    return [root_mean_square(one - two) for one, two in pairwise(runs)]


def assert_order(errors, order, last=0.05, throughout=0.1):
    """Errors against steps on a log-log line: the slope is -order."""
    slopes = [math.log2(one / two) for one, two in pairwise(errors)]
    assert abs(slopes[-1] - order) < last, (errors, slopes)
    assert all(abs(slope - order) < throughout for slope in slopes), (errors, slopes)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("heun", 2)])
@pytest.mark.parametrize("row", WHITENED)
def test_convergence_order(row, sampler, order):
    """N is large: grids are nearly continuous."""
    d = process_of(row, num_timesteps=100_000)
    assert samplers.SAMPLERS[sampler].order == order
    assert_order(errors_from_the_flow(d, sampler), order)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "velocity", "edm"])
def test_order_is_that_of_the_estimate_whatever_is_predicted(prediction, sampler, order):
    d = process_of("dydiff", prediction, num_timesteps=100_000)
    assert_order(errors_from_the_flow(d, sampler), order)


@pytest.mark.parametrize("row", CHANGING)
def test_ddim_is_first_order_where_operators_change(row):
    """Towards its own limit: with operators that differ and change there is no map to standard diffusion."""
    assert_order(differences_between_runs(process_of(row, num_timesteps=100_000), "ddim"), 1)


@pytest.mark.parametrize("row", CHANGING)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_second_order_is_refused_where_operators_change(row, sampler):
    d = process_of(row)
    with pytest.raises(ValueError, match=f"sampler '{sampler}' combines .* operators that differ .* and change"):
        arrival(d, [900, 500, 1], sampler)


@pytest.mark.parametrize(("sampler", "row"), [("dpmpp_2m", "dydiff_independent"), ("heun", "correlated_noise")])
def test_second_order_would_be_first_there(monkeypatch, sampler, row):
    """The reason for the refusal: what such a solver would do."""
    allowed = replace(samplers.SAMPLERS[sampler], any_process=True)
    monkeypatch.setitem(samplers.SAMPLERS, sampler, allowed)
    assert_order(differences_between_runs(process_of(row, num_timesteps=100_000), sampler), 1, 0.1, 0.35)


@pytest.mark.parametrize("gamma_ratio", [0.0, 0.5, 0.9])
def test_2m_with_20_steps_beats_ddim_with_50(gamma_ratio):
    d = process_of("dydiff", "v", gamma_ratio=gamma_ratio)

    def error(num_steps, sampler):
        grid = timestep_grid(d.table, num_steps)
        start = start_of(d, grid[0])
        result = sample(d, GaussianFrames().denoiser(d), start=start, timesteps=grid, sampler=sampler)
        return root_mean_square(result - flow_to_clean(d, start, grid[0]))

    second_order = error(20, "dpmpp_2m")
    assert second_order < error(50, "ddim")
    assert error(50, "dpmpp_2m") < second_order / 3


def flow_to_clean(d, z, timestep):
    """The exact flow to a = 1, s = 0; operators are shared, so that what is whitened are the frames."""
    problem = GaussianFrames()
    at_zero = problem.flow(d, z, timestep, 0)
    a, s = d.table.signal[0], d.table.noise[0]
    variances, vectors = torch.linalg.eigh(problem.covariance)
    to_clean = vectors @ (variances / (a**2 * variances + s**2)).sqrt().diag() @ vectors.T
    return torch.einsum("sr,brp->bsp", to_clean, frame_unmix(at_zero, d.table.noise_gamma[:1].expand(len(z))))


@pytest.mark.parametrize("row", ROWS)
def test_ancestral_sampling_has_the_data_distribution(row):
    """With the exact denoiser a run is linear in its noise, so the covariance of its samples is its matrices, read off
    unit vectors: it must approach that of the data at first order in the steps."""
    # of variances of 2.25; edm's noise goes over four decades, so that its steps are larger
    assert_first_order_to_the_data(process_of(row, "x0"), 0.12 if row.startswith("edm") else 0.08)


def assert_first_order_to_the_data(d, last):
    """Ancestral samples in 50, 100 and 200 steps: the covariance's largest error halves, and ends below ``last``."""
    problem = GaussianFrames()
    denoise = problem.denoiser(d)

    def error(num_steps):
        grid = timestep_grid(d.table, num_steps)
        units = torch.eye(S * (num_steps + 1), dtype=torch.float64).unflatten(1, (num_steps + 1, S, 1))
        start = start_noise(d, (len(units), S, 1), grid[0], units[:, 0], dtype=torch.float64)
        noise = units[:, 1:].transpose(0, 1)
        columns = sample(d, denoise, start=start, timesteps=grid, sampler="ancestral", noise=noise)[..., 0]
        return (columns.T @ columns - problem.covariance).abs().max().item()

    errors = [error(num_steps) for num_steps in (50, 100, 200)]
    assert errors[2] < last, errors
    assert all(1.8 < one / two < 2.2 for one, two in pairwise(errors)), errors
