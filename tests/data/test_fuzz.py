"""Randomly damaged shards: every loss has a name, and nothing is lost that was not damaged."""

import json
import random

import numpy as np
import pytest
from damage import DAMAGES
from numbered_source import numbered_sample

from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import index_path

NUM_TRIALS = 600


@pytest.fixture
def folder(make_shards):
    return make_shards(counts=(5, 4), num_actions=1)


def read_all(folder, num_samples=9):
    """Each sample's frames, or the message of its loss."""
    shards = ShardSet.open(folder, check="none")
    found = []
    for number in range(num_samples):
        try:
            found.append(shards.read(shards.address(number)).frames)
        except DamagedSampleError as error:
            found.append(str(error))
    return found


def test_a_sample_is_lost_exactly_if_its_bytes_changed(folder):
    path = folder / "train-000000.tar"
    whole = path.read_bytes()
    index = ShardSet.open(folder).index(0)
    ranges = [slice(start, start + size) for start, size in zip(index.offsets, index.sizes, strict=True)]
    for trial in range(NUM_TRIALS):
        rng = random.Random(trial)
        damaged = rng.choice(DAMAGES)(whole, rng)
        path.write_bytes(damaged)
        for number, found in enumerate(read_all(folder)):
            if number >= 5 or damaged[ranges[number]] == whole[ranges[number]]:
                assert np.array_equal(found, numbered_sample(number, 5).frames), (trial, number, found)
            else:
                assert isinstance(found, str), (trial, number)
                assert f"sample-{number:04d}" in found and "train-000000.tar" in found and "\n" not in found


def test_a_damaged_index_is_rebuilt_from_the_shard(folder):
    path = index_path(folder / "train-000000.tar")
    whole = path.read_bytes()
    for trial in range(60):
        rng = random.Random(trial)
        path.write_bytes(rng.choice(DAMAGES)(whole, rng))
        for number, found in enumerate(read_all(folder)):
            assert np.array_equal(found, numbered_sample(number, 5).frames), (trial, number, found)
    path.unlink()
    assert not any(isinstance(found, str) for found in read_all(folder))


def test_a_damaged_manifest_is_refused_in_one_line(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    for trial in range(200):
        rng = random.Random(trial)
        damaged = rng.choice(DAMAGES)(whole, rng)
        path.write_bytes(damaged)
        try:
            found = read_all(folder, num_samples=1)[0]
        except ValueError as error:
            assert "\n" not in str(error) and "manifest.json" in str(error), (trial, str(error))
        else:
            assert json.loads(damaged) == content and np.array_equal(found, numbered_sample(0, 5).frames), trial
