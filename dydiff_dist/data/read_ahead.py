"""Batches read ahead of the trainer by worker processes, handed over in shared memory that is used again."""

import math
import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dydiff_dist.data.batch_reader import BatchReader
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.shard_set import DamagedSampleError
from dydiff_dist.data.shared_blocks import FilledBlock, SharedBlocks
from dydiff_dist.data.workers import begin_process, kill_at_exit, signals_left_to_this_process

Batch = dict[str, Any]
Flat = TypeVar("Flat", np.ndarray, Tensor)
Request = tuple[list[int], int | None]
"""The positions of a batch, and the shared block that it goes to, if any."""


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
    """In a worker: reads the batch that is requested."""

    def __init__(self, reader: BatchReader, layout: Layout, blocks: SharedBlocks | None):
        self.reader = reader
        self.layout = layout
        self.blocks = blocks

    def __getitem__(self, request: Request) -> ReadBatch | DamagedSampleError:
        """The batch, or the error that stops the run: raised in a worker it would reach the user as a traceback."""
        positions, block = request
        content: Tensor | FilledBlock
        if self.blocks is None or block is None:
            flat = np.empty(self.layout.num_floats, np.float32)
            content = torch.from_numpy(flat)
        else:
            flat = self.blocks.array(block)
            content = FilledBlock(self.blocks.number, block)
        try:
            keys, damage = self.reader.read(positions, self.layout.split(flat))
        except DamagedSampleError as error:
            return error
        return ReadBatch(positions, keys, damage, content)


def read_ahead(
    reader: BatchReader, batches: Iterable[list[int]], batch_size: int, config: DataConfig
) -> Iterator[tuple[Batch, list[str]]]:
    """Reads ``batches`` of ``batch_size`` positions in order, in worker processes where there are any.

    Yields each batch (see `TrainStream`) with a message per damaged sample; raises the first fatal error in this
    process.
    """
    workers = config.num_workers
    layout = Layout(reader.shapes(batch_size))
    # All that workers may hold ready, one that was just received, and the one before it.
    blocks = SharedBlocks(workers * config.prefetch_batches + 2, layout.num_floats) if workers else None
    loader = DataLoader(
        _WorkerDataset(reader, layout, blocks),
        batch_size=None,
        sampler=_requests(batches, blocks),
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=config.prefetch_batches if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=begin_process if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    others = set(multiprocessing.active_children())
    with signals_left_to_this_process() if workers else nullcontext():
        reads = iter(loader)  # starts the workers
    kill_at_exit(set(multiprocessing.active_children()) - others)
    for read in _name_dead_workers(reads):
        if isinstance(read, DamagedSampleError):
            raise read
        yield {**layout.split(read.open()), "sample_index": torch.tensor(read.positions), "key": read.keys}, read.damage


def _name_dead_workers(reads: Iterator[ReadBatch | DamagedSampleError]) -> Iterator[ReadBatch | DamagedSampleError]:
    """What the loader gives; a worker that was killed is one line."""
    try:
        yield from reads
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise  # a worker's own error, which has its traceback in the text
        raise ValueError(
            f"a process that reads data ended ({str(error).splitlines()[0]}); most often the machine ran out of "
            "memory: lower data.num_workers or data.prefetch_batches"
        ) from error


def _requests(batches: Iterable[list[int]], blocks: SharedBlocks | None) -> Iterator[Request]:
    """What workers are asked for. ``DataLoader`` draws a request in this process when a worker is to begin with it, so
    a block is taken no sooner than it is needed."""
    for positions in batches:
        yield positions, blocks.take() if blocks else None


def _unchanged(read: Any) -> Any:
    """The reader makes whole batches, so there is nothing to collate."""
    return read


def _worker_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a server process that has imported everything and runs no threads: a fork of the trainer
    itself can deadlock on its threads' locks, and fresh interpreters take seconds to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context
