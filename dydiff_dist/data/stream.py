"""Batches for training and evaluation, exact under any number of ranks and workers and after any resume.

Training reads an endless global order (``plan.py``). Global batch k holds positions k·G … (k + 1)·G − 1, where G is the
global batch size; rank r of W takes the r-th of W equal parts of it, in micro-batches. So the only state is the
number of global batches done, every rank makes equal steps, and the last, partial batch of an epoch is filled from
the next epoch.

    positions (sampler) -> samples (worker processes: read, check, cut, augment) -> micro-batches
"""

import itertools
import logging
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dydiff_dist.data.augment import SampleTransform, check_against_schema
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.plan import ShufflePlan
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 100
"""Draws for one position before a data set counts as beyond repair."""

MIN_SAMPLES_TO_JUDGE = 100
"""Samples seen before the rate of damaged ones may stop a run."""

Batch = dict[str, Any]
Item = tuple[torch.Tensor, torch.Tensor | None, int, str, tuple[str, ...]]
"""frames, actions, sample index, key, one message per damaged sample met on the way."""


class TrainStream:
    """The endless stream of one rank's micro-batches.

    A batch is a dict (agreement 1): ``frames`` (B, S, C, H, W) float32 in network units, ``actions`` (B, S, A) float32
    where the schema has them, ``sample_index`` (B,) int64, the position in the global order, and ``key`` list[str].
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
        self.wait_sec = 0.0
        """Time the consumer waited for data so far."""
        self.num_damaged = 0
        """Damaged samples this rank met so far."""
        self._num_samples = 0
        self._positions = RankPositions(global_batch_size, micro_batch_size, rank, world_size, start_step)
        self._dataset = TrainDataset(shards, config, seed)

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from ``start_step`` on, without end."""
        loaded = _read_ahead(self._dataset, self._positions, self.config)
        while True:
            asked = time.perf_counter()
            batch, damage = next(loaded)
            self.wait_sec += time.perf_counter() - asked
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


class EvalStream:
    """The first ``num_samples`` samples in manifest order, every rank the same number of batches.

    Batches are as in training, with ``sample_index`` the number of the sample and ``mask`` (B,) bool: False marks
    padding, which repeats sample 0 so that ranks stay in step, and samples that were damaged and skipped.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: DataConfig,
        batch_size: int,
        num_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        """``num_samples`` None takes all; more than there are is a ``ValueError``."""
        check_against_schema(config, shards.schema, str(shards.folder))
        if num_samples is not None and not 1 <= num_samples <= len(shards):
            raise ValueError(
                f"{num_samples} evaluation samples were asked for, {shards.folder} has {len(shards)}; ask for at "
                "most that many"
            )
        self.config = config
        self.num_samples = num_samples or len(shards)
        self.num_batches = -(-self.num_samples // (batch_size * world_size))
        self.num_damaged = 0
        first = rank * self.num_batches * batch_size
        self._batches = [
            list(range(first + batch * batch_size, first + (batch + 1) * batch_size))
            for batch in range(self.num_batches)
        ]
        self._dataset = EvalDataset(shards, config)

    def __len__(self) -> int:
        """Batches per rank."""
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        numbers = [[number if number < self.num_samples else 0 for number in batch] for batch in self._batches]
        loaded = _read_ahead(self._dataset, numbers, self.config)
        for wanted, (batch, damage) in zip(self._batches, loaded, strict=True):
            for message in damage:
                logger.warning("skipped: %s", message)
            self.num_damaged += len(damage)
            inside = [number < self.num_samples and bool(key) for number, key in zip(wanted, batch["key"], strict=True)]
            batch["mask"] = torch.tensor(inside)
            yield batch


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


class TrainDataset(Dataset):
    """Position in the global order -> sample, cut and augmented."""

    def __init__(self, shards: ShardSet, config: DataConfig, seed: int):
        self.shards = shards
        self.config = config
        self.seed = seed
        self.plan = ShufflePlan(shards.manifest, seed, config.shuffle_window_bytes)
        self.transform = _transform(shards, config, training=True)

    def __getitem__(self, position: int) -> Item | DamagedSampleError:
        """The sample, or the error that stops the run: raised in a worker it would reach the user as a traceback."""
        damage: list[str] = []
        address = self.plan.address(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                sample = self.shards.read(address)
            except DamagedSampleError as error:
                if self.config.damaged_samples == "error":
                    return error
                damage.append(str(error))
                address = self.shards.address(self.plan.replacement(position, attempt))
                continue
            frames, actions = self.transform(sample.frames, sample.actions, self.seed, position)
            return frames, actions, position, sample.key, tuple(damage)
        return DamagedSampleError(f"{MAX_REPLACEMENTS} samples in a row are damaged; the last: {damage[-1]}")


class EvalDataset(Dataset):
    """Sample number -> sample in a fixed form. A skipped damaged sample comes as zeros with an empty key."""

    def __init__(self, shards: ShardSet, config: DataConfig):
        self.shards = shards
        self.config = config
        self.transform = _transform(shards, config, training=False)

    def __getitem__(self, number: int) -> Item | DamagedSampleError:
        try:
            sample = self.shards.read(self.shards.address(number))
        except DamagedSampleError as error:
            if self.config.damaged_samples == "error":
                return error
            return (*self._blank(), number, "", (str(error),))
        frames, actions = self.transform(sample.frames, sample.actions, 0, number)
        return frames, actions, number, sample.key, ()

    def _blank(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        schema = self.shards.schema
        height, width = self.config.crop_size or schema.shape[1:]
        frames = torch.zeros(self.config.num_frames, schema.shape[0], height, width)
        return frames, torch.zeros(self.config.num_frames, schema.num_actions) if schema.num_actions else None


def collate(items: list[Item | DamagedSampleError]) -> tuple[Batch, list[str]] | DamagedSampleError:
    """Stacks samples to a batch; the messages about damaged samples travel beside it, a fatal one instead of it."""
    for item in items:
        if isinstance(item, DamagedSampleError):
            return item
    frames, actions, sample_index, keys, damage = zip(*items, strict=True)
    batch: Batch = {
        "frames": torch.stack(frames),
        "sample_index": torch.tensor(sample_index),
        "key": list(keys),
    }
    if actions[0] is not None:
        batch["actions"] = torch.stack(actions)
    return batch, [message for messages in damage for message in messages]


def _transform(shards: ShardSet, config: DataConfig, training: bool) -> SampleTransform:
    manifest = shards.manifest
    return SampleTransform(config, manifest.frames, manifest.shift, manifest.scale, training)


def _read_ahead(
    dataset: Dataset, batches: Iterable[list[int]], config: DataConfig
) -> Iterator[tuple[Batch, list[str]]]:
    """Reads ``batches`` in order, in worker processes; raises the first fatal error in the caller's process."""
    workers = config.num_workers
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=config.prefetch_batches if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_init_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for loaded in loader:
        if isinstance(loaded, DamagedSampleError):
            raise loaded
        yield loaded


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
