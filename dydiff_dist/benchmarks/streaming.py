"""How fast shards are read: this project's stream, webdataset's plain pipeline, and the floor, the bytes alone."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psutil
import torch
import webdataset
from torch.utils.data import DataLoader

from dydiff_dist.benchmarks.turns import in_turn, ratios, spread
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stream import TrainStream
from dydiff_kernels.benchmark.measure import machine

BATCH_SIZE = 16
PLAIN_WEBDATASET = "webdataset"
Row = dict[str, str | float | int]


def compare_readers(shards: ShardSet, num_workers: int, num_samples: int, repetitions: int) -> list[Row]:
    """Times the readers in turn. The first batches, while workers start, are not counted.

    Every reader hands over float32 or stored frames in batches of 16.

    Args:
        shards: of frames stored as npy.
        num_workers: processes that read; 0 reads in this one.
        num_samples: read by each reader in a repetition.
        repetitions: of each reader.

    Returns:
        A row per reader: samples per second (median, 20th and 80th percentile), MB per second, the median ratio to
        webdataset's rate in the same repetition, and what it was taken on.

    Raises:
        ValueError: frames that are stored otherwise.
    """
    if shards.schema.encoding != "npy":
        raise ValueError(f"{shards.folder} holds {shards.schema.encoding}; the comparison reads npy shards")
    readers: dict[str, Callable[[], float]] = {
        PLAIN_WEBDATASET: lambda: _samples_per_sec(_plain_webdataset(shards, num_workers), num_workers, num_samples),
        "dydiff_dist": lambda: _samples_per_sec(_stream(shards, num_workers), num_workers, num_samples),
        "cat of the tars": lambda: _bytes_alone(shards),
    }
    rates = in_turn(readers, repetitions)
    return [_row(shards, name, num_workers, rates[name], rates[PLAIN_WEBDATASET]) for name in readers]


def _row(shards: ShardSet, reader: str, num_workers: int, rates: list[float], reference: list[float]) -> Row:
    sample_bytes = sum(entry.bytes for entry in shards.manifest.shards) / len(shards)
    frames, rate = shards.schema, spread(rates)
    return {
        "source": shards.manifest.source,
        "sample": f"{frames.num_frames}x{'x'.join(map(str, frames.shape))} {frames.dtype} {frames.encoding}",
        "sample_kb": round(sample_bytes / 1e3, 1),
        "num_samples": len(shards),
        "reader": reader,
        "workers": num_workers,
        **{f"samples_per_sec_{name}": round(value, 1) for name, value in rate._asdict().items()},
        "mb_per_sec": round(rate.median * sample_bytes / 1e6, 1),
        "of_webdataset": round(spread(ratios(rates, reference)).median, 3),
        **machine(torch.device("cpu")),
        "webdataset": webdataset.__version__,
    }


def memory_over_epochs(shards: ShardSet, num_epochs: int, num_workers: int = 0) -> list[float]:
    """Resident memory in MB, of this process and its ``num_workers`` workers together, after each of ``num_epochs``
    epochs of reading ``shards``."""
    batches = _stream(shards, num_workers)
    process = psutil.Process()
    memory = []
    for _ in range(num_epochs):
        _take(batches, -(-len(shards) // BATCH_SIZE))
        readers = [process, *process.children(recursive=True)]
        memory.append(sum(reader.memory_info().rss for reader in readers) / 1e6)
    return memory


def _stream(shards: ShardSet, num_workers: int) -> Iterator:
    num_future, folder = shards.schema.num_frames - 1, str(shards.folder)
    config = DataConfig(train=folder, num_history_frames=1, num_future_frames=num_future, num_workers=num_workers)
    return iter(TrainStream(shards, config, 0, BATCH_SIZE, BATCH_SIZE))


def _plain_webdataset(shards: ShardSet, num_workers: int) -> Iterator:
    urls = [shards.store.where(entry.name) for entry in shards.manifest.shards]
    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), workersplitter=webdataset.split_by_worker)
        .shuffle(100)
        .decode()
        .to_tuple("frames.npy")
        .batched(BATCH_SIZE, partial=False)
        .repeat()
    )
    prefetch = DataConfig.model_fields["prefetch_batches"].default if num_workers else None
    return iter(DataLoader(pipeline, batch_size=None, num_workers=num_workers, prefetch_factor=prefetch))


def _samples_per_sec(batches: Iterator, num_workers: int, num_samples: int) -> float:
    """Rate after the batches that were read ahead while the workers started."""
    _take(batches, 2 + 6 * num_workers)
    started = time.perf_counter()
    _take(batches, num_samples // BATCH_SIZE)
    return num_samples // BATCH_SIZE * BATCH_SIZE / (time.perf_counter() - started)


def _take(batches: Iterator, count: int) -> None:
    for _batch in islice(batches, count):
        pass


def _bytes_alone(shards: ShardSet) -> float:
    """Samples per second of reading the tar files from front to back and dropping them, as cat does."""
    started = time.perf_counter()
    for entry in shards.manifest.shards:
        with open(Path(shards.store.where(entry.name)), "rb", buffering=0) as file:
            while file.read(2**20):
                pass
    return len(shards) / (time.perf_counter() - started)
