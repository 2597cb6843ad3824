"""Frames relative to a simple forecast: what T is, and that a process on T x is the process of T x."""

import pytest
import torch
from gaussian_frames import S
from process_rows import along_frames, draw, output_for, process_of
from torch.utils._python_dispatch import TorchDispatchMode

from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.simple_forecast import relative_operator
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, normal

H = 2
AUTOCOVARIANCE = 0.9 ** torch.arange(S).double()
NAMES = ("persistence", "regression")


@pytest.mark.parametrize("name", NAMES)
def test_relative_frames_are_errors_of_unit_variance(name):
    T = relative_operator(AUTOCOVARIANCE, H, name)
    (x,) = draw((S, 4), num=1)
    decay = 1.0 if name == "persistence" else 0.9 ** torch.arange(1, S - H + 1).double()[:, None]
    error = x[H:] - decay * x[H - 1]
    y = T @ x
    assert torch.equal(y[:H], x[:H]) and torch.equal(T, T.tril())
    torch.testing.assert_close(y[H:] / T.diagonal()[H:, None], error, rtol=0, atol=0.02)  # the ridge
    C = 0.9 ** (torch.arange(S)[:, None] - torch.arange(S)).abs().double()
    torch.testing.assert_close((T @ C @ T.T).diagonal(), torch.ones(S, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", ["dydiff", "standard", "correlated_noise_constant", "flow_matching_none", "edm_none"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_a_process_on_relative_frames_is_the_process_of_relative_frames(name, row, prediction):
    """Noising, target and samplers, with the history known: those of y = T x, and the result is x."""
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    d, plain = process_of(row, prediction, frames_relative_to=name, **given), process_of(row, prediction)
    T = relative_operator(AUTOCOVARIANCE, H, name)
    x, noise, start = draw((2, S, 2, 4), num=3)
    y, t = along_frames(T, x), torch.tensor([100, 700])
    z, target, x0 = d.add_noise(x, t, noise)
    expected = plain.add_noise(y, t, noise)
    torch.testing.assert_close((z, target), (expected.z, expected.target), rtol=0, atol=1e-12)
    assert x0 is x

    def denoise(z, timesteps):  # of a network that forecasts half of each frame
        return output_for(plain, plain.model_input(z, timesteps), z / 2, int(timesteps[0]))

    run = {"timesteps": timestep_grid(d.table, 5, "log_snr"), "sampler": "ancestral", "noise": draw(x.shape, num=5)}
    begun = start_noise(d, x.shape, run["timesteps"][0], start, dtype=torch.float64)
    result = sample(d, denoise, start=begun, history=x[:, :H], **run)
    as_frames = sample(plain, denoise, start=begun, history=x[:, :H], **run)
    torch.testing.assert_close(along_frames(T, result), as_frames, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result[:, :H], x[:, :H], rtol=0, atol=1e-12)


def test_latents_are_drawn_before_they_are_made_relative():
    d = build_process(frames_relative_to="regression", frame_autocovariance=AUTOCOVARIANCE, num_history_frames=H)
    mean, logvar, noise = draw((2, S, 3, 4), num=3)
    t, counter = torch.tensor([5, 900]), NoiseCounter(3, torch.arange(2), 7, Stream.LATENT_POSTERIOR)
    drawn = normal(counter, tuple(mean.shape), dtype=torch.float64)
    x = 0.5 * (mean + (logvar / 2).exp() * drawn)
    result = d.add_noise(LatentPosterior(mean, logvar, counter, 0.5), t, noise)
    torch.testing.assert_close(tuple(result), tuple(d.add_noise(x, t, noise)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_in_half_precision_are_rounded_once(dtype):
    """As those that the kernels draw in passing, without a frame operator."""
    given = {"frames_relative_to": "regression", "frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    mean, logvar, noise = draw((2, S, 3, 4), num=3, dtype=dtype)
    posterior = LatentPosterior(mean, logvar, NoiseCounter(3, torch.arange(2), 7, Stream.LATENT_POSTERIOR), 0.5)
    drawn = [
        build_process(backend="reference", **options).add_noise(posterior, torch.tensor([5, 900]), noise).x0
        for options in (given, {})
    ]
    assert drawn[0].dtype == dtype and torch.equal(*drawn)


def test_operators_are_put_on_a_device_once():
    """A recording of a sampling run may send nothing: after the first call the product alone is left."""
    d = build_process(frames_relative_to="regression", frame_autocovariance=AUTOCOVARIANCE, num_history_frames=H)
    calls = []
    for _ in range(2):
        with Watch() as watch:
            d.absolute(d.relative(torch.zeros(1, S, 4, device="meta")))
        calls.append([name for name in watch.done if "copy" in name or "linalg" in name])
    assert calls[0].count("aten::_to_copy") == 2 and not calls[1], calls


class Watch(TorchDispatchMode):
    """Notes what torch calculates."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.done.append(func.name())
        return func(*args, **(kwargs or {}))


def test_the_inputs_deviation_is_that_of_relative_frames():
    given = {"frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H, "normalize_input": True}
    std = build_process(process="standard", prediction="v", frames_relative_to="persistence", **given).table.input_std
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)  # T C Tᵀ has ones on its diagonal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_history_frames": 0}, "of 6 frames 0 are history, which must be 1 to 5"),
        ({"num_history_frames": S}, "of 6 frames 6 are history"),
        ({"frame_autocovariance": None}, "frames_relative_to needs frame_autocovariance"),
        ({"frames_relative_to": "climatology"}, "frames_relative_to is 'climatology'"),
        ({"frame_autocovariance": [1.0] * S, "frames_relative_to": "persistence"}, "persistence makes no error by"),
    ],
)
def test_mistakes_are_one_line(options, words):
    right = {"frames_relative_to": "regression", "frame_autocovariance": AUTOCOVARIANCE, "num_history_frames": H}
    with pytest.raises(ValueError, match=words):
        build_process(**{**right, **options})


def test_windows_of_another_length_are_refused():
    x = torch.zeros(1, S + 1, 4)
    d = build_process(frames_relative_to="regression", frame_autocovariance=AUTOCOVARIANCE, num_history_frames=H)
    with pytest.raises(ValueError, match="made for 6 frames, this sequence has 7"):
        d.add_noise(x, torch.tensor([3]), x)
