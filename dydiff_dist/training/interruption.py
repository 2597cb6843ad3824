"""Signals that ask a run to stop: they are noted, and the loop saves and leaves at the end of its step."""

import signal
import sys

from dydiff_dist.training.distributed import agree_max

_SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None)) if s is not None)


class Interruption:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered. A second Ctrl-C leaves at once."""

    def __init__(self):
        self._received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that any rank has received, 0 if none; the same answer on every rank."""
        return agree_max(self._received)

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            sys.exit(130)
        self._received = self._received or number
