"""Where the ranks meet before they can exchange anything: a store, and a session in it that is this start's alone.

A launcher that restarts its processes (torchrun --max-restarts) may give them the store of the start before, in which
the dead ranks' addresses still stand; a group built over those waits for ever. So the ranks agree on a session first:
each writes a number of its own, rank 0 publishes the list of all, and a list counts once every rank has found its
present number in it.
"""

import hashlib
import os
import secrets
import time
from datetime import timedelta

import torch.distributed as dist

_POLL_SEC = 0.05


def meet(rank: int, world_size: int, timeout_sec: float) -> tuple[dist.Store, str]:
    """Waits for all ranks at MASTER_ADDR:MASTER_PORT.

    Returns:
        The part of the store that belongs to this session, and the session's name, the same on every rank.

    Raises:
        ValueError: the address is taken or can't be reached, or ranks have not come in time.
    """
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    timeout = timedelta(seconds=timeout_sec)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, world_size, timeout=timeout)))
    except dist.DistStoreError as error:  # rank 0 counts who came
        raise ValueError(f"the ranks meet at {address}: {str(error).splitlines()[0]}") from None
    except dist.DistNetworkError as error:
        taken = "EADDRINUSE" in str(error)
        reason = "is in use by another run; give the launcher another --master_port"
        if not taken:
            reason = f"was not reached within {timeout_sec:.0f} s; see whether rank 0 has started there"
        raise ValueError(f"the ranks meet at {address}, which {reason}") from None
    session = _agree(store, rank, world_size, time.monotonic() + timeout_sec)
    if session is None:
        missing = _missing(store, world_size)
        raise ValueError(
            f"{missing} of {world_size} did not come to {address} within {timeout_sec:.0f} s "
            "(training.faults.join_timeout_sec); look at their output, and whether they reach that address"
        )
    store.set_timeout(timeout)
    return dist.PrefixStore(f"session/{session}", store), session


def _agree(store: dist.Store, rank: int, world_size: int, deadline: float) -> str | None:
    """The session's name, or None if not all ranks came by ``deadline`` (of the monotonic clock)."""
    mine, published, acknowledged = secrets.token_hex(8), "", ""
    store.set(f"meeting/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            published = _publish(store, world_size, published)
        numbers = store.get("meeting/all").decode() if store.check(["meeting/all"]) else ""
        session = hashlib.sha256(numbers.encode()).hexdigest()[:16]
        if numbers and numbers.split()[rank] == mine:
            joining = int(numbers != acknowledged)
            acknowledged = numbers
            if store.add(f"meeting/{session}/joined", joining) == world_size:
                return session
        time.sleep(_POLL_SEC)
    return None


def _publish(store: dist.Store, world_size: int, published: str) -> str:
    """Rank 0's part: the numbers of all ranks, once each has one, again when one has changed; returns what stands."""
    keys = [f"meeting/{rank}" for rank in range(world_size)]
    if not store.check(keys):
        return published
    numbers = " ".join(value.decode() for value in store.multi_get(keys))
    if numbers != published:
        store.set("meeting/all", numbers)
    return numbers


def _missing(store: dist.Store, world_size: int) -> str:
    """The ranks that never came, in words."""
    absent = [str(rank) for rank in range(world_size) if not store.check([f"meeting/{rank}"])]
    return f"rank{'s' if len(absent) > 1 else ''} {', '.join(absent)}" if absent else "some ranks"
