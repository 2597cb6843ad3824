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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dydiff_dist.data.augment import SampleTransform, check_against_schema
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.plan import ShufflePlan
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.shared_blocks import FilledBlock, SharedBlocks
from dydiff_dist.data.workers import end_with_parent

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 100
"""Draws for one position before a data set counts as beyond repair."""

MIN_SAMPLES_TO_JUDGE = 100
"""Samples seen before the rate of damaged ones may stop a run."""

Batch = dict[str, Any]
Flat = TypeVar("Flat", np.ndarray, Tensor)
Order = tuple[list[int], int | None]
"""The positions of a batch, and the shared block that it goes to, if any."""


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

    @property
    def damaged_fraction(self) -> float:
        """Damaged samples per sample read so far, on this rank."""
        return self.num_damaged / max(self._num_samples, 1)

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


class BatchReader:
    """Reads batches: a list of positions of the global order to arrays."""

    def __init__(self, shards: ShardSet, config: DataConfig, seed: int):
        self.shards = shards
        self.config = config
        self.seed = seed
        manifest = shards.manifest
        self.transform = SampleTransform(config, manifest.frames, manifest.shift, manifest.scale)
        self.plan = ShufflePlan(manifest, seed, config.shuffle_window_bytes)

    def shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """The float32 fields of a batch."""
        frames = (batch_size, *self.transform.frame_shape)
        shapes = {"frames": frames}
        if self.shards.schema.has_logvar:
            shapes["logvar"] = frames
        if self.shards.schema.num_actions:
            shapes["actions"] = (batch_size, self.config.num_frames, self.shards.schema.num_actions)
        return shapes

    def read(self, positions: list[int], fields: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
        """Fills every element of ``fields``, arrays of ``shapes``; returns the keys, and a message per damaged sample.

        Raises ``DamagedSampleError`` where the configuration wants the run to stop.
        """
        draws = self.transform.draw(self.seed, positions)
        keys: list[str] = []
        damage: list[str] = []
        for row, position in enumerate(positions):
            sample = self._read(position, damage)
            keys.append(sample.key)
            self._fill(sample, None if draws is None else draws[row], fields, row)
        return keys, damage

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

    def _fill(self, sample: Sample, draws: np.ndarray | None, fields: dict[str, np.ndarray], row: int) -> None:
        """Puts a sample into a row of the batch."""
        self.transform.write_frames(sample.frames, draws, fields["frames"][row])
        if "logvar" in fields:
            self.transform.write_logvar(sample.logvar, draws, fields["logvar"][row])
        if "actions" in fields:
            self.transform.write_actions(sample.actions, draws, fields["actions"][row])


@dataclass(frozen=True)
class Layout:
    """Where the float32 fields of a batch lie in one flat piece of memory: in order, each at a cache line."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def num_floats(self) -> int:
        """Elements of all fields and the gaps between them."""
        return sum(map(_in_whole_lines, self.shapes.values()))

    def split(self, flat: Flat) -> dict[str, Flat]:
        """The fields as views of an array or tensor of ``num_floats``."""
        fields, start = {}, 0
        for name, shape in self.shapes.items():
            fields[name] = flat[start : start + math.prod(shape)].reshape(shape)
            start += _in_whole_lines(shape)
        return fields


def _in_whole_lines(shape: tuple[int, ...]) -> int:
    """Elements of a field, rounded up to cache lines of 64 bytes."""
    return -(-math.prod(shape) // 16) * 16


@dataclass(frozen=True)
class ReadBatch:
    """What a worker hands over."""

    positions: list[int]
    keys: list[str]
    damage: list[str]
    """A message per damaged sample."""
    content: Tensor | FilledBlock
    """All float32 fields, see ``Layout``."""

    def open(self) -> Tensor:
        """The float32 fields, flat; to be called once, see ``FilledBlock.open``."""
        return self.content.open() if isinstance(self.content, FilledBlock) else self.content

    def pin_memory(self) -> "ReadBatch":
        """The same in pinned memory; ``DataLoader`` calls it, in a thread of its own, where there is a GPU."""
        return replace(self, content=self.open().pin_memory())


class _WorkerDataset(Dataset):
    """In a worker: reads the batch of an order, (positions, block to fill or None)."""

    def __init__(self, reader: BatchReader, layout: Layout, blocks: SharedBlocks | None):
        self.reader = reader
        self.layout = layout
        self.blocks = blocks

    def __getitem__(self, order: Order) -> ReadBatch | DamagedSampleError:
        """The batch, or the error that stops the run: raised in a worker it would reach the user as a traceback."""
        positions, block = order
        flat = np.empty(self.layout.num_floats, np.float32) if block is None else self.blocks.array(block)
        try:
            keys, damage = self.reader.read(positions, self.layout.split(flat))
        except DamagedSampleError as error:
            return error
        content = torch.from_numpy(flat) if block is None else FilledBlock(self.blocks.number, block)
        return ReadBatch(positions, keys, damage, content)


def _read_ahead(reader: BatchReader, batches: RankPositions, config: DataConfig) -> Iterator[tuple[Batch, list[str]]]:
    """Reads ``batches`` in order, in worker processes; raises the first fatal error in the caller's process."""
    workers = config.num_workers
    layout = Layout(reader.shapes(batches.micro_batch_size))
    # All that workers may hold ready, one that was just received, and the one before it.
    blocks = SharedBlocks(workers * config.prefetch_batches + 2, layout.num_floats) if workers else None
    loader = DataLoader(
        _WorkerDataset(reader, layout, blocks),
        batch_size=None,
        sampler=_Orders(batches, blocks),
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=config.prefetch_batches if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_init_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for read in _name_dead_workers(loader):
        if isinstance(read, DamagedSampleError):
            raise read
        yield {**layout.split(read.open()), "sample_index": torch.tensor(read.positions), "key": read.keys}, read.damage


def _name_dead_workers(loader: DataLoader) -> Iterator[ReadBatch | DamagedSampleError]:
    """What the loader gives; a worker that was killed is one line."""
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise  # a worker's own error, which has its traceback in the text
        raise ValueError(
            f"a process that reads data ended ({str(error).splitlines()[0]}); most often the machine ran out of "
            "memory: lower data.num_workers or data.prefetch_batches"
        ) from error


class _Orders:
    """What workers are asked for. ``DataLoader`` draws an order in this process when a worker is to begin with it, so a
    block is taken no sooner than it is needed."""

    def __init__(self, batches: Iterable[list[int]], blocks: SharedBlocks | None):
        self.batches = batches
        self.blocks = blocks

    def __iter__(self) -> Iterator[Order]:
        for positions in self.batches:
            yield positions, self.blocks.take() if self.blocks else None


def _as_it_is(read: ReadBatch) -> ReadBatch:
    """The reader makes whole batches, so there is nothing to collate."""
    return read


def _worker_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a server process that has imported everything and runs no threads: a fork of the trainer
    itself can deadlock on its threads' locks, and fresh interpreters take seconds to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _init_worker(worker: int) -> None:
    """One thread per worker; Ctrl-C is the trainer's to handle, a trainer that is killed takes its workers along."""
    end_with_parent()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_damage_rate(num_damaged: int, num_samples: int, allowed: float) -> None:
    if num_damaged > allowed * num_samples:
        raise DamagedSampleError(
            f"{num_damaged} of {num_samples} samples were damaged, more than data.max_damaged_rate {allowed}; restore "
            "the shards or raise it"
        )
