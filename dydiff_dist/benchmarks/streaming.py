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
from dydiff_kernels.benchmark.measure import machine

BATCH_SIZE = 16
READ_PIECE_BYTES = 2**20


CAT = "cat of the tars"
"""The floor: the bytes alone, front to back, dropped."""
PLAIN_WEBDATASET = "webdataset"


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
    of_webdataset: float
    """Median over repetitions of the rate over plain webdataset's in the same repetition."""


def compare(shards: ShardSet, num_workers: int, num_samples: int, repetitions: int) -> list[Throughput]:
    """Times the readers in turn, ``repetitions`` times each, so that other load on the machine falls on all of them.

    The first batches, while workers start, are not counted. Every reader gives float32 or stored frames in batches.
    """
    readers: dict[str, Callable[[], Iterator]] = {
        PLAIN_WEBDATASET: lambda: _plain_webdataset(shards, num_workers),
        "dydiff_dist": lambda: _stream(shards, num_workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in [*readers, CAT]}
    for _ in range(repetitions):
        for name, make in readers.items():
            rates[name].append(_samples_per_sec(make(), num_workers, num_samples))
        rates[CAT].append(_bytes_alone(shards))
    return [_summary(name, num_workers, values, rates[PLAIN_WEBDATASET]) for name, values in rates.items()]


def memory_over_epochs(shards: ShardSet, num_epochs: int, num_workers: int = 0) -> list[float]:
    """Resident memory in MB, of this process and its workers together, after each of ``num_epochs`` epochs."""
    batches = _stream(shards, num_workers)
    per_epoch = -(-len(shards) // BATCH_SIZE)
    process = psutil.Process()
    memory = []
    for _ in range(num_epochs):
        for _batch in islice(batches, per_epoch):
            pass
        readers = [process, *process.children(recursive=True)]
        memory.append(sum(reader.memory_info().rss for reader in readers) / 1e6)
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


def _summary(name: str, num_workers: int, rates: list[float], reference: list[float]) -> Throughput:
    # A ratio within each repetition: other load on the machine falls on both readers alike.
    ratio = statistics.median(rate / other for rate, other in zip(rates, reference, strict=True))
    fifths = statistics.quantiles(rates, n=5, method="inclusive") if len(rates) > 1 else [rates[0]] * 4
    return Throughput(name, num_workers, statistics.median(rates), fifths[0], fifths[3], ratio)


def csv_rows(shards: ShardSet, results: list[Throughput]) -> list[dict[str, str | float | int]]:
    """A row per result, with what it was taken on."""
    sample_bytes = sum(entry.bytes for entry in shards.manifest.shards) / len(shards)
    frames = shards.schema
    facts = {
        "source": shards.manifest.source,
        "sample": f"{frames.num_frames}x{'x'.join(map(str, frames.shape))} {frames.dtype} {frames.encoding}",
        "sample_kb": round(sample_bytes / 1e3, 1),
        "num_samples": len(shards),
    }
    return [
        {
            **facts,
            "reader": result.reader,
            "workers": result.num_workers,
            "samples_per_sec_median": round(result.median, 1),
            "samples_per_sec_p20": round(result.low, 1),
            "samples_per_sec_p80": round(result.high, 1),
            "mb_per_sec": round(result.median * sample_bytes / 1e6, 1),
            "of_webdataset": round(result.of_webdataset, 3),
            **machine(torch.device("cpu")),
            "webdataset": webdataset.__version__,
        }
        for result in results
    ]
