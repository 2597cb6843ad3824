"""Two ranks' watchdogs in one process: who is named as slow, and who as lost."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dydiff_dist.ranks.config import FaultsConfig
from dydiff_dist.ranks.watchdog import Activity, PeerLostError, Watchdog, is_exchange_failure
from dydiff_dist.ranks.world import World

FAULTS = FaultsConfig(heartbeat_sec=0.05, slow_after_sec=0.3, dead_after_sec=0.5, exchange_timeout_sec=1.0)


@pytest.fixture
def ranks(monkeypatch):
    """Watchdogs of two ranks without their threads, and what rank 0 said."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    monkeypatch.setitem(os.environ, "MASTER_PORT", str(store.port))
    said = []

    def watchdog(rank):
        world = World(rank=rank, world_size=2, local_rank=rank, local_world_size=2, device=torch.device("cpu"))
        return Watchdog(FAULTS, world, Activity(), said.append, session="test")

    made = [watchdog(0), watchdog(1)]
    for each in made:
        each.activity.enter("waiting for data")
        each._publish()
    yield *made, said
    del store


def beat_until(watchdogs, judge, seconds):
    """Beats of ``watchdogs`` until rank 0 judges that a rank is lost."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for each in watchdogs:
            each._publish()
        lost = judge._judge()
        if lost:
            return lost
        time.sleep(FAULTS.heartbeat_sec)
    return None


def test_the_rank_that_others_wait_for_is_named_and_ends_the_run(ranks):
    first, second, said = ranks
    first.activity.enter("in the backward pass")
    lost = beat_until([first, second], first, 5)
    assert said and said[0].startswith("slow: rank 1 (") and "is waiting for data after step 0" in said[0], said
    assert "1 of 2 ranks are further and wait" in said[0]
    assert len(said) <= 2, "warnings come at doubled intervals"
    assert lost.startswith("rank 1 (") and "exchange_timeout_sec" in lost
    assert second._obey() == lost


def test_slow_ranks_that_nobody_waits_for_go_on(ranks):
    first, second, said = ranks
    assert beat_until([first, second], first, 1.5) is None
    assert said and ", and 1 more alike" in said[0]


def test_a_rank_without_a_heartbeat_is_lost(ranks):
    first, second, _ = ranks
    second.activity.enter("saving a checkpoint")
    second.activity.step = 7
    second._publish()
    lost = beat_until([first], first, 5)
    assert lost.startswith("rank 1 (") and "has not been heard of" in lost
    assert "it was last saving a checkpoint after step 7" in lost


def test_a_rank_that_ended_normally_is_not_lost_and_one_with_an_error_is(ranks):
    first, second, _ = ranks
    second.__enter__()
    second.__exit__(None, None, None)
    assert beat_until([first], first, 1.0) is None
    second._end = "ValueError: shard x.tar is truncated"
    second._publish()
    assert first._judge() is None, "it may be about to meet the same mistake"
    assert "stopped after step 0: ValueError: shard x.tar is truncated" in beat_until([first], first, 5)


def test_rank_1_hears_that_rank_0_is_gone(ranks):
    _, second, _ = ranks
    deadline = time.monotonic() + 5
    while (lost := second._obey()) is None and time.monotonic() < deadline:
        time.sleep(FAULTS.heartbeat_sec)
    assert lost.startswith("rank 0 (") and "has not been heard of" in lost


def test_a_failed_exchange_is_explained_by_the_rank_behind_it(ranks):
    first, second, _ = ranks
    error = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3217")
    assert is_exchange_failure(error) and not is_exchange_failure(RuntimeError("shapes don't match"))
    second.activity.enter("in the forward pass")
    second._publish()
    first.__enter__()
    explained = str(first.explain(error))
    first.__exit__(PeerLostError, PeerLostError(explained), None)
    assert explained.startswith("rank 1 (") and "it was last in the forward pass" in explained
    assert second._find_lost({0: first._read([0])[0]}, 0.1) is None, "a rank that lost a peer is not to blame"


class Silent:
    """A store behind a network that swallows packets: a request to it never returns."""

    def __getattr__(self, name):
        return lambda *_: time.sleep(600)


def silence(watchdog, monkeypatch):
    """Cuts a watchdog off from the store; returns what it left with, once it has."""
    left = []
    monkeypatch.setattr(watchdog, "_leave", lambda line: (left.append(line), watchdog._stopping.set()))
    watchdog._store = Silent()
    return left


def test_a_store_that_does_not_answer_ends_the_rank_in_time(ranks, monkeypatch):
    _, second, _ = ranks
    left = silence(second, monkeypatch)
    start = time.monotonic()
    second.__enter__()
    while not left and time.monotonic() - start < 20:
        time.sleep(0.01)
    assert left[0].startswith("rank 1 (") and "has had no answer from the ranks' rendezvous at 127.0.0.1:" in left[0]
    assert "rank 0's machine, or the network to it, is gone" in left[0]
    start = time.monotonic()
    second.__exit__(None, None, None)
    assert time.monotonic() - start < 5, "leaving waited for the request"


def test_a_failed_exchange_is_explained_though_the_store_does_not_answer(ranks, monkeypatch):
    _, second, _ = ranks
    silence(second, monkeypatch)
    second.__enter__()
    start = time.monotonic()
    with pytest.raises(PeerLostError, match=r"reset by peer.*; rank 1 \(.* has had no answer"), second.explaining():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection reset by peer")
    assert time.monotonic() - start < 5
    second.__exit__(None, None, None)


def test_a_lost_rank_is_not_said_to_be_at_what_all_have_done_since(ranks):
    first, second, _ = ranks
    second.activity.enter("building the networks")
    second._publish()
    first.activity.step = 12
    lost = beat_until([first], first, 5)
    assert lost.startswith("rank 1 (") and lost.endswith("; it was lost after step 12")


def test_a_store_that_goes_with_rank_0_names_it(ranks, monkeypatch):
    first, second, _ = ranks
    first.activity.step = 3
    first.activity.enter("saving a checkpoint")
    first._publish()
    second._obey()
    assert second._store_is_gone().startswith("rank 0 (") and "it was last saving a checkpoint after step 3" in (
        second._store_is_gone()
    )
    monkeypatch.setitem(os.environ, "TORCHELASTIC_USE_AGENT_STORE", "True")
    assert second._store_is_gone().startswith("the launcher of rank 0 at 127.0.0.1:")


def test_errors_that_are_no_exchange_stay_what_they_are(ranks):
    first, _, _ = ranks
    with pytest.raises(RuntimeError, match="shapes don't match"), first.explaining():
        raise RuntimeError("shapes don't match")


def test_times_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"dead_after_sec 5\.0 must be at least 5 x heartbeat_sec 2\.0"):
        FaultsConfig(dead_after_sec=5.0, heartbeat_sec=2.0)
