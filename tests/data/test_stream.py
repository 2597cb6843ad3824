"""The stream is exact: the same global batches under any ranks, workers and resumes."""

import logging
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_source import NumberedSource, NumberedSourceConfig, numbered_sample

from dydiff_dist.benchmarks.streaming import memory_over_epochs
from dydiff_dist.data.augment import SampleTransform, check_against_schema
from dydiff_dist.data.config import AugmentationConfig, DataConfig
from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import FrameSchema, FrameStatistics, Manifest, ShardEntry
from dydiff_dist.data.order import SampleOrder
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stream import TrainStream, rank_positions


def config(**options) -> DataConfig:
    return DataConfig(train="-", **{"num_history_frames": 2, "num_future_frames": 3, "num_workers": 0, **options})


def global_batches(shards, data_config, world_size, num_steps, start_step=0, micro_batch_size=1, global_batch_size=4):
    """(key, sample index, frames) of every sample, by global batch, ranks concatenated."""
    steps = [[] for _ in range(num_steps)]
    for rank in range(world_size):
        stream = TrainStream(
            shards,
            data_config,
            7,
            global_batch_size,
            micro_batch_size,
            rank,
            world_size,
            start_position=start_step * global_batch_size,
        )
        batches = iter(stream)
        for step in steps:
            for _ in range(global_batch_size // (micro_batch_size * world_size)):
                batch = next(batches)
                step.extend(zip(batch["key"], batch["sample_index"].tolist(), batch["frames"].unbind(), strict=True))
        batches.close()
    return steps


def assert_same_batches(found, expected):
    for found_step, expected_step in zip(found, expected, strict=True):
        assert [item[:2] for item in found_step] == [item[:2] for item in expected_step]
        for (_, _, found_frames), (_, _, expected_frames) in zip(found_step, expected_step, strict=True):
            assert torch.equal(found_frames, expected_frames)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_workers_and_resume_do_not_change_the_global_batches(make_shards, world_size, num_workers):
    shards = ShardSet.open(make_shards(counts=(5, 3, 4, 1), augmentations=("periodic_shift", "flip")))
    augmentation = AugmentationConfig(periodic_shift=True, flip=True)
    window = 2 * shards.manifest.shards[0].bytes
    expected = global_batches(shards, config(augmentation=augmentation, shuffle_window_bytes=window), 1, 9)
    found = global_batches(
        shards,
        config(augmentation=augmentation, shuffle_window_bytes=window, num_workers=num_workers),
        world_size,
        5,
        start_step=4,
    )
    assert_same_batches(found, expected[4:])


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    world_size=st.sampled_from([1, 2, 3, 8]),
    window=st.sampled_from([0, 1, 30_000, 10**9]),
    stop=st.integers(0, 12),
)
def test_every_sample_once_per_epoch_and_steps_equal_on_every_rank(counts, world_size, window, stop):
    """With uneven shards, fewer shards than ranks, and any stop position followed by another world size."""
    plan = SampleOrder(fake_manifest(counts), 3, window)
    total = sum(counts)
    positions = [*global_positions(2, 0, stop), *global_positions(world_size, stop, 12)]
    assert positions == list(range(12 * 24))
    for epoch in range(3):
        seen = [plan.address(epoch * total + within) for within in range(total)]
        assert len(set(seen)) == total
        assert all(0 <= address.item < counts[address.shard] for address in seen)


def test_another_global_batch_goes_on_behind_the_last_sample():
    """Every sample of an epoch comes once, though the batch changes in it, and with it the number of ranks."""
    taken = []
    for global_batch, world_size, num_steps in ((8, 2, 3), (4, 1, 5), (12, 3, 2)):
        ranks = [rank_positions(global_batch, 2, rank, world_size, len(taken)) for rank in range(world_size)]
        for _ in range(num_steps):
            per_rank = global_batch // world_size // 2
            taken += [position for rank in ranks for batch in islice(rank, per_rank) for position in batch]
    assert taken == list(range(8 * 3 + 4 * 5 + 12 * 2))


def global_positions(world_size, start_step, stop_step):
    """Positions of steps start..stop of global batches of 24, over all ranks, in the order of the global batches."""
    per_rank = 24 // world_size
    ranks = [rank_positions(24, 1, rank, world_size, 24 * start_step) for rank in range(world_size)]
    steps = range(start_step, stop_step)
    return [position for _ in steps for rank in ranks for batch in islice(rank, per_rank) for position in batch]


