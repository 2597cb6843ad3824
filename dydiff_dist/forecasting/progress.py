"""Progress of a long run over cases: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_SEC = 10.0


class CaseProgress:
    """Counts cases and says rate and time left. Use as a context manager."""

    def __init__(self, task: str, num_cases: int, members_per_case: int = 1, enabled: bool = True):
        """``members_per_case`` above 1 adds members per second; only an enabled one prints."""
        self.task, self.num_cases, self.members_per_case, self.enabled = task, num_cases, members_per_case, enabled
        self.done = 0
        self._start = self._last_line = time.perf_counter()
        on_terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=num_cases, desc=task, unit="case", dynamic_ncols=True) if on_terminal else None

    def advance(self, num_cases: int = 1) -> None:
        """So many more cases are done."""
        self.done += num_cases
        if self._bar is not None:
            self._bar.update(num_cases)
            if self.members_per_case > 1:
                self._bar.set_postfix_str(f"{self._rate() * self.members_per_case:.2f} members/s")
        elif self.enabled and (time.perf_counter() - self._last_line > LINE_EVERY_SEC or self.done == self.num_cases):
            self._last_line = time.perf_counter()
            print(self._line(), flush=True)

    def _rate(self) -> float:
        return self.done / max(time.perf_counter() - self._start, 1e-9)

    def _line(self) -> str:
        rate = self._rate()
        members = f" ({rate * self.members_per_case:.2f} members/s)" if self.members_per_case > 1 else ""
        left = tqdm.format_interval((self.num_cases - self.done) / rate)
        return f"{self.task}: {self.done}/{self.num_cases} cases, {rate:.2f} cases/s{members}, ETA {left}"

    def __enter__(self) -> "CaseProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
