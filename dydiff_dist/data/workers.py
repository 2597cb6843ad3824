"""Running the same function on many jobs: in this process, in processes of this machine, or on a Dask cluster."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TypeVar
from weakref import WeakSet

import torch

from dydiff_dist.quoting import first_line

Job = TypeVar("Job")
Result = TypeVar("Result")

CONNECT_TIMEOUT_SEC = 30
"""Time in which a cluster's scheduler must answer."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What asks a training to stop."""

_to_kill: WeakSet[BaseProcess] = WeakSet()


def run_in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_processes: int
) -> Iterator[tuple[Job, Result]]:
    """Yields (job, result) as they finish; with one process or one job, here and in order."""
    if num_processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, function(job)
        return
    # A fresh interpreter per process: forking a process that already runs torch's threads can deadlock.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(num_processes, len(jobs)), context, initializer=begin_process) as pool:
        futures = {pool.submit(function, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            # Without this the shards in the making would be finished first, minutes after Ctrl-C or an error.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def run_on_cluster(
    function: Callable[[Job], Result], jobs: Sequence[Job], address: str
) -> Iterator[tuple[Job, Result]]:
    """Yields (job, result) as a Dask cluster finishes them. The jobs run in this process's working folder, which must
    be on a disk that all workers share; a job whose worker dies is given to another one by Dask.

    Raises:
        ValueError: Dask is not installed, or no scheduler answers at ``address``.
    """
    try:
        import distributed
    except ImportError:
        raise ValueError("--cluster needs Dask; install it with pip install 'dydiff_dist[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_TIMEOUT_SEC)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at --cluster {address}: {first_line(error)}") from None
    with client:
        folder = os.getcwd()
        futures = {client.submit(_in_folder, folder, function, job, pure=False): job for job in jobs}
        try:
            for future in distributed.as_completed(futures):
                yield futures[future], future.result()
        finally:
            client.cancel(list(futures))  # what has not begun when the caller stops early


def _in_folder(folder: str, function: Callable[[Job], Result], job: Job) -> Result:
    """``function(job)`` with relative paths meaning what they mean on the machine that asked."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"a worker does not see {folder}; its machine must share the disk of this one")
    os.chdir(folder)
    return function(job)


def begin_process(*_: object) -> None:
    """What a process that works for another one does first, whatever it is given.

    It takes one thread, as several processes share the cores and OpenMP's spinning threads would fight for them; it
    leaves Ctrl-C to the parent; and it ends as soon as the parent is gone, however that went, instead of waiting for
    its next job for ever. ``os.getppid`` would not tell: the parent of what a forkserver starts is the forkserver,
    which lives as long as any process that it started.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "not for the process that the user started"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


@contextmanager
def signals_left_to_this_process() -> Iterator[None]:
    """Processes that are started in the block never hear the signals that ask a training to stop: schedulers and
    terminals send them to all of its processes, and it needs its data, and multiprocessing's helpers, until its step is
    done. They end with it all the same, see `kill_at_exit`. This process hears what comes meanwhile at the end of the
    block."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # whose start lets SIGTERM through again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def kill_at_exit(processes: Iterable[BaseProcess]) -> None:
    """Kills processes at this one's end, before anything waits for them: those that hear no signal would be waited for
    without end, as multiprocessing only asks daemons to terminate."""
    _to_kill.update(processes)
    atexit.unregister(_kill_all)
    atexit.register(_kill_all)  # anew: what was registered last runs first


def _kill_all() -> None:
    for process in _to_kill:
        if process.is_alive():
            process.kill()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
