"""Who is slow, who is gone: every rank says what it is doing, and one thread per rank listens.

Each rank publishes a heartbeat in the store of the rendezvous. Rank 0 reads all of them and writes a verdict, which
the others read, so a beat costs each rank two requests. A heartbeat that stops means a dead or frozen process; one that
goes on without progress means a slow one, and the rank with the least progress is the one the others wait for.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from dydiff_dist.quoting import first_line
from dydiff_dist.ranks.config import FaultsConfig
from dydiff_dist.ranks.rendezvous import rendezvous_address
from dydiff_dist.ranks.world import World

_LOST_A_PEER = "lost a peer"
"""The end of a rank that is not to blame."""

EXIT_LOST = 1
"""Exit status of a rank that leaves because another one is gone."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a rank says about itself."""

    beat: int
    """Grows with every publication."""
    progress: int
    """Grows with every activity begun."""
    activity: str
    busy_sec: float
    """How long it has been at it."""
    step: int
    place: str
    """Host and process id."""
    end: str | None = None
    """Why it stopped, "" for a normal end; None while it runs."""

    def describe(self, rank: int) -> str:
        """Who is doing what, e.g. ``rank 3 (node7, process 12) is saving a checkpoint after step 500``."""
        return f"rank {rank} ({self.place}) is {self.activity} after step {self.step}"


class Activity:
    """What this process is doing right now, noted by the training loop: two assignments each time."""

    def __init__(self) -> None:
        self.step, self._now, self._progress = 0, ("starting", time.monotonic()), 0

    def enter(self, name: str) -> None:
        """Something else begins; ``name`` completes "rank 3 is …"."""
        self._progress += 1
        self._now = (name, time.monotonic())

    def heartbeat(self, beat: int, place: str, end: str | None) -> Heartbeat:
        """The present state, to be published.

        Args:
            beat: number of the publication.
            place: host and process.
            end: why the process stops; None while it runs.
        """
        name, since = self._now
        return Heartbeat(
            beat=beat,
            progress=self._progress,
            activity=name,
            busy_sec=time.monotonic() - since,
            step=self.step,
            place=place,
            end=end,
        )


class PeerLostError(RuntimeError):
    """Another rank ended or froze; the message names it."""


