"""Batches for training, exact under any number of ranks and workers and after any resume.

Training reads an endless global order (``plan.py``). Global batch k holds positions k·G … (k + 1)·G − 1, where G is the
global batch size; rank r of W takes the r-th of W equal parts of it, in micro-batches. So the only state is the
number of global batches done, every rank makes equal steps, and the last, partial batch of an epoch is filled from
the next epoch.

    positions (sampler) -> samples (worker processes: read, check, cut, augment) -> micro-batches
"""

import itertools
import logging
import math
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dydiff_dist.data.augment import SampleTransform, check_against_schema
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.plan import ShufflePlan
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import Sample

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 100
"""Draws for one position before a data set counts as beyond repair."""

MIN_SAMPLES_TO_JUDGE = 100
"""Samples seen before the rate of damaged ones may stop a run."""

Batch = dict[str, Any]
Loaded = tuple[Batch, list[str]] | DamagedSampleError
"""What a worker hands over: a batch and a message per damaged sample, or the error that stops the run."""


class TrainStream:
    """The endless stream of one rank's micro-batches.

    A batch is a dict (agreement 1): ``frames`` (B, S, C, H, W) float32 in network units, ``logvar`` like it and
    ``actions`` (B, S, A) float32 where the schema has them, ``sample_index`` (B,) int64, the position in the global
    order, and ``key`` list[str].
    """

    def __init__(
        self,
        shards: ShardSet,
        config: DataConfig,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ):
        """``start_step`` is the number of global batches already trained on. Raises ``ValueError`` on sizes that do not
        divide, and on options that the shards do not allow."""
        if global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"global batch {global_batch_size} must be a multiple of micro batch {micro_batch_size} x {world_size} "
                f"ranks = {micro_batch_size * world_size}; change one of them"
            )
        check_against_schema(config, shards.schema, str(shards.folder))
        self.config = config
        self.micro_batches_per_step = global_batch_size // (micro_batch_size * world_size)
        self.num_damaged = 0
        """Damaged samples this rank met so far."""
        self._num_samples = 0
        self._positions = RankPositions(global_batch_size, micro_batch_size, rank, world_size, start_step)
        self._reader = BatchReader(shards, config, seed)

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from ``start_step`` on, without end."""
        loaded = _read_ahead(self._reader, self._positions, self.config)
        for batch, damage in loaded:
            self._count(len(batch["key"]), damage)
            yield batch

    def _count(self, num_samples: int, damage: list[str]) -> None:
        """Names and counts damaged samples; stops the run above the allowed rate."""
        self._num_samples += num_samples
        self.num_damaged += len(damage)
        for message in damage:
            logger.warning("skipped: %s (%d of %d samples damaged)", message, self.num_damaged, self._num_samples)
        if self._num_samples >= MIN_SAMPLES_TO_JUDGE:
            _check_damage_rate(self.num_damaged, self._num_samples, self.config.max_damaged_rate)


class RankPositions:
    """The positions of each micro-batch of one rank, endless."""

    def __init__(self, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int, start_step: int):
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[int]]:
        per_rank = self.global_batch_size // self.world_size
        for step in itertools.count(self.start_step):
            first = step * self.global_batch_size + self.rank * per_rank
            for start in range(first, first + per_rank, self.micro_batch_size):
                yield list(range(start, start + self.micro_batch_size))


class BatchReader(Dataset):
    """Reads one batch: a list of positions of the global order to tensors."""

    def __init__(self, shards: ShardSet, config: DataConfig, seed: int):
        self.shards = shards
        self.config = config
        self.seed = seed
        manifest = shards.manifest
        self.transform = SampleTransform(config, manifest.frames, manifest.shift, manifest.scale)
        self.plan = ShufflePlan(manifest, seed, config.shuffle_window_bytes)

    def __getitem__(self, positions: list[int]) -> Loaded:
        """The batch, or the error that stops the run: raised in a worker it would reach the user as a traceback."""
        batch = self._empty_batch(positions)
        draws = self.transform.draw(self.seed, positions)
        damage: list[str] = []
        for row, position in enumerate(positions):
            try:
                sample = self._read(position, damage)
            except DamagedSampleError as error:
                return error
            batch["key"].append(sample.key)
            self._fill(sample, None if draws is None else draws[row], batch, row)
        return batch, damage

    def _read(self, position: int, damage: list[str]) -> Sample:
        """The sample at a position; for a damaged one, named in ``damage``, a draw from all samples."""
        address = self.plan.address(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self.shards.read(address)
            except DamagedSampleError as error:
                if self.config.damaged_samples == "error":
                    raise
                damage.append(str(error))
                address = self.shards.address(self.plan.replacement(position, attempt))
        raise DamagedSampleError(f"{MAX_REPLACEMENTS} samples in a row are damaged; the last: {damage[-1]}")

    def _fill(self, sample: Sample, draws: np.ndarray | None, batch: Batch, row: int) -> None:
        """Puts a sample into a row of the batch."""
        self.transform.write_frames(sample.frames, draws, batch["frames"][row].numpy())
        if "logvar" in batch:
            self.transform.write_logvar(sample.logvar, draws, batch["logvar"][row].numpy())
        if "actions" in batch:
            self.transform.write_actions(sample.actions, draws, batch["actions"][row].numpy())

    def _empty_batch(self, positions: list[int]) -> Batch:
        batch: Batch = {
            "frames": _zeros(len(positions), *self.transform.frame_shape),
            "sample_index": torch.tensor(positions),
            "key": [],
        }
        if self.shards.schema.has_logvar:
            batch["logvar"] = _zeros(len(positions), *self.transform.frame_shape)
        if self.shards.schema.num_actions:
            batch["actions"] = _zeros(len(positions), self.config.num_frames, self.shards.schema.num_actions)
        return batch


def _zeros(*shape: int) -> torch.Tensor:
    """A float32 tensor of zeros. In a worker it lies in shared memory from the start, which saves the copy there."""
    if get_worker_info() is None:
        return torch.zeros(shape)
    num_elements = math.prod(shape)
    shared = torch.UntypedStorage._new_shared(4 * num_elements, device="cpu")
    return torch.empty(0).set_(shared, 0, shape)


def _read_ahead(
    reader: BatchReader, batches: Iterable[list[int]], config: DataConfig
) -> Iterator[tuple[Batch, list[str]]]:
    """Reads ``batches`` in order, in worker processes; raises the first fatal error in the caller's process."""
    workers = config.num_workers
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=config.prefetch_batches if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_init_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for loaded in loader:
        if isinstance(loaded, DamagedSampleError):
            raise loaded
        yield loaded


def _as_it_is(loaded: Loaded) -> Loaded:
    """The reader makes whole batches, so there is nothing to collate."""
    return loaded


def _worker_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a server process that has imported everything and runs no threads: a fork of the trainer
    itself can deadlock on its threads' locks, and fresh interpreters take seconds to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _init_worker(worker: int) -> None:
    """One thread per worker, and Ctrl-C is the trainer's to handle."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_damage_rate(num_damaged: int, num_samples: int, allowed: float) -> None:
    if num_damaged > allowed * num_samples:
        raise DamagedSampleError(
            f"{num_damaged} of {num_samples} samples were damaged, more than data.max_damaged_rate {allowed}; restore "
            "the shards or raise it"
        )
