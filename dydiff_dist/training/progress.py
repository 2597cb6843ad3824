"""What a run tells people: a progress bar or plain lines; its numbers go to the loggers."""

import io
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dydiff_dist.quoting import first_line
from dydiff_dist.training.loggers import Logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def format_duration(seconds: float) -> str:
    """Two leading units, e.g. ``2 h 05 min``, ``3 min 20 s``, ``12 s``."""
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {sec:02d} s" if minutes else f"{sec} s"


def outlive_readers() -> None:
    """From now on lines that can't be printed are dropped: a terminal that is closed, a pipe that nobody reads or a log
    on a full disk is no reason to end a run, least of all before it has saved."""
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)


def _forgiving(stream: Any) -> Any:
    """A text stream to the same file whose writes can't fail; the stream itself where there is no file behind it."""
    try:
        raw = _ForgivingFile(stream.fileno(), "w", closefd=False)
    except (OSError, AttributeError):
        return stream
    stream.flush()
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)


class _ForgivingFile(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


class RunLog:
    """Prints on the main process: a bar on a terminal, one line per logging step otherwise; scalars to the loggers.

    A logger that fails, as its server is gone, is left out from then on.
    """

    def __init__(self, loggers: Iterable[Logger], *, first_step: int, num_steps: int, enabled: bool):
        self.enabled, self.num_steps, self.loggers = enabled, num_steps, list(loggers)
        self._first_step, self._start = first_step, time.perf_counter()
        on_terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", dynamic_ncols=True) if on_terminal else None

    def advance(self) -> None:
        """Moves the bar on by one step."""
        if self._bar is not None:
            self._bar.update()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Gives scalars to the loggers under their names."""
        self._tell(lambda logger: logger.scalars(step, values))

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        """Gives a matplotlib figure to the loggers under ``name``."""
        self._tell(lambda logger: logger.figure(step, name, figure))

    def rewind(self, step: int) -> None:
        """Sets the bar back: the run goes on from an earlier ``step``."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def progress(self, step: int, facts: str) -> None:
        """The line (or the bar's suffix) of a logging step."""
        if self._bar is not None:
            self._bar.set_postfix_str(facts)
        elif self.enabled:
            sec_per_step = (time.perf_counter() - self._start) / max(1, step - self._first_step)
            eta = format_duration(sec_per_step * (self.num_steps - step))
            print(f"step {step}/{self.num_steps}: {facts}, ETA {eta}", flush=True)

    def say(self, message: str) -> None:
        """One line that stays above the bar."""
        if self.enabled:
            tqdm.write(message) if self._bar is not None else print(message, flush=True)

    def close(self) -> None:
        """Ends the bar and the loggers."""
        if self._bar is not None:
            self._bar.close()
        self._tell(lambda logger: logger.close())

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        for logger in [*self.loggers]:
            try:
                tell(logger)
            except Exception as error:  # each service has errors of its own
                self.loggers.remove(logger)
                self.say(f"{type(logger).__name__} fails and is left out from now on: {first_line(error)}")
