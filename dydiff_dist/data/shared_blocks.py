"""Memory shared with worker processes that is used again and again, so that a batch is handed over as a number.

Shared memory made anew for every batch, as ``DataLoader`` does it, costs about as much as reading and checking the
samples: the system clears each page, both processes map each page, and a file descriptor goes through a socket. Here
the trainer's process makes some blocks once, names a free one with each batch it asks for, and takes it back when the
last tensor over it is gone. So nothing is ever written while something refers to it, whatever the trainer keeps; where
it keeps more than there are blocks, ``take`` returns None and the batch travels in memory of its own.
"""

import itertools
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MINE: weakref.WeakValueDictionary[int, "SharedBlocks"] = weakref.WeakValueDictionary()
"""Blocks made by this process, by number: what comes back from a worker names them."""

_NUMBERS = itertools.count()


class SharedBlocks:
    """``num_blocks`` pieces of shared memory of ``num_floats`` float32 each, owned by the process that makes them.

    Workers get them by pickling at their start (fork, forkserver or spawn). The memory has no name in the file system:
    it is gone when the last process that maps it has ended, however it ended.
    """

    def __init__(self, num_blocks: int, num_floats: int):
        """Raises ``ValueError`` where the system has too little shared memory."""
        try:
            self._memory = torch.empty(num_blocks, num_floats).share_memory_()
        except RuntimeError as error:
            raise ValueError(
                f"no room for {num_blocks * num_floats * 4 / 1e6:.0f} MB of shared memory, in which workers hand over "
                f"batches ({error}); lower data.prefetch_batches or data.num_workers, or enlarge /dev/shm "
                "(docker: --shm-size)"
            ) from None
        self.number = next(_NUMBERS)
        self._free = list(range(num_blocks))
        _MINE[self.number] = self

    def take(self) -> int | None:
        """A block that nothing refers to, now the caller's to have filled; None if all are in use."""
        return self._free.pop() if self._free else None

    def array(self, block: int) -> np.ndarray:
        """A block's memory for the worker that fills it, (num_floats,) float32."""
        return self._memory[block].numpy()

    def open(self, block: int) -> Tensor:
        """A filled block as a tensor, (num_floats,). Once it and all its views are gone, the block is free again."""
        # The tensor's storage keeps this very array, an object of its own, until the last view is dropped.
        array = self._memory[block].numpy()
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)


@dataclass(frozen=True)
class FilledBlock:
    """A worker's message: which block of which owner it filled."""

    owner: int
    """``SharedBlocks.number``."""
    block: int

    def open(self) -> Tensor:
        """See ``SharedBlocks.open``; to be called once, in the owner's process."""
        return _MINE[self.owner].open(self.block)