def fake_manifest(counts):
    """A manifest of shards that are nowhere: the plan needs only their sizes."""
    entries = tuple(
        ShardEntry(name=f"{n}.tar", num_samples=count, bytes=count * 5000, sha256="", index_sha256="")
        for n, count in enumerate(counts)
    )
    numbers = {"count": 1, "mean": (0.0,), "std": (1.0,), "min": (0.0,), "max": (0.0,), "frame_autocovariance": (1.0,)}
    return Manifest(
        source="fake",
        split="train",
        tool_version="0",
        frames=FrameSchema(num_frames=1, shape=(1, 1, 1), dtype="float32"),
        shift=(0.0,),
        scale=(1.0,),
        statistics=FrameStatistics(**numbers),
        num_samples=sum(counts),
        shards=entries,
    )


def test_epochs_are_shuffled_differently_and_zero_window_keeps_the_order():
    plan = SampleOrder(fake_manifest([4, 4, 4]), 0, 10**9)
    orders = [[plan.address(12 * epoch + within) for within in range(12)] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    plan = SampleOrder(fake_manifest([4, 2]), 0, 0)
    assert [(a.shard, a.item) for a in map(plan.address, range(6))] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def test_batches_hold_network_units_and_positions(make_shards):
    shards = ShardSet.open(make_shards(num_actions=3))
    batch = next(iter(TrainStream(shards, config(), 0, 6, 3)))
    manifest = shards.manifest
    assert batch["frames"].dtype == torch.float32 and batch["frames"].shape == (3, 5, 2, 6, 8)
    assert batch["sample_index"].tolist() == [0, 1, 2]
    shift, scale = (torch.tensor(values).view(1, 2, 1, 1) for values in (manifest.shift, manifest.scale))
    for key, frames, actions in zip(batch["key"], batch["frames"], batch["actions"], strict=True):
        stored = numbered_sample(int(key[-4:]), 5, 3)
        # 1e-6: one float32 rounding of (x - shift) / scale, values below 10.
        torch.testing.assert_close(frames, (torch.from_numpy(stored.frames) - shift) / scale, rtol=1e-6, atol=1e-6)
        assert torch.equal(actions[1:], torch.from_numpy(stored.actions[1:]))
        assert torch.equal(actions[0], torch.zeros(3))


def test_temporal_crops_keep_actions_aligned(make_shards):
    shards = ShardSet.open(make_shards(num_frames=9, num_actions=2, counts=(7,)))
    stream = iter(TrainStream(shards, config(), 1, 7, 7))
    starts = set()
    for _ in range(4):
        batch = next(stream)
        frames = batch["frames"] * shards.manifest.scale[0] + shards.manifest.shift[0]
        for key, frame, actions in zip(
            batch["key"], frames[:, :, 0, 0, 1].round().int(), batch["actions"], strict=True
        ):
            start = int(frame[0])
            starts.add(start)
            assert frame.tolist() == list(range(start, start + 5))
            stored = torch.from_numpy(numbered_sample(int(key[-4:]), 9, 2).actions)
            assert torch.equal(actions[1:], stored[start + 1 : start + 5])
    assert len(starts) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_future_frames": 9}, "needs 11 frames, samples of .* have 5"),
        ({"augmentation": AugmentationConfig(flip=True)}, "augmentation.flip is on, but .* does not allow it"),
        ({"crop_size": (9, 4)}, r"crop_size is \(9, 4\), frames of .* are 6x8"),
    ],
)
def test_impossible_options_are_one_line_errors(make_shards, options, message):
    shards = ShardSet.open(make_shards())
    with pytest.raises(ValueError, match=message) as caught:
        TrainStream(shards, config(**options), 0, 4, 2)
    assert "\n" not in str(caught.value)


def test_a_shift_along_w_alone_turns_rows_round_and_keeps_them(make_shards):
    shards = ShardSet.open(make_shards(counts=(6,), augmentations=("periodic_shift_w",)))
    settings = config(num_history_frames=2, num_future_frames=3, augmentation=AugmentationConfig(periodic_shift_w=True))
    transform = SampleTransform(settings, shards.schema, (0.0, 0.0), (1.0, 1.0))
    shifts = set()
    for number, draws in enumerate(transform.draw(0, list(range(6)))):
        frames = shards.read(shards.address(number)).frames
        turned = np.empty(transform.frame_shape, np.float32)
        transform.write_frames(frames, draws, turned)
        (shift,) = [s for s in range(8) if np.array_equal(turned, np.roll(frames, s, axis=3))]
        shifts.add(shift)
    assert len(shifts) > 2
    with pytest.raises(ValueError, match="keep their 8 pixels"):
        check_against_schema(settings.model_copy(update={"crop_size": (6, 4)}), shards.schema, "here")
    check_against_schema(settings.model_copy(update={"crop_size": (4, 8)}), shards.schema, "here")


