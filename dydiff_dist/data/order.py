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


class ShufflePlan:
    """Maps positions of the global order to samples. Memory: one window's permutation and two numbers per shard."""

    def __init__(self, manifest: Manifest, seed: int, window_bytes: int):
        """``window_bytes`` bounds a window (one shard at least); 0 keeps the manifest's order."""
        self.seed = seed
        self.window_bytes = window_bytes
        self.num_samples = manifest.num_samples
        self._samples_per_shard = np.array([entry.num_samples for entry in manifest.shards])
        self._bytes_per_shard = np.array([entry.bytes for entry in manifest.shards])
        self._epoch_layout = lru_cache(maxsize=2)(self._compute_epoch_layout)
        self._window_order = lru_cache(maxsize=3)(self._compute_window_order)

    def __getstate__(self) -> dict:
        """Without the caches, which are functions of the rest and do not pickle."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_epoch_layout", "_window_order")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._epoch_layout = lru_cache(maxsize=2)(self._compute_epoch_layout)
        self._window_order = lru_cache(maxsize=3)(self._compute_window_order)

    def address(self, position: int) -> SampleAddress:
        """The sample at ``position`` ≥ 0 of the endless global order."""
        epoch, within = divmod(position, self.num_samples)
        shard_order, first_sample, window_starts = self._epoch_layout(epoch)
        window = int(np.searchsorted(first_sample[window_starts], within, side="right")) - 1
        first_shard, last_shard = int(window_starts[window]), self._window_end(window_starts, window)
        start = int(first_sample[first_shard])
        in_window = within - start
        if self.window_bytes:
            count = int(first_sample[last_shard]) - start
            in_window = int(self._window_order(epoch, window, count)[in_window])
        slot = int(np.searchsorted(first_sample, start + in_window, side="right")) - 1
        return SampleAddress(int(shard_order[slot]), start + in_window - int(first_sample[slot]))

    def replacement(self, position: int, attempt: int) -> int:
        """The number (in manifest order) of the sample that stands in for a damaged one, the same on every rank."""
        counter = NoiseCounter(self.seed, torch.tensor([position]), REPLACEMENT_STEP - attempt, Stream.DATA_ORDER)
        return min(int(uniform(counter, 1)[0, 0].double() * self.num_samples), self.num_samples - 1)

    def _window_end(self, window_starts: np.ndarray, window: int) -> int:
        return int(window_starts[window + 1]) if window + 1 < len(window_starts) else len(self._samples_per_shard)

    def _compute_epoch_layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shards in this epoch's order, the position of each one's first sample, and the slots where windows start."""
        num_shards = len(self._samples_per_shard)
        order = np.arange(num_shards)
        if self.window_bytes:
            order = random_permutation(self.seed, epoch, SHARD_ORDER_STEP, num_shards)
        first_sample = np.concatenate([[0], np.cumsum(self._samples_per_shard[order])])
        window_starts = [0]
        held = 0
        for slot, size in enumerate(self._bytes_per_shard[order]):
            if slot > window_starts[-1] and held + size > self.window_bytes:
                window_starts.append(slot)
                held = 0
            held += int(size)
        return order, first_sample, np.array(window_starts)

    def _compute_window_order(self, epoch: int, window: int, count: int) -> np.ndarray:
        return random_permutation(self.seed, epoch, window, count)


def random_permutation(seed: int, epoch: int, step: int, count: int) -> np.ndarray:
    """A permutation of 0..count-1 by sorting counter-based uniforms (agreement 2, stream 7: data order)."""
    counter = NoiseCounter(seed, torch.tensor([epoch]), step, Stream.DATA_ORDER)
    return np.argsort(uniform(counter, count)[0].numpy(), kind="stable")
