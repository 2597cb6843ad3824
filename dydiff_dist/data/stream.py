"""Batches for training, exact under any number of ranks and workers and after any resume.

Training reads an endless global order (``order.py``). Global batch k holds positions k·G … (k + 1)·G − 1, where G is
the global batch size; rank r of W takes the r-th of W equal parts of it, in micro-batches. So the only state is the
number of samples done, every rank makes equal steps, and the last, partial batch of an epoch is filled from the next
epoch. A run whose global batch changes goes on behind the last sample that it has seen.

    positions (sampler) -> samples (worker processes: read, check, cut, augment) -> micro-batches
"""

import itertools
import logging
from collections.abc import Iterator
from functools import partial

from dydiff_dist.data.augment import check_against_schema
from dydiff_dist.data.batch_reader import BatchReader
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.read_ahead import Batch, read_ahead
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet

logger = logging.getLogger(__name__)

MIN_SAMPLES_TO_JUDGE = 100
"""Samples seen before the rate of damaged ones may stop a run."""


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
        start_position: int = 0,
    ):
        """
        Args:
            shards: what to read.
            config: how samples are cut, augmented and read ahead.
            seed: of the run; with the position it decides order and augmentation.
            global_batch_size: samples of one optimizer step, over all ranks.
            micro_batch_size: samples of one batch of one rank.
            rank: this process among ``world_size``.
            world_size: ranks that read different samples.
            start_position: samples of the global order already trained on.

        Raises:
            ValueError: sizes that do not divide, or options that the shards do not allow.
        """
        if global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"global batch {global_batch_size} must be a multiple of micro batch {micro_batch_size} x {world_size} "
                f"ranks = {micro_batch_size * world_size}; change one of them"
            )
        check_against_schema(config, shards.schema, str(shards.folder))
        self.config = config
        self.num_damaged = 0
        """Damaged samples this rank met so far."""
        self._num_samples = 0
        self._micro_batch_size = micro_batch_size
        self._positions = partial(rank_positions, global_batch_size, micro_batch_size, rank, world_size, start_position)
        self._reader = BatchReader(shards, config, seed)

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from ``start_position`` on, without end."""
        for batch, damage in read_ahead(self._reader, self._positions(), self._micro_batch_size, self.config):
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
        if self._num_samples >= MIN_SAMPLES_TO_JUDGE and self.damaged_fraction > self.config.max_damaged_rate:
            raise DamagedSampleError(
                f"{self.num_damaged} of {self._num_samples} samples were damaged, more than data.max_damaged_rate "
                f"{self.config.max_damaged_rate}; restore the shards or raise it"
            )


def rank_positions(
    global_batch_size: int, micro_batch_size: int, rank: int, world_size: int, start_position: int
) -> Iterator[list[int]]:
    """The positions of each micro-batch of one rank, without end; the first global batch begins at ``start_position``.

    Examples:
        >>> batches = rank_positions(8, 2, rank=1, world_size=2, start_position=0)
        >>> [next(batches) for _ in range(3)]
        [[4, 5], [6, 7], [12, 13]]
    """
    per_rank = global_batch_size // world_size
    for first_of_all in itertools.count(start_position, global_batch_size):
        first = first_of_all + rank * per_rank
        for start in range(first, first + per_rank, micro_batch_size):
            yield list(range(start, start + micro_batch_size))
