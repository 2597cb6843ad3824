"""The solver against exact solutions and balances of the equation it claims to solve."""

import math

import pytest
import torch
from pydantic import ValidationError

from dydiff_dist.data.turbulence_solver import TurbulenceConfig, VorticitySolver, simulate


def grid(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x along W and y along H, each (n, n) float64."""
    line = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def test_taylor_green_vortex_decays_exactly():
    """ω = 2 sin 2x sin 2y is steady under advection and decays as exp(-(8ν + μ) t)."""
    config = TurbulenceConfig(viscosity=1e-2, drag=0.1, power=0.0)
    solver = VorticitySolver(config, torch.float64)
    x, y = grid(64)
    start = 2 * torch.sin(2 * x) * torch.sin(2 * y)
    state = solver.to_spectrum(start[None])
    for _ in range(5):
        state = solver.advance_frame(state)
    decay = math.exp(-(8 * 1e-2 + 0.1) * 5 * config.frame_interval)
    # 1e-12: rounding of float64 over 60 steps; linear terms are integrated exactly and advection vanishes.
    torch.testing.assert_close(solver.to_grid(state)[0], decay * start, rtol=0, atol=1e-12)


def test_a_parallel_flow_is_steady_and_channels_are_width_then_height():
    """u = cos y along x has ω = sin y and advects nothing."""
    config = TurbulenceConfig(viscosity=0.0, drag=0.0, power=0.0)
    solver = VorticitySolver(config, torch.float64)
    _, y = grid(64)
    state = solver.to_spectrum(torch.sin(y)[None])
    velocity = solver.velocity(state)[0]
    torch.testing.assert_close(velocity[0], torch.cos(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(velocity[1], torch.zeros_like(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(solver.advance_frame(state), state, rtol=0, atol=1e-9)


@pytest.mark.long
def test_inviscid_truncated_flow_conserves_energy_and_enstrophy():
    config = TurbulenceConfig(viscosity=0.0, drag=0.0, power=0.0, steps_per_frame=24)
    solver = VorticitySolver(config, torch.float64)
    start = solver.random_state(0, "test", range(3))
    state = start
    for _ in range(8):
        state = solver.advance_frame(state)
    # The time step's error of order 4 is what is left: below 1e-6 of the energy and 1e-5 of the enstrophy here.
    torch.testing.assert_close(solver.energy(state), solver.energy(start), rtol=1e-6, atol=0)
    torch.testing.assert_close(solver.enstrophy(state), solver.enstrophy(start), rtol=1e-5, atol=0)


def test_unforced_energy_falls_by_viscous_dissipation():
    """dE/dt = -2νZ, by Simpson's rule over one frame interval."""
    config = TurbulenceConfig(drag=0.0, power=0.0, frame_interval=0.02, steps_per_frame=2)
    solver = VorticitySolver(config, torch.float64)
    states = [solver.random_state(1, "test", range(2))]
    for _ in range(2):
        states.append(solver.advance_frame(states[-1]))
    rates = torch.stack([-2 * config.viscosity * solver.enstrophy(state) for state in states])
    change = solver.energy(states[2]) - solver.energy(states[0])
    expected = 2 * config.frame_interval / 6 * (rates[0] + 4 * rates[1] + rates[2])
    # 1e-6: Simpson's error h^4 over the flow's time scale of about 0.3.
    torch.testing.assert_close(change, expected, rtol=1e-6, atol=0)


def test_force_injects_exactly_the_given_power():
    """dE/dt = P - 2νZ - 2μE at every instant."""
    config = TurbulenceConfig(frame_interval=1e-4, steps_per_frame=1)
    solver = VorticitySolver(config, torch.float64)
    state = solver.random_state(2, "test", range(2))
    rate = (solver.energy(solver.advance_frame(state)) - solver.energy(state)) / config.frame_interval
    balance = config.power - 2 * config.viscosity * solver.enstrophy(state) - 2 * config.drag * solver.energy(state)
    # 1e-3: the forward difference's error, half a step times the rate's own rate of change.
    torch.testing.assert_close(rate, balance, rtol=0, atol=1e-3)


@pytest.mark.long
def test_default_flow_is_steady_and_forgets_as_documented():
    config = TurbulenceConfig()
    (velocity,) = simulate(config, 0, "test", range(8), 1, 40, 0)
    energy = 0.5 * velocity.square().sum(2).mean((-2, -1))
    assert (energy.mean(0) - energy.mean()).abs().max() < 0.02 * energy.mean()
    products = [(velocity[:, : 40 - lag] * velocity[:, lag:]).mean() / velocity.square().mean() for lag in (1, 11)]
    # Over seeds, 8 runs spread by 0.002 and 0.03 around 0.978 and 0.28.
    assert 0.97 < products[0] < 0.985 and 0.18 < products[1] < 0.38


def test_a_run_does_not_depend_on_its_companions():
    config = TurbulenceConfig(resolution=32, spin_up_frames=1)
    together = next(iter(simulate(config, 5, "train", range(4), 1, 2, 0)))
    alone = next(iter(simulate(config, 5, "train", range(2, 3), 1, 2, 0)))
    # Batched and single transforms may round differently: a few float32 roundings of values near 1.
    torch.testing.assert_close(together[2], alone[0], rtol=0, atol=1e-4)
    again = next(iter(simulate(config, 5, "train", range(4), 1, 2, 0)))
    assert torch.equal(together, again)
    other = next(iter(simulate(config, 5, "valid", range(4), 1, 2, 0)))
    assert (together - other).abs().max() > 0.1


def test_too_large_steps_and_bands_are_user_errors():
    solver = VorticitySolver(TurbulenceConfig(power=500.0, drag=0.001, steps_per_frame=1, frame_interval=2.0))
    state = solver.random_state(0, "test", range(1))
    with pytest.raises(ValueError, match="raise steps_per_frame"):
        for _ in range(20):
            state = solver.advance_frame(state)
    with pytest.raises(ValidationError, match="largest wavenumber that resolution 16 keeps"):
        TurbulenceConfig(resolution=16, force_max_wavenumber=5.5)
