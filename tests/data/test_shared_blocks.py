"""Shared memory that is used again: never while anything refers to it, and gone with the processes that map it."""

import multiprocessing
import os
import random
import signal
import threading
from itertools import islice

import pytest
import torch
from numbered_source import numbered_sample

from dydiff_dist.data import read_ahead as read_ahead_module
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.read_ahead import Layout, ReadBatch
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shared_blocks import FilledBlock, SharedBlocks
from dydiff_dist.data.stream import TrainStream

CONTEXTS = ["fork", "forkserver", "spawn"]


def context(method: str):
    """The stream's own forkserver has imported everything; there is one per process, so whoever starts it decides."""
    return read_ahead_module._worker_context() if method == "forkserver" else multiprocessing.get_context(method)


def config(**options) -> DataConfig:
    return DataConfig(train="-", **{"num_history_frames": 2, "num_future_frames": 3, "num_workers": 2, **options})


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[3:4],
        lambda tensor: tensor.view(2, 4).unbind()[1],
        lambda tensor: tensor.numpy()[2:],
        lambda tensor: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(tensor)),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: (tensor * tensor.new_ones(1).requires_grad_()).grad_fn,
    ],
    ids=["itself", "a row", "a part", "numpy", "dlpack", "memoryview", "its storage", "a graph"],
)
def test_a_block_is_free_once_the_last_thing_over_it_is_gone(keep):
    blocks = SharedBlocks(1, 8)
    assert blocks.take() == 0 and blocks.take() is None
    kept = keep(blocks.open(0))
    assert blocks.take() is None
    del kept
    assert blocks.take() == 0 and blocks.take() is None


def test_a_block_may_be_dropped_by_any_thread():
    blocks = SharedBlocks(4, 8)
    taken = [blocks.take() for _ in range(4)]
    held = [blocks.open(block) for block in taken]
    threads = [threading.Thread(target=held.pop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(blocks.take() for _ in range(4)) == sorted(taken)


def fill(blocks: SharedBlocks, block: int) -> None:
    blocks.array(block)[:] = 7


@pytest.mark.slow  # each way to start a process imports torch once
@pytest.mark.parametrize("method", CONTEXTS)
def test_what_another_process_writes_is_seen_here(method):
    blocks = SharedBlocks(2, 8)
    block = blocks.take()
    process = context(method).Process(target=fill, args=(blocks, block))
    process.start()
    process.join()
    assert torch.equal(FilledBlock(blocks.number, block).open(), torch.full((8,), 7.0))
    assert torch.equal(blocks.open(1 - block)[:0], torch.zeros(0))  # the other one is nobody's, but can be opened


def test_pinning_copies_and_gives_the_block_back(monkeypatch):
    """Without a GPU nothing can be pinned; a copy stands for it, as the real one is."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    blocks = SharedBlocks(1, 8)
    fill(blocks, blocks.take())
    pinned = ReadBatch([0], ["a"], [], FilledBlock(blocks.number, 0)).pin_memory()
    fill_again = blocks.take()
    assert fill_again == 0
    blocks.array(0)[:] = 0
    assert torch.equal(pinned.open(), torch.full((8,), 7.0))


def test_the_fields_of_a_batch_share_memory_without_touching():
    layout = Layout({"frames": (2, 3, 5), "actions": (2, 3, 1)})
    fields = layout.split(torch.zeros(layout.num_floats))
    fields["frames"].fill_(1)
    assert not fields["actions"].any() and fields["actions"].fill_(2).shape == (2, 3, 1) and fields["frames"].max() == 1
    assert (fields["actions"].data_ptr() - fields["frames"].data_ptr()) % 64 == 0


def test_too_little_shared_memory_is_one_line(monkeypatch):
    def no_room(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    with pytest.raises(ValueError, match=r"no room for 0 MB of shared memory.*lower data.prefetch_batches") as caught:
        SharedBlocks(2, 8)
    assert "\n" not in str(caught.value)


def assert_as_written(kept):
    """Every kept row still holds the frames that its key names."""
    for key, frames in kept:
        stored = torch.from_numpy(numbered_sample(int(key[-4:]), 5).frames)
        assert torch.equal(frames[:, :, 0, 0].round(), stored[:, :, 0, 0]), key
        torch.testing.assert_close(frames, stored, rtol=1e-6, atol=1e-6)  # one rounding each of - shift, / scale


def test_whatever_the_consumer_keeps_is_never_written_over(make_shards):
    """It keeps rows, whole batches or nothing, for a while or for good, so that blocks run out and come back."""
    shards = ShardSet.open(make_shards(counts=(5, 3, 4))).in_units((0.0, 0.0), (1.0, 1.0))
    rng = random.Random(0)
    kept = []
    batches = iter(TrainStream(shards, config(prefetch_batches=2), 0, 3, 3))
    for number, batch in enumerate(islice(batches, 300)):
        rows = list(zip(batch["key"], batch["frames"], strict=True))
        kept += rng.choice([[], rows, rows[:1], rows[1:]])
        if number % 10 == 9:
            assert_as_written(kept)
        if number % 40 == 39:
            kept = rng.sample(kept, len(kept) // 4)
    batches.close()
    assert_as_written(kept)


def test_a_consumer_that_keeps_nothing_uses_the_same_memory_again(make_shards):
    stream = iter(TrainStream(ShardSet.open(make_shards()), config(prefetch_batches=2), 0, 3, 3))
    places = {batch["frames"].data_ptr() for batch in islice(stream, 60)}
    assert len(places) <= 2 * 2 + 2


@pytest.mark.slow
@pytest.mark.parametrize("method", CONTEXTS)
def test_workers_may_be_started_in_any_way(make_shards, monkeypatch, method):
    shards = ShardSet.open(make_shards(num_actions=2))
    expected = list(islice(TrainStream(shards, config(num_workers=0), 0, 3, 3), 12))
    chosen = context(method)
    monkeypatch.setattr(read_ahead_module, "_worker_context", lambda: chosen)
    found = list(islice(TrainStream(shards, config(), 0, 3, 3), 12))
    for one, other in zip(found, expected, strict=True):
        assert one["key"] == other["key"]
        assert all(torch.equal(one[name], other[name]) for name in ("frames", "actions", "sample_index"))


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_what_came_before_stays(make_shards):
    shards = ShardSet.open(make_shards()).in_units((0.0, 0.0), (1.0, 1.0))
    before = set(multiprocessing.active_children())
    stream = TrainStream(shards, config(), 0, 3, 3)
    batches = iter(stream)
    kept = [row for batch in islice(batches, 2) for row in zip(batch["key"], batch["frames"], strict=True)]
    for process in set(multiprocessing.active_children()) - before:
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"a process that reads data ended \(.*lower data.num_workers") as caught:
        for _ in islice(batches, 100):
            pass
    assert "\n" not in str(caught.value)
    assert_as_written(kept)
    again = next(iter(stream))  # a new start makes new blocks and workers
    assert_as_written(zip(again["key"], again["frames"], strict=True))


def test_an_error_inside_a_worker_keeps_its_traceback():
    def loader():
        yield 1
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback: here")

    with pytest.raises(RuntimeError, match="Original Traceback: here"):
        list(read_ahead_module._name_dead_workers(loader()))
