"""What a logging step measures."""

import mmap
import time

import pytest
import torch

from dydiff_dist.ranks.collectives import _ranges, describe_layout
from dydiff_dist.ranks.world import World
from dydiff_dist.training.metrics import Meter, Peak, SampleCost, find_peak, resident_bytes

WORLD = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_speeds_follow_from_steps_work_and_peak():
    meter = Meter(WORLD, 8, SampleCost(flops=1e6, tokens=100), Peak(flops_per_sec=1e9, source="test"))
    start = time.perf_counter()
    time.sleep(0.05)
    for _ in range(5):
        meter.add(wait_sec=0.002)
    reading = meter.read()
    elapsed = time.perf_counter() - start
    rate = reading.scalars["speed/samples_per_sec"]
    assert 40 / elapsed <= rate <= 40 / 0.05
    assert reading.scalars["speed/tokens_per_sec"] == pytest.approx(100 * rate)
    assert reading.scalars["speed/mfu"] == pytest.approx(rate * 1e6 / 1e9)
    assert reading.scalars["speed/data_wait_fraction"] == pytest.approx(0.01 * rate / 40, rel=1e-6)
    assert "tokens/s, MFU" in reading.line and "rank" not in reading.line
    assert meter.read().scalars["speed/samples_per_sec"] == 0


def test_what_is_not_known_is_left_out():
    reading = Meter(WORLD, 8, None, None).read()
    assert not {"speed/tokens_per_sec", "speed/mfu"} & set(reading.scalars) and "MFU" not in reading.line


def test_damaged_samples_are_in_the_line_only_where_there_are_any():
    meter = Meter(WORLD, 8, None, None)
    none, some = meter.read(), meter.read(damaged_fraction=0.0125)
    assert none.scalars["data/damaged_fraction"] == 0 and "damaged" not in none.line
    assert some.scalars["data/damaged_fraction"] == 0.0125 and "damaged samples 1.25%" in some.line


def test_memory_grows_with_what_is_held():
    before, size = resident_bytes(), 64 * 2**20
    with mmap.mmap(-1, size) as held:  # pages of its own, which no allocator has kept from before
        held.write(b"1" * size)
        assert resident_bytes() - before > 0.9 * size


def test_a_cpus_peak_is_measured_without_touching_the_random_numbers():
    state = torch.get_rng_state()
    peak = find_peak(WORLD, "fp32")
    assert peak.flops_per_sec > 1e8 and "measured" in peak.source and "float32" in peak.source
    assert torch.equal(torch.get_rng_state(), state)


def test_the_layout_names_machines_and_ranks():
    assert describe_layout(WORLD).startswith("1 rank on 1 machine; ") and describe_layout(WORLD).endswith(
        "(cpu): rank 0"
    )
    assert _ranges([0, 1, 2, 7, 9, 10]) == "ranks 0-2, 7, 9-10" and _ranges([3]) == "rank 3"
