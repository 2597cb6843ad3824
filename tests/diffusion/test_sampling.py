"""The sampling loop: oracles, noise, history, what the network sees; guidance and rollout around it."""

from dataclasses import dataclass, field

import pytest
import torch
from process_rows import ROWS, ROWS_AND_PREDICTIONS, draw, output_for, process_of

from dydiff_dist.diffusion import (
    DiffusionProcess,
    build_process,
    frame_mix,
    guided,
    rollout,
    sample,
    start_noise,
    timestep_grid,
)
from dydiff_dist.diffusion.samplers import SAMPLERS
from dydiff_kernels import NoiseCounter, Stream, normal

S = 6
SHAPE = (3, S, 2, 4)


def oracle(d, x):
    """A denoiser that knows the clean frames."""

    def denoise(model_input, timesteps):
        t = int(timesteps[0])
        scale = 1.0 if d.table.input_std is None else d.table.input_std[t]
        return output_for(d, scale * model_input, x, t)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("row", "prediction"), ROWS_AND_PREDICTIONS)
def test_an_oracle_is_reproduced(sampler, row, prediction):
    """By every sampler that the process allows, and the others are refused."""
    d = process_of(row, prediction)
    x, noise = draw(SHAPE)
    for grid in (timestep_grid(d.table, 10), timestep_grid(d.table, 4, "trailing")):
        start = start_noise(d, SHAPE, grid[0], noise, dtype=torch.float64)
        options = {"start": start, "timesteps": grid, "sampler": sampler}
        if sampler in ("dpmpp_2m", "heun") and not d.table.is_whitened_standard:
            with pytest.raises(ValueError, match="use 'ddim' or 'ancestral'"):
                sample(d, oracle(d, x), **options)
            continue
        fresh = draw(SHAPE, seed=1, num=len(grid)) if sampler == "ancestral" else None
        torch.testing.assert_close(sample(d, oracle(d, x), noise=fresh, **options), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_an_oracle_is_reproduced_from_pure_noise(sampler, prediction):
    d = build_process(prediction=prediction, zero_terminal_snr=True)
    x, noise = draw(SHAPE)
    grid = timestep_grid(d.table, 10, "trailing")
    start = start_noise(d, SHAPE, grid[0], noise, dtype=torch.float64)
    result = sample(d, oracle(d, x), start=start, timesteps=grid, sampler=sampler)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-10)


def test_counter_noise_is_counted_on_per_step():
    d = build_process(prediction="v")
    x, noise = draw(SHAPE)
    grid = timestep_grid(d.table, 5)
    counter = NoiseCounter(seed=3, sample_index=torch.tensor([4, 5, 6]), step=70, stream=Stream.SAMPLER_ETA)
    steps = [
        NoiseCounter(seed=3, sample_index=counter.sample_index, step=70 + k, stream=Stream.SAMPLER_ETA)
        for k in range(5)
    ]
    drawn = torch.stack([normal(step, x.shape, dtype=torch.float64) for step in steps])
    by_name, by_value = (
        sample(d, lambda z, t: z * 0.1, start=noise, timesteps=grid, eta=0.7, noise=n) for n in (counter, drawn)
    )
    assert torch.equal(by_name, by_value)
    no_noise = sample(d, lambda z, t: z * 0.1, start=noise, timesteps=grid)
    assert not torch.allclose(by_name, no_noise)


@dataclass(frozen=True, eq=False)
class WatchedProcess(DiffusionProcess):
    """Keeps x̂ and z' of every step."""

    seen: list = field(default_factory=list)

    def step(self, *arguments, **options):
        result = super().step(*arguments, **{**options, "return_x0": True})
        self.seen.append((result.x0.clone(), result.z.clone()))
        return result


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_history_is_clamped_in_every_step_and_in_the_result(row, sampler):
    plain = process_of(row, "v")
    d = WatchedProcess(plain.table, plain.objective, plain.backend)
    if sampler == "heun" and not d.table.is_whitened_standard:
        pytest.skip("refused, see above")
    x, noise = draw(SHAPE)
    timesteps = []

    def denoise(z, t):
        timesteps.append(int(t[0]))
        return z * 0.1

    grid = timestep_grid(d.table, 5)
    options = {"start": noise, "timesteps": grid, "sampler": sampler}
    result = sample(d, denoise, history=x[:, :2], **options)
    twice = [t for t in grid for _ in range(2)][1:]
    assert timesteps == (twice if sampler == "heun" else grid)
    assert len(d.seen) == len(timesteps)
    assert all(torch.equal(x0[:, :2], x[:, :2]) for x0, _ in d.seen)
    assert torch.equal(result[:, :2], x[:, :2])
    assert torch.equal(result, d.seen[-1][1])


@pytest.mark.parametrize("row", ["dydiff", "edm_none"])
def test_network_sees_the_normalised_input(row):
    options = {"normalize_input": True, "frame_autocovariance": torch.full((S,), 4.0)}
    d = process_of(row, "v", **(options if row == "dydiff" else {}))
    _, noise = draw(SHAPE)
    seen = []

    def denoise(z, timesteps):
        seen.append(z)
        return z * 0

    sample(d, denoise, start=noise, timesteps=[500])
    torch.testing.assert_close(seen[0], noise / d.table.input_std[500], rtol=1e-14, atol=0)


