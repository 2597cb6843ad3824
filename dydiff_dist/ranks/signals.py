"""Signals that ask a run to stop: they are noted, and the loop saves and leaves at the end of its step."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

_SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None)) if s is not None)

EXIT_UNSAVED = 1
"""Exit status where the grace time ran out before the state was saved."""


class Interruption:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered. A second Ctrl-C leaves at once.

    Args:
        grace_sec: after SIGTERM or SIGUSR1 the process ends this much later at the latest, whatever it is doing: what
            sent the signal will not wait for ever either.
        last_saved: says in a few words what a later start goes on from.
        speaks: whether this process says so.
    """

    def __init__(self, grace_sec: float, last_saved: Callable[[], str], speaks: bool):
        self.grace_sec, self.last_saved, self.speaks = grace_sec, last_saved, speaks
        self.received = 0
        """The first signal that came, 0 if none."""
        self._previous: dict[int, object] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Interruption":
        # The interpreter runs handlers between two of the main thread's instructions, and an exchange between the ranks
        # may keep it from there for long. The number of the signal also goes down this line at once, to a thread.
        self._line, line_end = socket.socketpair()
        line_end.setblocking(False)
        self._line_end, self._previous_fd = line_end, signal.set_wakeup_fd(line_end.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch_line, name="signals", daemon=True).start()
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._line_end.close()  # ends the thread
        if self._timer is not None:
            self._timer.cancel()

    def start_grace(self, number: int) -> None:
        """The grace time of signal ``number`` begins, if it hasn't: where the signal came, and where it is heard of."""
        if number in (0, signal.SIGINT) or self._timer is not None:
            return
        self._timer = threading.Timer(self.grace_sec, self._give_up, (signal.Signals(number).name,))
        self._timer.daemon = True
        self._timer.start()

    def _watch_line(self) -> None:
        while number := self._line.recv(1):
            if number[0] in _SIGNALS:
                self.start_grace(number[0])
        self._line.close()

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            sys.exit(130)
        self.received = self.received or number

    def _give_up(self, name: str) -> None:
        if self.speaks:
            print(
                f"error: the state was not saved within {self.grace_sec:g} s of {name} (training.faults.grace_sec); "
                f"the same command goes on from {self.last_saved()}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_UNSAVED)
