"""Where the ranks meet before they can exchange anything: a store, and a session in it that is this start's alone.

A launcher that restarts its processes (torchrun --max-restarts) may give them the store of the start before, in which
the dead ranks' addresses still stand; a group built over those waits for ever. So the ranks agree on a session first:
each writes a number of its own, rank 0 publishes the list of all, and a list counts once every rank has found its
present number in it.
"""

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dydiff_dist.quoting import first_line
from dydiff_dist.ranks.launchers import read_launch
from dydiff_dist.ranks.reports import say_once
from dydiff_dist.ranks.world import World

_POLL_SEC = 0.05
_LATE_SEC = 5.0
"""Beyond the time to join, after which a rank ends that still hangs in a request."""


def start_process_group(world: World, timeout_minutes: float = 10, join_timeout_minutes: float = 5) -> str:
    """Joins the ranks: NCCL between GPUs, gloo between CPU processes. Collective.

    Args:
        world: this process among the others.
        timeout_minutes: within which all ranks must take part in an exchange that one has begun.
        join_timeout_minutes: within which all ranks must have come.

    Returns:
        A name of this session, the same on every rank and another at every start.

    Raises:
        ValueError: the address of the rendezvous is taken or can't be reached, or ranks have not come or can't reach
            each other.
    """
    launch = read_launch(os.environ)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed insists on it
    os.environ.setdefault("MASTER_ADDR", launch.master_addr or "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(launch.master_port or _free_port()))
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
    join_sec = 60 * join_timeout_minutes
    late = f"the ranks met at {rendezvous_address()}, but not all could reach each other within {join_sec:.0f} s"
    advice = "(training.faults.join_timeout_sec); look at the network between their machines: tools/doctor.py"
    with must_end(join_sec + _LATE_SEC, f"error: {late} {advice}"):
        store, session = rendezvous(world.rank, world.world_size, join_sec)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                rank=world.rank,
                world_size=world.world_size,
                timeout=timedelta(minutes=timeout_minutes),
                store=store,
            )
        except RuntimeError as error:
            raise ValueError(f"{late}: {first_line(error)} {advice}") from None
    return session


@contextmanager
def must_end(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with a line and status 1 where the block takes longer: for requests that nothing else bounds."""

    def leave() -> None:
        say_once(line, topic="late")
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rendezvous(rank: int, world_size: int, timeout_sec: float) -> tuple[dist.Store, str]:
    """Waits for all ranks at MASTER_ADDR:MASTER_PORT.

    Args:
        rank: this process's.
        world_size: ranks that must come.
        timeout_sec: within which they must.

    Returns:
        The part of the store that belongs to this session, and the session's name, the same on every rank.

    Raises:
        ValueError: the address is taken or can't be reached, or ranks have not come in time.
    """
    address, timeout = rendezvous_address(), timedelta(seconds=timeout_sec)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, world_size, timeout=timeout)))
    except dist.DistStoreError as error:  # rank 0 counts who came
        raise ValueError(
            f"the ranks meet at {address}: {first_line(error)} (training.faults.join_timeout_sec); look at the others' "
            "output, and whether they reach that address"
        ) from None
    except dist.DistNetworkError as error:
        reason = f"was not reached within {timeout_sec:.0f} s; see whether rank 0 has started there"
        if "EADDRINUSE" in str(error):
            reason = "is in use by another run; give the launcher another --master_port"
        raise ValueError(f"the ranks meet at {address}, which {reason}") from None
    try:
        session = _agree(store, rank, world_size, time.monotonic() + timeout_sec)
        missing = "" if session else _missing(store, world_size)
    except dist.DistError as error:  # its keeper has died
        raise ValueError(
            f"the ranks meet at {address}, which is gone: {first_line(error)}; look at rank 0's output"
        ) from None
    if session is None:
        raise ValueError(
            f"{missing} of {world_size} did not come to {address} within {timeout_sec:.0f} s "
            "(training.faults.join_timeout_sec); look at their output, and whether they reach that address"
        )
    store.set_timeout(timeout)
    return dist.PrefixStore(f"session/{session}", store), session


def rendezvous_address() -> str:
    """HOST:PORT at which the ranks of this process meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def launcher_keeps_store() -> bool:
    """Whether the store of the rendezvous is a process of the launcher (torchrun), not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _agree(store: dist.Store, rank: int, world_size: int, deadline: float) -> str | None:
    """The session's name, or None if not all ranks came by ``deadline`` (of the monotonic clock)."""
    mine, published, acknowledged = secrets.token_hex(8), "", ""
    store.set(f"rendezvous/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            published = _publish(store, world_size, published)
        numbers = store.get("rendezvous/all").decode() if store.check(["rendezvous/all"]) else ""
        session = hashlib.sha256(numbers.encode()).hexdigest()[:16]
        if numbers and numbers.split()[rank] == mine:
            joining = int(numbers != acknowledged)
            acknowledged = numbers
            if store.add(f"rendezvous/{session}/joined", joining) == world_size:
                return session
        time.sleep(_POLL_SEC)
    return None


def _publish(store: dist.Store, world_size: int, published: str) -> str:
    """Rank 0's part: the numbers of all ranks, once each has one, again when one has changed; returns what stands."""
    keys = [f"rendezvous/{rank}" for rank in range(world_size)]
    if not store.check(keys):
        return published
    numbers = " ".join(value.decode() for value in store.multi_get(keys))
    if numbers != published:
        store.set("rendezvous/all", numbers)
    return numbers


def _missing(store: dist.Store, world_size: int) -> str:
    """The ranks that never came, in words."""
    absent = [str(rank) for rank in range(world_size) if not store.check([f"rendezvous/{rank}"])]
    return f"rank{'s' if len(absent) > 1 else ''} {', '.join(absent)}" if absent else "some ranks"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