@pytest.mark.parametrize("row", ROWS)
def test_start_noise_is_mixed_and_as_large_as_z(row):
    """Its deviation is that of z for white frames of unit variance: 1 on variance-preserving paths."""
    d = process_of(row)
    _, noise = draw(SHAPE)
    a, s = d.table.signal[981], d.table.noise[981]
    mixed = frame_mix(noise, d.table.noise_gamma[981].expand(3))
    expected = (a**2 + s**2).sqrt() * mixed
    start = start_noise(d, SHAPE, 981, noise, dtype=torch.float64)
    torch.testing.assert_close(start, expected, rtol=1e-15, atol=0)
    if not row.startswith(("flow_matching", "edm")):
        torch.testing.assert_close(start, mixed, rtol=3e-16, atol=0)
        in_float32 = frame_mix(noise.float(), d.table.noise_gamma[981].expand(3))
        assert torch.equal(start_noise(d, SHAPE, 981, noise.float()), in_float32)
    counter = NoiseCounter(seed=0, sample_index=torch.arange(3), step=0, stream=Stream.SAMPLER_START)
    drawn = start_noise(d, SHAPE, 981, counter, dtype=torch.float64)
    by_value = start_noise(d, SHAPE, 981, normal(counter, SHAPE, dtype=torch.float64), dtype=torch.float64)
    assert torch.equal(drawn, by_value)
    assert start_noise(d, SHAPE, 981, noise, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_start_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="sampling was asked for frames of shape"):
        start_noise(build_process(), (3, S, 2, 5), 981, draw(SHAPE)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timesteps": [1, 500]}, "do not descend"),
        ({"timesteps": [500, 500]}, "do not descend"),
        ({"timesteps": []}, r"have shape \(0,\)"),
        ({"timesteps": [500.0]}, "dtype torch.float"),
        ({"timesteps": torch.ones(3, 4).long()}, r"have shape \(3, 4\), dtype torch\.int64; give K integers"),
        ({"timesteps": [1000]}, r"run from 1000 to 1000; they must lie in 0\.\.999"),
        ({"timesteps": [500, -1]}, r"run from 500 to -1; they must lie in 0\.\.999"),
        ({"sampler": "rk45"}, "choose one of ddim, ancestral, dpmpp_2m"),
        ({"eta": 0.5}, "draws noise here; give a NoiseCounter"),
        ({"sampler": "ancestral"}, "draws noise"),
        ({"sampler": "dpmpp_2m", "eta": 0.5}, "only 'ddim' takes it"),
        ({"eta": -1.0}, "must not be negative"),
        ({"eta": 1.0, "noise": torch.zeros(3, 3, S, 2, 4)}, "noise holds 3 steps; the sampler makes 2"),
    ],
)
def test_refused_sampling(options, words):
    _, noise = draw(SHAPE)
    with pytest.raises(ValueError, match=words) as error:
        sample(build_process(), lambda z, t: z, **{"start": noise, "timesteps": [500, 1], **options})
    assert "\n" not in str(error.value)


# -- around the loop --------------------------------------------------------------------------------------------------


def test_guidance_is_linear_in_the_weight():
    conditional, unconditional = (lambda z, t: z + 1), (lambda z, t: 2 * z)
    z, t = torch.tensor([3.0]), torch.tensor([0])
    assert guided(conditional, unconditional, 2.5)(z, t).item() == 6 + 2.5 * (4 - 6)
    assert guided(conditional, unconditional, 1) is conditional
    assert guided(conditional, unconditional, 0) is unconditional


def test_samples_do_not_depend_on_the_batch():
    d = build_process(prediction="v")
    index = torch.arange(7) + 100
    grid = timestep_grid(d.table, 4)

    def forecast(part):
        def counter(stream):
            return NoiseCounter(seed=1, sample_index=index[part], step=0, stream=stream)

        shape = (len(index[part]), 4, 2, 3)
        start = start_noise(d, shape, grid[0], counter(Stream.SAMPLER_START))
        return sample(d, lambda z, t: z * 0.3, start=start, timesteps=grid, eta=1.0, noise=counter(Stream.SAMPLER_ETA))

    whole = forecast(slice(None))
    assert whole.shape == (7, 4, 2, 3)
    assert torch.equal(torch.cat([forecast(slice(k, k + 3)) for k in (0, 3, 6)]), whole)


def test_rollout_continues_from_the_last_frames():
    """A forecast that counts on by one makes an unbroken count, whatever the window."""
    windows = []

    def forecast(history, window):
        windows.append(window)
        return torch.cat((history, history[:, -1:] + torch.arange(1, 4).view(1, 3, 1)), 1)

    history = torch.tensor([[[1], [2]], [[5], [6]]])
    future = rollout(forecast, history, 7)
    assert future[..., 0].tolist() == [[3, 4, 5, 6, 7, 8, 9], [7, 8, 9, 10, 11, 12, 13]]
    assert windows == [0, 1, 2]
    with pytest.raises(ValueError, match="forecasts nothing after 2 history frames"):
        rollout(lambda history, window: history, history, 1)
    with pytest.raises(ValueError, match="num_future_frames is 0"):
        rollout(forecast, history, 0)


def test_rollout_with_history_longer_than_a_windows_future():
    history = torch.arange(5).view(1, 5, 1)
    future = rollout(lambda h, window: torch.cat((h, h[:, -1:] + 1, h[:, -1:] + 2), 1), history, 6)
    assert future.flatten().tolist() == [5, 6, 7, 8, 9, 10]
