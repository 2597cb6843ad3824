"""The order of training samples as a pure function of (seed, epoch, position).

An epoch's order: all shards in random order; consecutive shards are grouped into windows of bounded size; within a
window the samples are in random order. So a reader touches few shards at a time, and still every sample comes exactly
once per epoch. Nothing depends on ranks, workers, or on where a run was stopped: the global order is one sequence of
positions, position p belongs to epoch p // n (n samples per epoch), and global batch k holds positions k·G … (k +
1)·G − 1.
"""

from functools import lru_cache

import numpy as np
import torch

from dydiff_dist.data.manifest import Manifest
from dydiff_dist.data.shard_set import SampleAddress
from dydiff_kernels import NoiseCounter, Stream, uniform

SHARD_ORDER_STEP = 2**32 - 1
"""Counter step that orders the shards of an epoch; windows take the steps from 0."""

REPLACEMENT_STEP = 2**32 - 2
"""Counter step that draws replacements of damaged samples."""


EpochLayout = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Shards in an epoch's order; the place of each one's first sample in the epoch, with the end; and those of windows."""


class SampleOrder:
    """Maps positions of the global order to samples. Memory: three windows' permutations, a few numbers per shard."""

    def __init__(self, manifest: Manifest, seed: int, window_bytes: int):
        """
        Args:
            manifest: of the shards.
            seed: of the run.
            window_bytes: bound of a window, which holds one shard at least; 0 keeps the manifest's order.
        """
        self.seed = seed
        self.window_bytes = window_bytes
        self.num_samples = manifest.num_samples
        self._samples_per_shard = np.array([entry.num_samples for entry in manifest.shards])
        self._bytes_per_shard = np.array([entry.bytes for entry in manifest.shards])
        self._layout: tuple[int, EpochLayout] | None = None
        """The epoch that was asked for last, and its layout: readers ask for positions in order."""

    def address(self, position: int) -> SampleAddress:
        """The sample at ``position`` ≥ 0 of the endless global order.

        Examples:
            >>> from types import SimpleNamespace as Part  # a manifest's numbers alone
            >>> shards = [Part(num_samples=2, bytes=10), Part(num_samples=3, bytes=10)]
            >>> order = SampleOrder(Part(num_samples=5, shards=shards), seed=0, window_bytes=100)
            >>> sorted((a.shard, a.item) for a in map(order.address, range(5, 10)))  # the second epoch
            [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        """
        epoch, within = divmod(position, self.num_samples)
        shard_order, first_sample, window_bounds = self._epoch_layout(epoch)
        if self.window_bytes:
            window = int(np.searchsorted(window_bounds, within, side="right")) - 1
            start, end = int(window_bounds[window]), int(window_bounds[window + 1])
            within = start + int(random_permutation(self.seed, epoch, window, end - start)[within - start])
        slot = int(np.searchsorted(first_sample, within, side="right")) - 1
        return SampleAddress(int(shard_order[slot]), within - int(first_sample[slot]))

    def replacement(self, position: int, attempt: int) -> int:
        """The number (in manifest order) of the sample that stands in for a damaged one, the same on every rank."""
        counter = NoiseCounter(self.seed, torch.tensor([position]), REPLACEMENT_STEP - attempt, Stream.DATA_ORDER)
        return min(int(uniform(counter, 1)[0, 0].double() * self.num_samples), self.num_samples - 1)

    def _epoch_layout(self, epoch: int) -> EpochLayout:
        if self._layout is None or self._layout[0] != epoch:
            self._layout = epoch, self._compute_layout(epoch)
        return self._layout[1]

    def _compute_layout(self, epoch: int) -> EpochLayout:
        num_shards = len(self._samples_per_shard)
        order = np.arange(num_shards)
        if self.window_bytes:
            order = random_permutation(self.seed, epoch, SHARD_ORDER_STEP, num_shards)
        first_sample = np.concatenate([[0], np.cumsum(self._samples_per_shard[order])])
        window_slots = [0]
        held = 0
        for slot, size in enumerate(self._bytes_per_shard[order]):
            if slot > window_slots[-1] and held + size > self.window_bytes:
                window_slots.append(slot)
                held = 0
            held += int(size)
        return order, first_sample, first_sample[[*window_slots, num_shards]]


@lru_cache(maxsize=3)
def random_permutation(seed: int, epoch: int, step: int, count: int) -> np.ndarray:
    """A permutation of 0..count-1, read-only, by sorting counter-based uniforms (agreement 2, stream 7: data order)."""
    counter = NoiseCounter(seed, torch.tensor([epoch]), step, Stream.DATA_ORDER)
    permutation = np.argsort(uniform(counter, count)[0].numpy(), kind="stable")
    permutation.flags.writeable = False
    return permutation
