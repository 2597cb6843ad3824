"""A process, a prediction and a sampler of one's own, by name through the configuration and ``sample``."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_frames import GaussianFrames, arrival, grid_of, root_mean_square, start_of
from process_rows import ddim_step, draw, make_step, noised
from test_gaussian import assert_order

from dydiff_dist.diffusion import (
    DiffusionConfig,
    Prediction,
    ProcessRow,
    ProcessTable,
    Sampler,
    Step,
    StepWeights,
    build_process,
    register_prediction,
    register_process,
    register_sampler,
    sample,
    samplers,
    start_noise,
    table,
    timestep_grid,
)
from dydiff_dist.diffusion.samplers import ddim_weights


@pytest.fixture(autouse=True)
def registries_as_they_were():
    """What a test registers is gone after it; other modules hold the same dictionaries, so they are emptied, not put
    aside."""
    registries = (table.PROCESSES, table.PREDICTIONS, samplers.SAMPLERS)
    entries = [dict(registry) for registry in registries]
    yield
    for registry, before in zip(registries, entries, strict=True):
        registry.clear()
        registry.update(before)


def circle(config):
    """a = cos φ, s = sin φ at equal angles."""
    angle = torch.linspace(0.001, 1.56, config.num_timesteps, dtype=torch.float64)
    return angle.cos(), angle.sin()


def doubled_noise(a, s, config):
    return 2 * torch.ones_like(a), -0.5 * torch.ones_like(a)


def third_order(levels, eta):
    """Multistep DPM-Solver++ of order 3 (Lu et al. 2022): x̂ between the nodes λ is their interpolating polynomial.

    u'/s' = u/s + ∫ e^λ x̂(λ) dλ from λ to λ'. Heun's step makes the first, with x̂ at both of its ends.
    """
    first, second = levels[0], levels[1]
    half = (second.signal - first.signal * second.noise / first.noise) / 2
    steps = [Step(first, second, ddim_weights(first, second))]
    steps.append(Step(second, second, StepWeights(second.signal + half, second.noise, (-half,))))
    for index, (now, after) in enumerate(pairwise(levels[1:]), start=1):
        if after.noise == 0:
            steps.append(Step(now, after, ddim_weights(now, after)))
            continue
        nodes = [levels[k].log_snr - now.log_snr for k in range(index, max(index - 3, -1), -1)]
        clean, *previous = interpolated_integrals(nodes, after.log_snr - now.log_snr)
        scale = after.noise * now.signal / now.noise
        previous = [scale * weight for weight in previous]
        if index == 1:
            previous = [0.0, *previous]  # x̂ at Euler's end of the first step is passed over
        elif index == 2:
            previous = [previous[0], 0.0, previous[1]]
        steps.append(Step(now, after, StepWeights(scale + scale * clean, after.noise, tuple(previous))))
    return steps


def interpolated_integrals(nodes, h):
    """∫ e^τ L_j(τ) dτ from 0 to h for the Lagrange polynomials of the nodes."""
    moments = [math.expm1(h)]
    for power in range(1, len(nodes)):
        moments.append(h**power * math.exp(h) - power * moments[-1])
    powers = torch.tensor([[node**k for node in nodes] for k in range(len(nodes))], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("mixed", ["none", "both", "frames", "noise"])
@pytest.mark.parametrize("prediction", [None, "x0", "doubled_noise"])
def test_a_process_and_a_prediction_of_ones_own(mixed, prediction):
    register_process("circle", ProcessRow(circle, mixed=mixed, prediction="v"))
    register_prediction("doubled_noise", Prediction(doubled_noise))
    config = DiffusionConfig.model_validate_json('{"process": "circle", "num_timesteps": 200}')
    assert config.prediction == "v"
    d = build_process(process="circle", prediction=prediction, num_timesteps=200)
    assert torch.equal(config.build().table.signal, d.table.signal)
    x, noise = draw((2, 5, 3))
    for timestep, after in ((150, 70), (20, -1)):
        z, target, _ = d.add_noise(x, torch.full((2,), timestep), noise)
        z_next, x0_hat = make_step(d, z, target, ddim_step(d, timestep, after))
        torch.testing.assert_close(z_next, noised(d, x, after, noise), rtol=0, atol=1e-12)
        torch.testing.assert_close(x0_hat, x, rtol=0, atol=1e-12)


def test_a_function_that_makes_the_whole_table():
    def whole(config):
        a, s = circle(config)
        one = torch.ones_like(a)
        return ProcessTable(
            signal=a, noise=s, frame_gamma=one, noise_gamma=one, target_noise=one, target_signal=0 * one
        )

    register_process("whole", whole)
    assert build_process(process="whole").num_timesteps == 1000
    assert DiffusionConfig(process="whole").prediction is None
    with pytest.raises(ValueError, match="'whole' says itself what the network predicts; leave prediction out"):
        build_process(process="whole", prediction="v")


def test_a_sampler_of_third_order():
    """With two x̂ before the present one, on Gaussian frames."""
    register_sampler("dpmpp_3m", Sampler(third_order, order=3, any_process=False))
    d = build_process(num_timesteps=1_000_000, prediction="v")
    errors = []
    for num_steps in (32, 64, 128, 256):
        grid = grid_of(d, num_steps)
        exact = GaussianFrames().flow(d, start_of(d, grid[0]), grid[0], grid[-1])
        errors.append(root_mean_square(arrival(d, grid, "dpmpp_3m") - exact))
    assert_order(errors, 3, last=0.1, throughout=0.2)
    with pytest.raises(ValueError, match="sampler 'dpmpp_3m' combines"):
        arrival(build_process(process="dydiff_independent"), [900, 500, 1], "dpmpp_3m")


def test_a_sampler_that_reads_several_estimates_runs_in_reused_memory():
    register_sampler("dpmpp_3m", Sampler(third_order, order=3))
    d = build_process(prediction="v")
    grid = timestep_grid(d.table, 8)
    start = start_noise(d, (3, 5, 2, 4), grid[0], draw((3, 5, 2, 4))[0])
    runs = [
        sample(d, lambda z, t: (0.3 * z).sin(), start=z, timesteps=grid, sampler="dpmpp_3m")
        for z in (start, start.double())
    ]
    torch.testing.assert_close(runs[0].double(), runs[1], rtol=0, atol=5e-5)


def test_estimates_in_half_precision_are_combined_in_float32():
    d = build_process(prediction="v")
    z, output, first, second = draw((3, 5, 2, 4), dtype=torch.bfloat16, num=4)
    step = Step(*ddim_step(d, 500, 400)[:2], StepWeights(1.5, 0.7, (-0.8, 0.3)))
    stored = make_step(d, z, output, step, previous=[first, second])
    exact = make_step(d, z.double(), output.double(), step, previous=[first.double(), second.double()])
    for ours, theirs in zip(stored, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=torch.finfo(torch.bfloat16).eps / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("register", "name", "entry"),
    [
        (register_process, "dydiff", ProcessRow(circle, mixed="none", prediction="v")),
        (register_prediction, "v", Prediction(doubled_noise)),
        (register_sampler, "ddim", Sampler(third_order, order=3)),
    ],
)
def test_names_are_taken_once(register, name, entry):
    with pytest.raises(ValueError, match=f"{name!r} is registered already; choose another name"):
        register(name, entry)
    register("one_of_my_own", entry)
    with pytest.raises(ValueError, match="'one_of_my_own' is registered already"):
        register("one_of_my_own", entry)


def test_unknown_names_say_the_nearest_of_ones_own():
    register_process("circle", ProcessRow(circle, mixed="none", prediction="v"))
    register_prediction("doubled_noise", Prediction(doubled_noise))
    register_sampler("dpmpp_3m", Sampler(third_order, order=3))
    with pytest.raises(ValueError, match="process is 'cirle'; did you mean 'circle'"):
        build_process(process="cirle")
    with pytest.raises(ValueError, match="prediction is 'double_noise'; did you mean 'doubled_noise'"):
        build_process(process="circle", prediction="double_noise")
    with pytest.raises(ValueError, match="sampler is 'dpmpp3m'; did you mean 'dpmpp_3m'"):
        arrival(build_process(), [900], "dpmpp3m")