class Watchdog:
    """This rank's listener. Entered, it publishes and listens in a thread of its own until it is left.

    Args:
        config: how patient it is.
        world: this rank among all.
        activity: written by the training loop.
        say: prints a line; called on the main process only.
        session: of this start of the run (`start_process_group`).
    """

    def __init__(
        self, config: FaultsConfig, world: World, activity: Activity, say: Callable[[str], None], session: str
    ):
        self.config, self.world, self.activity, self.say = config, world, activity, say
        self._prefix, self._place = f"session/{session}/heartbeat", f"{socket.gethostname()}, process {os.getpid()}"
        self._beat = 0
        self._end: str | None = None
        self._seen: dict[int, tuple[int, float]] = {}
        """Rank -> its last beat, and when it was first read."""
        self._next_warning_sec = config.slow_after_sec
        self._warned_progress = -1
        self._own = activity.heartbeat(0, self._place, None)
        self._stopping, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="watchdog", daemon=True)
        self._store = _connect(config.dead_after_sec) if world.world_size > 1 else None

    def __enter__(self) -> "Watchdog":
        self._publish()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=2 * self.config.heartbeat_sec)
        if self._end is None:
            self._end = "" if kind is None else f"{kind.__name__}: {error}"
        with suppress(dist.DistError):  # the store may have gone with its rank
            self._publish()

    def explain(self, error: RuntimeError) -> PeerLostError:
        """Names the rank behind a failed exchange between ranks, after waiting for its heartbeat to stay away."""
        self._end = _LOST_A_PEER
        patience_sec = 3 * self.config.heartbeat_sec
        deadline = time.monotonic() + 2 * patience_sec
        while time.monotonic() < deadline:
            try:
                self._publish()
                beats = self._read(range(self.world.world_size))
            except dist.DistError:
                return PeerLostError(_store_is_gone())
            found = self._find_lost(beats, patience_sec)
            if found:
                return PeerLostError(found)
            time.sleep(self.config.heartbeat_sec / 2)
        slowest = min(beats, key=lambda rank: beats[rank].progress)
        return PeerLostError(
            f"an exchange between the ranks failed ({first_line(error)}); least far is "
            f"{beats[slowest].describe(slowest)} for {beats[slowest].busy_sec:.0f} s"
        )

    def _listen(self) -> None:
        """The thread: a beat, then what the others say."""
        failures = 0
        while not self._stopping.wait(self.config.heartbeat_sec):
            try:
                self._publish()
                lost = self._judge() if self.world.is_main else self._obey()
                failures = 0
            except dist.DistError:
                failures += 1
                lost = _store_is_gone() if failures == 3 else None
            if lost and not self._stopping.is_set() and self._end is None:
                self._leave(lost)

    def _judge(self) -> str | None:
        """Rank 0's part: warns of slow ranks, finds lost ones and tells the others."""
        beats = self._read(range(self.world.world_size))
        lost = self._watch_progress(beats) or self._find_lost(
            beats, self.config.dead_after_sec, 3 * self.config.heartbeat_sec
        )
        if lost and self._store is not None:
            self._store.set(f"{self._prefix}/verdict", lost)
        return lost

    def _obey(self) -> str | None:
        """The other ranks' part: rank 0's verdict, or rank 0 itself being lost."""
        assert self._store is not None, "only rank 0 may be alone"
        if self._store.check([f"{self._prefix}/verdict"]):
            return self._store.get(f"{self._prefix}/verdict").decode()
        return self._find_lost(self._read([0]), self.config.dead_after_sec)

    def _find_lost(self, beats: dict[int, Heartbeat], patience_sec: float, end_patience_sec: float = 0.0) -> str | None:
        """The first rank whose heartbeat has not changed for ``patience_sec``, or that ended with an error
        ``end_patience_sec`` ago: a mistake that all ranks meet alike ends this one by itself."""
        now = time.monotonic()
        for rank, beat in beats.items():
            last, since = self._seen.get(rank, (-1, now))
            if last != beat.beat:
                self._seen[rank] = (beat.beat, now)
            elif rank != self.world.rank and beat.end is None and now - since > patience_sec:
                return (
                    f"rank {rank} ({beat.place}) has not been heard of for {now - since:.0f} s; it was last "
                    f"{beat.activity} after step {beat.step}"
                )
        for rank, beat in beats.items():
            if beat.end and beat.end != _LOST_A_PEER and now - self._seen[rank][1] >= end_patience_sec:
                return f"rank {rank} ({beat.place}) stopped after step {beat.step}: {beat.end}"
        return None

    def _watch_progress(self, beats: dict[int, Heartbeat]) -> str | None:
        """Names a rank with the least progress that has been at one thing too long, again after twice the time; where
        others wait for it beyond the time of an exchange, it counts as lost."""
        running = {rank: beat for rank, beat in beats.items() if beat.end is None}
        if not running:
            return None
        least = min(beat.progress for beat in running.values())
        slow = [rank for rank, beat in running.items() if beat.progress == least]
        busy_sec = min(running[rank].busy_sec for rank in slow)
        if least != self._warned_progress:
            self._next_warning_sec, self._warned_progress = self.config.slow_after_sec, least
        others = len(running) - len(slow)
        alike = f", and {len(slow) - 1} more alike" if len(slow) > 1 else ""
        line = f"{running[slow[0]].describe(slow[0])} for {busy_sec:.0f} s{alike}"
        if others and busy_sec > self.config.exchange_timeout_sec:
            return f"{line}, and {others} of {len(running)} ranks wait (training.faults.exchange_timeout_sec)"
        if busy_sec > self._next_warning_sec:
            self._next_warning_sec *= 2
            self.say(f"slow: {line}" + (f"; {others} of {len(running)} ranks are further and wait" if others else ""))
        return None

    def _publish(self) -> None:
        with self._lock:
            self._beat += 1
            self._own = self.activity.heartbeat(self._beat, self._place, self._end)
            if self._store is not None:
                self._store.set(f"{self._prefix}/{self.world.rank}", json.dumps(asdict(self._own)))

    def _read(self, ranks: Iterable[int]) -> dict[int, Heartbeat]:
        """The last heartbeats of ``ranks``, those that have published."""
        if self._store is None:
            return {self.world.rank: self._own}
        keys = {rank: f"{self._prefix}/{rank}" for rank in ranks}
        with self._lock:
            if not self._store.check(list(keys.values())):
                keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
            values = self._store.multi_get(list(keys.values())) if keys else []
        return {rank: Heartbeat(**json.loads(value)) for rank, value in zip(keys, values, strict=True)}

    def _leave(self, lost: str) -> None:
        """Ends this process although its main thread may hang in an exchange."""
        report_lost(self.world, lost)
        os._exit(EXIT_LOST)


def report_lost(world: World, message: str) -> None:
    """Prints that a rank is gone, once: the main process does, or one on each machine if that is the lost one."""
    if world.is_main or (world.local_rank == 0 and "rank 0" in message):
        print(f"error: {message}; the same command resumes", file=sys.stderr, flush=True)


def is_exchange_failure(error: RuntimeError) -> bool:
    """Whether the error is one of an exchange between ranks: gloo raises plain RuntimeError, naming its source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _connect(timeout_sec: float) -> dist.TCPStore:
    """A connection of the watchdog's own: requests of the main thread can hold the one of the process group."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_sec))


def _store_is_gone() -> str:
    return f"the store of the ranks' rendezvous at {rendezvous_address()} (rank 0, or its launcher) is gone"
