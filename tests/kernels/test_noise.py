"""Counter-based noise: the published Philox vectors, equal normals on every backend, and their statistics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, counter, in_memory

from dydiff_kernels import NoiseCounter, Stream, normal, uniform
from dydiff_kernels.noise.reference import philox_words

# Known answers of Philox4x32-10 (Salmon et al., SC 2011): counter words, key words, output words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("words", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(words, key, expected, monkeypatch):
    c0, c1, c2, c3 = words
    index = c2 | (c3 & 0xFFFFFF) << 32
    named = NoiseCounter(key[0] | key[1] << 32, torch.tensor([index]), c1, c3 >> 24)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda n, **kwargs: arange(n, **kwargs) + c0)  # block numbers start at c0
    assert philox_words(named, 1)[0, 0].tolist() == list(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_normal_matches_float64_truth(backend, shape):
    truth = normal(counter(shape[0]), shape, dtype=torch.float64)
    drawn = normal(counter(shape[0]), shape, backend=backend)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.double(), truth, rtol=0, atol=1e-6)  # what the method promises across backends


def test_normal_is_accurate_over_many_draws(backend):
    """Rare words too: radii from 1e-4 to 6, which a million draws of each sample reach."""
    num = 1_000_000 if backend == "cpp" else 20_000
    named = NoiseCounter(7, torch.tensor([0, 10**9]), 0, Stream.SAMPLER_START)
    truth = normal(named, (2, num), dtype=torch.float64)
    assert (normal(named, (2, num), backend=backend).double() - truth).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_normal_rounds_to_storage(backend, dtype):
    expected = normal(counter(2), (2, 4, 33), backend=backend).to(dtype)
    actual = normal(counter(2), (2, 4, 33), dtype=dtype, backend=backend)
    if backend == "triton":  # its interpreter truncates to bfloat16 where the hardware rounds
        assert_matches(actual, expected)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("change", ["seed_low", "seed_high", "sample_low", "sample_high", "step", "stream"])
def test_every_part_of_the_counter_counts(backend, change):
    base = dict(seed=5, sample_index=torch.tensor([9]), step=2, stream=1)
    changed = {
        "seed_low": {"seed": 6},
        "seed_high": {"seed": 5 + 2**32},
        "sample_low": {"sample_index": torch.tensor([8])},
        "sample_high": {"sample_index": torch.tensor([9 + 2**32])},
        "step": {"step": 3},
        "stream": {"stream": 2},
    }[change]
    one = normal(NoiseCounter(**base), (1, 512), backend=backend)
    other = normal(NoiseCounter(**(base | changed)), (1, 512), backend=backend)
    assert abs(torch.corrcoef(torch.cat((one, other)))[0, 1]) < 0.2  # 4.5 standard deviations of 1/√512


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("seed", [12, 2**63 + 2**40 + 5, 2**64 - 1])
def test_a_name_in_memory_names_the_same_noise(backend, seed, aligned):
    """As kernels read it that are recorded."""
    numbers = NoiseCounter(seed, torch.tensor([3, 2**40]), 2**32 - 1, Stream.SAMPLER_ETA)
    named = in_memory(numbers)
    shape = (2, 3, 8) if aligned else (2, 3, 7)
    for which in (backend, "reference"):
        assert torch.equal(normal(named, shape, backend=which), normal(numbers, shape, backend=which))
    assert torch.equal(uniform(named, 5), uniform(numbers, 5))
    assert torch.equal(named.words(), numbers.words()) and named.to("meta").seed.device.type == "meta"


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**56 - 1),
    step=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 255),
)
def test_any_counter_gives_the_same_noise_in_a_batch_and_alone(seed, index, step, stream):
    alone = normal(NoiseCounter(seed, torch.tensor([index]), step, stream), (1, 37))
    batch = normal(NoiseCounter(seed, torch.tensor([0, index, 1]), step, stream), (3, 37))
    truth = normal(NoiseCounter(seed, torch.tensor([index]), step, stream), (1, 37), backend="reference")
    assert torch.equal(batch[1:2], alone)
    assert (alone - truth).abs().max() < 1e-6


def test_moments_and_tails():
    """A fixed draw of n = 4 million; bounds are 5 standard errors of each statistic."""
    x = normal(NoiseCounter(1, torch.arange(4), 0, Stream.DIFFUSION), (4, 1_000_000), backend="reference").double()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(x.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)
    for bound in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(bound / math.sqrt(2))
        assert abs((x.abs() > bound).double().mean() - p) < 5 * math.sqrt(p / n)


def test_no_correlation_across_samples_steps_and_elements():
    """Also between cosine and sine of a pair, and of squares, which a shared radius would correlate."""
    n = 250_000
    draws = {
        "base": NoiseCounter(3, torch.tensor([0]), 0, 0),
        "next sample": NoiseCounter(3, torch.tensor([1]), 0, 0),
        "next step": NoiseCounter(3, torch.tensor([0]), 1, 0),
        "next stream": NoiseCounter(3, torch.tensor([0]), 0, 1),
        "next seed": NoiseCounter(4, torch.tensor([0]), 0, 0),
    }
    rows = torch.cat([normal(c, (1, n)) for c in draws.values()]).double()
    lagged = torch.stack([rows[0].roll(lag) for lag in (1, 2, 3, 4)])
    for values in (torch.cat((rows, lagged)), torch.cat((rows, lagged)).square()):
        off_diagonal = torch.corrcoef(values) - torch.eye(len(values), dtype=torch.float64)
        assert off_diagonal.abs().max() < 5 / math.sqrt(n)


def test_uniform_is_in_the_half_open_interval_and_even():
    u = uniform(NoiseCounter(2, torch.arange(1000), 0, Stream.TIMESTEP), 101)
    assert u.shape == (1000, 101) and u.dtype == torch.float32
    assert u.min() > 0 and u.max() <= 1
    assert abs(u.double().mean() - 0.5) < 5 / math.sqrt(12 * u.numel())
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - u.numel() / 20).square() / (u.numel() / 20)).sum() < 50  # chi-square, 19 degrees, p below 2e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**64), "expected an integer with 0 <= seed < 2\\*\\*64"),
        (dict(step=2**32), "step is 4294967296"),
        (dict(stream=256), "stream is 256"),
        (dict(sample_index=torch.tensor([1, -4])), "holds -4"),
        (dict(sample_index=torch.tensor([2**56])), "expected 0 <= index < 2\\*\\*56"),
        (dict(sample_index=torch.tensor([1.0])), "sample_index is torch.float32 \\(1,\\)"),
        (dict(sample_index=3), "sample_index is int"),
        (dict(seed=torch.tensor(1)), "step is int; expected torch.int64 \\(\\) on cpu"),
        (
            dict(seed=torch.tensor(1), step=torch.tensor(1.0)),
            "step is torch.float32 \\(\\) on cpu; expected torch.int64",
        ),
        (
            dict(seed=torch.tensor([1]), step=torch.tensor(1)),
            "seed is torch.int64 \\(1,\\) on cpu; expected torch.int64",
        ),
        (
            dict(seed=torch.tensor(1, device="meta"), step=torch.tensor(1)),
            "seed is torch.int64 \\(\\) on meta; expected",
        ),
    ],
)
def test_counter_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseCounter(**(dict(seed=0, sample_index=torch.tensor([0]), step=0, stream=0) | arguments))


def test_draw_errors():
    with pytest.raises(ValueError, match=r"names 2 samples; expected a shape .* got \(3, 4\)"):
        normal(counter(2), (3, 4))
    with pytest.raises(ValueError, match=r"dtype is torch.int32"):
        normal(counter(2), (2, 4), dtype=torch.int32)
    with pytest.raises(ValueError, match="num is -1"):
        uniform(counter(2), -1)
