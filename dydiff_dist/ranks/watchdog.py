"""Who is slow, who is gone: every rank says what it is doing, and two threads of each see that none waits for ever.

Each rank publishes a heartbeat in the store of the rendezvous. Rank 0 reads all of them and writes a verdict, which
the others read, so a beat costs each rank two requests. A heartbeat that stops means a dead or frozen process; one that
goes on without progress means a slow one, and the rank with the least progress is the one the others wait for.

One thread talks to the store. Where packets vanish its request may never return, so the other one, which asks nobody,
ends the process when the store has not answered for too long. No other thread makes a request.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from dydiff_dist.errors import SILENCE_SEC
from dydiff_dist.quoting import first_line
from dydiff_dist.ranks.config import FaultsConfig
from dydiff_dist.ranks.launchers import read_launch
from dydiff_dist.ranks.parents import launcher_processes, parent_of
from dydiff_dist.ranks.rendezvous import launcher_keeps_store, rendezvous_address
from dydiff_dist.ranks.reports import say_once
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
    """Another rank ended or froze; the message names it, and `report_lost` has printed it."""


class Watchdog:
    """This rank's listener. Entered, it publishes and listens in threads of its own until it is left.

    Args:
        config: how patient it is.
        world: this rank among all.
        activity: written by the training loop.
        say: prints a line; called on the main process only.
        session: of this start of the run (`start_process_group`).

    Raises:
        PeerLostError: the store is gone already.
    """

    def __init__(
        self, config: FaultsConfig, world: World, activity: Activity, say: Callable[[str], None], session: str
    ):
        self.config, self.world, self.activity, self.say = config, world, activity, say
        self._prefix, self._place = f"session/{session}/heartbeat", f"{socket.gethostname()}, process {os.getpid()}"
        self._beat = 0
        self._end: str | None = None
        self._beats: dict[int, Heartbeat] = {}
        """What was read last."""
        self._seen: dict[int, tuple[int, float]] = {}
        """Rank -> its last beat, and when it was first read."""
        self._heard, self._failures = time.monotonic(), 0
        """When the store last answered, and how often in a row it was not to be had."""
        self._next_warning_sec = config.slow_after_sec
        self._warned_progress = -1
        self._own = activity.heartbeat(0, self._place, None)
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"watchdog {target.__name__}", daemon=True)
            for target in (self._listen, self._guard)
        ]
        self._launcher = launcher_processes(read_launch(os.environ).launcher)
        self._is_orphan = False
        self._store = self._connect() if world.world_size > 1 else None

    def __enter__(self) -> "Watchdog":
        self._heard = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._end is None:
            self._end = "" if kind is None else f"{kind.__name__}: {error}"
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2 * self.config.heartbeat_sec)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """A failed exchange between ranks in the block becomes a `PeerLostError` that names the rank behind it. It is
        printed at once: on the way out this rank waits for its disk, which may take longer than its launcher waits."""
        try:
            yield
        except RuntimeError as error:
            if self.world.world_size > 1 and is_exchange_failure(error):
                lost = self.explain(error)
                report_lost(str(lost))
                raise lost from error
            raise

    def explain(self, error: RuntimeError) -> PeerLostError:
        """Names the rank behind a failed exchange between ranks, after waiting for its heartbeat to stay away."""
        self._end = _LOST_A_PEER
        self._wake.set()
        patience_sec = 3 * self.config.heartbeat_sec
        deadline = time.monotonic() + 2 * patience_sec
        while time.monotonic() < deadline:
            if self._failures:
                return PeerLostError(self._store_is_gone())
            found = self._find_lost(self._beats, patience_sec)
            if found:
                return PeerLostError(found)
            time.sleep(self.config.heartbeat_sec / 2)
        silent_sec, failure = time.monotonic() - self._heard, first_line(error)
        if silent_sec > patience_sec:
            return PeerLostError(
                f"an exchange between the ranks failed ({failure}); {self._store_is_silent(silent_sec)}"
            )
        beats = self._beats or {self.world.rank: self._own}
        slowest = min(beats, key=lambda rank: beats[rank].progress)
        return PeerLostError(
            f"an exchange between the ranks failed ({failure}); least far is "
            f"{beats[slowest].describe(slowest)} for {beats[slowest].busy_sec:.0f} s"
        )

    def _listen(self) -> None:
        """The thread that talks to the store: a beat, then what the others say."""
        while not self._stopping.is_set():
            lost = None
            try:
                lost = self._talk()
                self._heard, self._failures = time.monotonic(), 0
            except dist.DistError:
                self._failures += 1
                if self._failures == 3 and launcher_keeps_store():
                    self._leave_after_saving(f"the launcher of rank 0 at {rendezvous_address()} is gone")
                elif self._failures == 3:
                    lost = self._store_is_gone()
            if lost and not self._stopping.is_set() and self._end is None:
                self._leave(lost)
            self._wake.wait(self.config.heartbeat_sec)
            self._wake.clear()
        with suppress(dist.DistError):  # the store may have gone with its rank
            self._publish()

    def _talk(self) -> str | None:
        """One beat; returns why the run can't go on, None if it can."""
        self._publish()
        if self._end is not None:  # the main thread wants to know about all of them
            self._read(range(self.world.world_size))
            return None
        return self._judge() if self.world.is_main else self._obey()

    def _guard(self) -> None:
        """The thread that asks nobody: ends the process where the store is silent, and a run whose launcher is gone."""
        silent_ticks = 0
        while not self._stopping.wait(min(1.0, self.config.heartbeat_sec)):
            silent_sec = time.monotonic() - self._heard
            # seen twice, as this thread may be the first to run after all of the process stood still
            silent_ticks = silent_ticks + 1 if silent_sec > self.config.dead_after_sec else 0
            # without a connection there is nothing to wait for: `_listen` has seen to it
            if silent_ticks >= 2 and self._store is not None and self._end is None and not self._failures:
                self._leave(self._store_is_silent(silent_sec))
            for process, parent in self._launcher.items():
                if parent_of(process) != parent:
                    self._leave_after_saving(f"process {parent}, which started this run, is gone")

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
        silent = {rank: now - self._seen.get(rank, (beat.beat, now))[1] for rank, beat in beats.items()}
        for rank, beat in beats.items():
            if rank != self.world.rank and beat.end is None and silent[rank] > patience_sec:
                return f"rank {rank} ({beat.place}) has not been heard of for {silent[rank]:.0f} s{self._last_of(beat)}"
        for rank, beat in beats.items():
            if beat.end and beat.end != _LOST_A_PEER and silent[rank] >= end_patience_sec:
                return f"rank {rank} ({beat.place}) stopped after step {beat.step}: {beat.end}"
        return None

    def _last_of(self, beat: Heartbeat) -> str:
        """What a lost rank did last. Ranks make their steps together, so it has done all that this one has; what it
        said of itself may be older than that, and then it is left out."""
        if beat.step < self.activity.step:
            return f"; it was lost after step {self.activity.step}"
        return f"; it was last {beat.activity} after step {beat.step}"

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
        self._beat += 1
        self._own = self.activity.heartbeat(self._beat, self._place, self._end)
        if self._store is not None:
            self._store.set(f"{self._prefix}/{self.world.rank}", json.dumps(asdict(self._own)))

    def _read(self, ranks: Iterable[int]) -> dict[int, Heartbeat]:
        """The last heartbeats of ``ranks``, those that have published."""
        if self._store is None:
            return {self.world.rank: self._own}
        keys = {rank: f"{self._prefix}/{rank}" for rank in ranks}
        if not self._store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        values = self._store.multi_get(list(keys.values())) if keys else []
        beats = {rank: Heartbeat(**json.loads(value)) for rank, value in zip(keys, values, strict=True)}
        for rank, beat in beats.items():
            if self._seen.get(rank, (None, 0.0))[0] != beat.beat:
                self._seen[rank] = (beat.beat, time.monotonic())
        self._beats = {**self._beats, **beats}
        return beats

    def _connect(self) -> dist.TCPStore:
        """A connection of the watchdog's own: requests of the main thread can hold the one of the process group."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=self.config.dead_after_sec)
        try:
            return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        except dist.DistError:
            lost = self._store_is_gone()
            report_lost(lost)
            raise PeerLostError(lost) from None

    def _store_is_gone(self) -> str:
        """The line where the store of the rendezvous refuses its connections: whoever kept it has died."""
        if launcher_keeps_store():
            return f"the launcher of rank 0 at {rendezvous_address()}, which keeps the ranks' rendezvous, is gone"
        first = self._beats.get(0)
        named = f"rank 0 ({first.place})" if first else "rank 0"
        return f"{named}, which keeps the ranks' rendezvous at {rendezvous_address()}, is gone" + (
            self._last_of(first) if first else ""
        )

    def _store_is_silent(self, silent_sec: float) -> str:
        """The line where requests are not answered, nor refused."""
        return (
            f"rank {self.world.rank} ({self._place}) has had no answer from the ranks' rendezvous at "
            f"{rendezvous_address()} for {silent_sec:.0f} s; rank 0's machine, or the network to it, is gone"
        )

    def _leave(self, lost: str) -> None:
        """Ends this process although its main thread may hang in an exchange."""
        report_lost(lost)
        os._exit(EXIT_LOST)

    def _leave_after_saving(self, reason: str) -> None:
        """Ends a run that nobody waits for any more as SIGTERM does: it saves, and has the grace time for that."""
        if not self._is_orphan and self._end is None:
            self._is_orphan = True
            say_once(f"{reason}; saving and leaving", topic="launcher")
            os.kill(os.getpid(), signal.SIGTERM)


def report_lost(message: str) -> None:
    """Prints why a rank leaves that can't go on, once on each machine, and waits until the others there have come to
    the same."""
    if say_once(f"error: {message}; the same command resumes", topic="lost"):
        time.sleep(SILENCE_SEC)


def is_exchange_failure(error: RuntimeError) -> bool:
    """Whether the error is one of an exchange between ranks: gloo raises plain RuntimeError, naming its source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
