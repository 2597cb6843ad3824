"""Writing while training goes on: a copy in the host's memory, and a thread that takes it to the disk."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dydiff_dist.checkpoints.folder import DamagedError
from dydiff_dist.errors import reason_and_advice

logger = logging.getLogger(__name__)


class HostBuffer:
    """Memory on the host that takes a copy of some tensors, kept from one save to the next.

    Args:
        pinned: whether GPUs copy to it.
    """

    def __init__(self, pinned: bool):
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def copy(self, tensors: list[Tensor]) -> list[Tensor]:
        """Copies of ``tensors``, on any device, that live until the next call."""
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        copies, start = [], 0
        for tensor in tensors:  # wide dtypes come first, so every view is aligned
            copy = self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies.append(copy.copy_(tensor, non_blocking=True))
            start += tensor.nbytes
        if self._pinned:
            torch.cuda.synchronize()
        return copies


class BackgroundWrite:
    """One save of one rank on its way to the disk.

    Args:
        final: the checkpoint, for messages.
        write: puts this rank's share down.
        finish: what rank 0 does besides: waits for the others' shares, unless the given event is set, and completes the
            checkpoint.
    """

    def __init__(self, final: Path, *, write: Callable[[], None], finish: Callable[[threading.Event], None] | None):
        self.final = final
        self.failure: str | None = None
        """What went wrong so far, one line."""
        self._write, self._finish = write, finish
        self._share_is_down, self._cancelled = threading.Event(), threading.Event()
        # a daemon: a run that ends by an error doesn't wait for ranks that will never write
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def share_failure(self) -> str | None:
        """Waits for this rank's own share; returns what went wrong with it."""
        self._share_is_down.wait()
        return self.failure

    def finish_failure(self) -> str | None:
        """Waits for the whole checkpoint, on rank 0; returns what went wrong. Every rank's share must be down."""
        self._thread.join()
        return self.failure

    def wait_at_most(self, share_sec: float, finish_sec: float) -> None:
        """Waits for this rank's own share and then for the others', but not longer than given."""
        self._share_is_down.wait(share_sec)
        self._thread.join(finish_sec)

    def cancel(self) -> None:
        """Ends the thread without completing the checkpoint."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            self._write()
            self._share_is_down.set()
            if self._finish is not None:
                self._finish(self._cancelled)
        except (OSError, DamagedError) as error:
            self.failure = f"checkpoint {self.final} could not be written"  # known even if looking for the reason fails
            self.failure = self._describe(error)
        except BaseException as error:
            self.failure = f"checkpoint {self.final} could not be written ({type(error).__name__}: {error})"
            raise  # a bug: the thread's traceback is wanted
        finally:
            self._share_is_down.set()
        if self._finish is not None and self.failure is None and not self._cancelled.is_set():
            logger.info("checkpoint %s is complete after %.2f s", self.final.name, time.perf_counter() - start)

    def _describe(self, error: OSError | DamagedError) -> str:
        if isinstance(error, FileNotFoundError):
            reason = f"{error.strerror}; all ranks must see the same output_dir"
        else:
            reason = reason_and_advice(error) if isinstance(error, OSError) else str(error)
        return (
            f"checkpoint {self.final} could not be written: {reason}. Then start again: the checkpoints before it are "
            "kept"
        )