def test_vectors_turn_with_flips_and_rotations(make_shards):
    """On a rigid rotation u = (-y, x), which every symmetry of the square maps to plus or minus itself."""
    y, x = np.meshgrid(np.arange(8) - 3.5, np.arange(8) - 3.5, indexing="ij")
    frames = np.stack([-y, x])[None].repeat(2, axis=0).astype(np.float32)
    schema = FrameSchema(num_frames=2, shape=(2, 8, 8), dtype="float32", vector_channels=(0, 1))
    turning = config(num_history_frames=1, num_future_frames=1, augmentation=AugmentationConfig(flip=True, rotate=True))
    transform = SampleTransform(turning, schema, (0.0, 0.0), (1.0, 1.0))
    signs = set()
    for position in range(40):
        found = np.empty_like(frames)
        transform.write_frames(frames, transform.draw(0, [position])[0], found)
        sign = np.sign(found[0, 0, 0, 0] * frames[0, 0, 0, 0])
        assert np.array_equal(found, sign * frames)
        signs.add(sign)
    assert signs == {-1.0, 1.0}


def test_plain_webdataset_reads_the_shards(make_shards):
    folder = make_shards(counts=(3, 2), num_actions=1)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"sample-{n:04d}" for n in range(5)]
    assert (samples[3]["frames.npy"] == numbered_sample(3, 5).frames).all()
    assert samples[3]["meta.json"] == {"number": 3}


def test_damage_is_named_and_stops_or_is_replaced(make_shards, caplog):
    folder = make_shards(counts=(6, 6))
    shards = ShardSet.open(folder)
    overwrite(folder / "train-000001.tar", shards.index(1).offsets[2] + 700, b"\xff" * 64)
    with pytest.raises(ValueError, match=r"sample 'sample-0008' of shard .*train-000001.tar was altered"):
        global_batches(shards, config(), 1, 3)
    skipping = config(damaged_samples="skip", max_damaged_rate=1.0)
    with caplog.at_level(logging.WARNING):
        found = global_batches(shards, skipping, 1, 3)
    keys = [key for step in found for key, _, _ in step]
    assert "sample-0008" not in keys and len(set(keys)) == 11
    assert any("sample-0008" in record.message for record in caplog.records)
    assert_same_batches(global_batches(shards, skipping, 2, 3), found)


def test_damage_in_a_worker_reaches_the_trainer_as_one_line(make_shards):
    folder = make_shards(counts=(4,))
    overwrite(folder / "train-000000.tar", 700, b"\xff" * 64)
    with pytest.raises(ValueError, match="was altered") as caught:
        global_batches(ShardSet.open(folder), config(num_workers=1), 1, 1)
    assert "\n" not in str(caught.value)


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@settings(deadline=None, max_examples=8)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    world_sizes=st.tuples(*[st.sampled_from([1, 2, 3, 4, 6, 12])] * 2),
    micro_batch_size=st.sampled_from([1, 2]),
    window=st.sampled_from([0, 1, 10**9]),
    stop=st.integers(0, 4),
)
def test_stopped_anywhere_and_gone_on_with_any_ranks_gives_the_uninterrupted_batches(
    counts, world_sizes, micro_batch_size, window, stop
):
    """Keys, positions and augmented frames of global batches of 12, read from real shards."""
    if any(12 // world_size % micro_batch_size for world_size in world_sizes):
        micro_batch_size = 1
    with tempfile.TemporaryDirectory() as folder:
        convert(NumberedSource(NumberedSourceConfig(counts=tuple(counts), augmentations=("flip",))), Path(folder))
        shards = ShardSet.open(Path(folder) / "train")
        settings = config(shuffle_window_bytes=window, augmentation=AugmentationConfig(flip=True))
        sizes = {"micro_batch_size": micro_batch_size, "global_batch_size": 12}
        expected = global_batches(shards, settings, 1, 4, micro_batch_size=1, global_batch_size=12)
        before = global_batches(shards, settings, world_sizes[0], stop, **sizes)
        after = global_batches(shards, settings, world_sizes[1], 4 - stop, start_step=stop, **sizes)
        assert_same_batches([*before, *after], expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(0, 2), (1, 2), (2, 0)])
def test_workers_may_change_at_a_stop(make_shards, workers):
    shards = ShardSet.open(make_shards(counts=(5, 3, 4, 1)))
    expected = global_batches(shards, config(), 1, 6, global_batch_size=6)
    before = global_batches(shards, config(num_workers=workers[0]), 2, 3, global_batch_size=6)
    after = global_batches(shards, config(num_workers=workers[1]), 3, 3, 3, global_batch_size=6)
    assert_same_batches([*before, *after], expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_is_flat_over_20_epochs(make_shards, num_workers):
    """An epoch is 60 samples of 77 KB: were they kept, 15 epochs would add 69 MB. 20 MB: what allocators hold back."""
    shards = ShardSet.open(make_shards(counts=(20, 20, 20), num_frames=200))
    memory = memory_over_epochs(shards, 20, num_workers)
    assert len(memory) == 20 and memory[-1] - memory[4] < 20, memory
