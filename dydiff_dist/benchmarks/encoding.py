"""How much of the bare encoder's speed encoding shards keeps: the whole job beside the forward passes alone."""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.encode import encode_shards
from dydiff_dist.autoencoders.encode_source import EncodeSource, EncodeSourceConfig
from dydiff_dist.data.shard_set import ShardSet


@dataclass(frozen=True)
class EncodingThroughput:
    """Frames per second, medians over the rounds; the ratio is the median of the rounds' ratios."""

    job: float
    """Reading, encoding, writing, fsync, checksums and manifest."""
    bare: float
    """The encoder alone, the same batches in memory, the same threads."""
    ratio: float
    cpu_ratio: float
    """The same of processor time, which other programs disturb less: what the job adds where no core is idle."""
    low: float
    """Smallest ratio of a round."""
    high: float
    """Largest ratio of a round."""


def compare(
    shards: ShardSet, autoencoder: Autoencoder, num_workers: int, batch_frames: int, num_rounds: int, scratch: Path
) -> EncodingThroughput:
    """Times both in turn, so that other load on the machine falls on both alike; the first round is not counted.

    Args:
        shards: one split of frames; all of it is held in memory.
        autoencoder: on its device.
        num_workers: threads of both.
        batch_frames: frames per batch of both.
        num_rounds: rounds that count.
        scratch: folder on the disk that is to be written to.
    """
    split = shards.manifest.split
    batches = _batches(shards, max(1, batch_frames // shards.schema.num_frames))
    num_frames = sum(batch.shape[0] * batch.shape[1] for batch in batches)
    jobs: list[tuple[float, float]] = []
    bares: list[tuple[float, float]] = []
    for _ in range(num_rounds + 1):
        bares.append(_timed(lambda: _encode_alone(batches, autoencoder, num_workers)))
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            config = EncodeSourceConfig(batch_frames=batch_frames)
            source = EncodeSource({split: shards}, autoencoder, config, num_workers)
            jobs.append(_timed(partial(encode_shards, source, Path(folder))))
    pairs = list(zip(jobs, bares, strict=True))[1:]
    ratios, cpu_ratios = ([bare[clock] / job[clock] for job, bare in pairs] for clock in (0, 1))
    return EncodingThroughput(
        job=num_frames / statistics.median(job[0] for job, _ in pairs),
        bare=num_frames / statistics.median(bare[0] for _, bare in pairs),
        ratio=statistics.median(ratios),
        cpu_ratio=statistics.median(cpu_ratios),
        low=min(ratios),
        high=max(ratios),
    )


def _batches(shards: ShardSet, samples_per_batch: int) -> list[torch.Tensor]:
    """All frames in the batches that the job makes: of one shard each."""
    batches = []
    for number, entry in enumerate(shards.manifest.shards):
        first = shards.first_sample(number)
        samples = [shards.read(shards.address(first + item)).frames for item in range(entry.num_samples)]
        for start in range(0, len(samples), samples_per_batch):
            stacked = np.stack(samples[start : start + samples_per_batch])
            batches.append(torch.from_numpy(stacked.astype(np.float32)))
    return batches


def _encode_alone(batches: list[torch.Tensor], autoencoder: Autoencoder, num_workers: int) -> None:
    with ThreadPoolExecutor(num_workers) as pool:
        for _ in pool.map(lambda batch: autoencoder.encode_raw(autoencoder.to_pixels(batch)), batches):
            pass
    if autoencoder.device.type == "cuda":
        torch.cuda.synchronize(autoencoder.device)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, processor seconds of this process)."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - started_cpu
