"""How fast shards are read: this project's stream, webdataset's plain pipeline, and the bytes alone."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import torch
import webdataset
from torch.utils.data import DataLoader

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stream import TrainStream

BATCH_SIZE = 16
READ_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Throughput:
    """Samples per second of one reader, over the repetitions."""

    reader: str
    num_workers: int
    median: float
    low: float
    """20th percentile."""
    high: float
    """80th percentile."""


def compare(shards: ShardSet, num_workers: int, num_samples: int, repetitions: int) -> list[Throughput]:
    """Times the readers in turn, ``repetitions`` times each, so that other load on the machine falls on all of them.

    The first batches, while workers start, are not counted. Every reader gives float32 or stored frames in batches.
    """
    readers: dict[str, Callable[[], Iterator]] = {
        "webdataset": lambda: _plain_webdataset(shards, num_workers),
        "dydiff_dist": lambda: _stream(shards, num_workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in [*readers, "bytes alone"]}
    for _ in range(repetitions):
        for name, make in readers.items():
            rates[name].append(_samples_per_sec(make(), num_workers, num_samples))
        rates["bytes alone"].append(_bytes_alone(shards))
    return [_summary(name, num_workers, values) for name, values in rates.items()]


def memory_over_epochs(shards: ShardSet, num_epochs: int) -> list[float]:
    """Resident memory of this process in MB after each of ``num_epochs`` epochs, read without workers."""
    batches = _stream(shards, 0)
    per_epoch = -(-len(shards) // BATCH_SIZE)
    process = psutil.Process()
    memory = []
    for _ in range(num_epochs):
        for _batch in islice(batches, per_epoch):
            pass
        memory.append(process.memory_info().rss / 1e6)
    return memory


def _stream(shards: ShardSet, num_workers: int) -> Iterator:
    config = DataConfig(
        train=shards.folder,
        num_history_frames=1,
        num_future_frames=shards.schema.num_frames - 1,
        num_workers=num_workers,
    )
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
    for _batch in islice(batches, 2 + 6 * num_workers):
        pass
    started = time.perf_counter()
    for _batch in islice(batches, num_samples // BATCH_SIZE):
        pass
    return num_samples // BATCH_SIZE * BATCH_SIZE / (time.perf_counter() - started)


def _bytes_alone(shards: ShardSet) -> float:
    """Samples per second of reading the tar files from front to back and dropping them, as cat does."""
    started = time.perf_counter()
    for entry in shards.manifest.shards:
        with open(Path(shards.store.where(entry.name)), "rb", buffering=0) as file:
            while file.read(READ_PIECE_BYTES):
                pass
    return len(shards) / (time.perf_counter() - started)


def _summary(name: str, num_workers: int, rates: list[float]) -> Throughput:
    if len(rates) < 2:
        return Throughput(name, num_workers, rates[0], rates[0], rates[0])
    fifths = statistics.quantiles(rates, n=5, method="inclusive")
    return Throughput(name, num_workers, statistics.median(rates), fifths[0], fifths[3])


def machine() -> str:
    """What the numbers were taken on."""
    return f"{psutil.cpu_count()} cores, torch {torch.__version__}, webdataset {webdataset.__version__}"
