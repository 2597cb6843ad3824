"""Ranks meet in a store; a restart in the same store gets a session of its own."""

import os
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from dydiff_dist.ranks.rendezvous import rendezvous


@pytest.fixture
def launcher_store(monkeypatch):
    """A store that outlives its ranks, as torchrun's agent keeps it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(store.port)),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ):
        monkeypatch.setitem(os.environ, name, value)
    return store


def start(ranks, world_size, timeout_sec=20.0):
    """Ranks that come at the same time; their sessions or errors by rank."""
    results = {}

    def come(rank):
        try:
            results[rank] = rendezvous(rank, world_size, timeout_sec)[1]
        except ValueError as error:
            results[rank] = error

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_restart_in_the_same_store_is_another_session(launcher_store):
    sessions = [start(range(3), 3) for _ in range(3)]
    for session in sessions:
        assert len(set(session.values())) == 1, session
    assert len({session[0] for session in sessions}) == 3


def test_a_restart_waits_for_the_new_ranks_not_the_dead_ones(launcher_store):
    start(range(2), 2)
    alone = start([0], 2, timeout_sec=1.0)[0]  # rank 1's old number still stands in the store
    assert isinstance(alone, ValueError) and "did not come" in str(alone)


def test_ranks_that_do_not_come_are_named(launcher_store):
    error = start([0, 2], 4, timeout_sec=1.0)[0]
    assert "ranks 1, 3 of 4 did not come to 127.0.0.1" in str(error) and "\n" not in str(error)
