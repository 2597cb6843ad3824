"""How much of the bare encoder's speed encoding shards keeps: the whole job beside the floor, forward passes alone."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.encode import encode_shards
from dydiff_dist.autoencoders.encode_source import EncodeSource, EncodeSourceConfig
from dydiff_dist.benchmarks.turns import Seconds, in_turn, timed
from dydiff_dist.data.shard_set import ShardSet

JOB, BARE = "job", "bare encoder"


def compare_encoding(
    shards: ShardSet, autoencoder: Autoencoder, num_workers: int, batch_frames: int, num_rounds: int, scratch: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Frames per second by the clock and by processor time, of both in turn; one round before them is not counted.

    ``JOB`` is reading, encoding, writing, fsync, checksums and manifest; ``BARE`` the encoder alone, with the same
    batches in memory and the same threads.

    Args:
        shards: one split of frames; all of it is held in memory.
        autoencoder: on its device.
        num_workers: threads of both.
        batch_frames: frames per batch of both.
        num_rounds: rounds that count.
        scratch: folder on the disk that is to be written to.

    Returns:
        (by the clock, by processor time), each name -> readings by round.
    """
    batches = _batches(shards, max(1, batch_frames // shards.schema.num_frames))
    num_frames = sum(batch.shape[0] * batch.shape[1] for batch in batches)
    split = {shards.manifest.split: shards}

    def whole_job() -> Seconds:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            source = EncodeSource(split, autoencoder, EncodeSourceConfig(batch_frames=batch_frames), num_workers)
            return timed(lambda: encode_shards(source, Path(folder)), autoencoder.device)

    def encode_batches() -> None:
        with ThreadPoolExecutor(num_workers) as pool:
            for _ in pool.map(lambda batch: autoencoder.encode_raw(autoencoder.to_pixels(batch)), batches):
                pass

    contestants = {BARE: lambda: timed(encode_batches, autoencoder.device), JOB: whole_job}
    taken = in_turn(contestants, num_rounds, warm_up_rounds=1)
    by_clock = {name: [num_frames / seconds.wall for seconds in rounds] for name, rounds in taken.items()}
    by_processor = {name: [num_frames / seconds.cpu for seconds in rounds] for name, rounds in taken.items()}
    return by_clock, by_processor


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
