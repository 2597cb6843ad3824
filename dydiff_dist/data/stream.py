"""Batches for training, exact under any number of ranks and workers and after any resume.

Training reads an endless global order (``order.py``). Global batch k holds positions k·G … (k + 1)·G − 1, where G is
the global batch size; rank r of W takes the r-th of W equal parts of it, in micro-batches. So the only state is the
number of global batches done, every rank makes equal steps, and the last, partial batch of an epoch is filled from the
next epoch.

    positions (sampler) -> samples (worker processes: read, check, cut, augment) -> micro-batches
"""

import itertools
import logging
from collections.abc import Iterator

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
        start_step: int = 0,
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
            start_step: global batches already trained on.

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
        self.micro_batches_per_step = global_batch_size // (micro_batch_size * world_size)
        self.num_damaged = 0
        """Damaged samples this rank met so far."""
        self._num_samples = 0
        self._positions = RankPositions(global_batch_size, micro_batch_size, rank, world_size, start_step)
        self._reader = BatchReader(shards, config, seed)

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from ``start_step`` on, without end."""
        loaded = read_ahead(self._reader, self._positions, self._positions.micro_batch_size, self.config)
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


def _check_damage_rate(num_damaged: int, num_samples: int, allowed: float) -> None:
    if num_damaged > allowed * num_samples:
        raise DamagedSampleError(
            f"{num_damaged} of {num_samples} samples were damaged, more than data.max_damaged_rate {allowed}; restore "
            "the shards or raise it"
        )
