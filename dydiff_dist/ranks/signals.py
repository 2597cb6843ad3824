"""Signals that ask a run to stop: they are noted, and the loop saves and leaves at the end of its step."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

EXIT_UNSAVED = 1
"""Exit status where the grace time ran out before the state was saved."""


class Interruption:
    """Notes SIGINT, SIGTERM, SIGUSR1 and SIGHUP (the terminal is closed) while it is entered. A second Ctrl-C leaves at
    once. SIGHUP stays ignored where it was, as under nohup.

    Args:
        grace_sec: after any of them but SIGINT the process ends this much later at the latest, whatever it is doing:
            what sent the signal will not wait for ever either.
        last_saved: says in a few words what a later start goes on from.
        reports: whether this process prints that it gave up.
    """

    def __init__(self, grace_sec: float, last_saved: Callable[[], str], reports: bool):
        self.grace_sec, self.last_saved, self.reports = grace_sec, last_saved, reports
        self.received = 0
        """The first signal that came, 0 if none."""
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Interruption":
        # The interpreter runs handlers between two of the main thread's instructions, and an exchange between the ranks
        # may keep it from there for long. The number of the signal also goes through a socket at once, to a thread.
        self._socket, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        heeded = [n for n in _SIGNALS if n is not signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        threading.Thread(target=self._read_socket, name="signals", daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._wakeup.close()  # ends the thread
        if self._timer is not None:
            self._timer.cancel()

    def start_grace(self, number: int) -> None:
        """The grace time of signal ``number`` begins, if it hasn't: where the signal came, and where it is heard of."""
        if number in (0, signal.SIGINT) or self._timer is not None:
            return
        self._timer = threading.Timer(self.grace_sec, self._give_up, (signal.Signals(number).name,))
        self._timer.daemon = True
        self._timer.start()

    def _read_socket(self) -> None:
        while number := self._socket.recv(1):
            if number[0] in self._previous:
                self.start_grace(number[0])
        self._socket.close()

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            sys.exit(130)
        self.received = self.received or number

    def _give_up(self, name: str) -> None:
        if self.reports:
            print(
                f"error: the state was not saved within {self.grace_sec:g} s of {name} (training.faults.grace_sec); "
                f"the same command goes on from {self.last_saved()}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_UNSAVED)
