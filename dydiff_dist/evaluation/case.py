"""One forecast case as it is scored.

Letters: M members, S_h given and S forecast frames, C channels, H W height and width.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ForecastCase:
    """A forecast beside what happened; all arrays in the same, stored units."""

    number: int
    key: str
    history: np.ndarray
    """(S_h, C, H, W)."""
    truth: np.ndarray
    """(S, C, H, W)."""
    members: np.ndarray
    """(M, S, C, H, W)."""

    @property
    def num_leads(self) -> int:
        """Lead times, S."""
        return len(self.truth)

    def check(self) -> None:
        """Raises a one-line ``ValueError`` that names the case if shapes don't fit or a value is not finite."""
        name = f"case {self.number} ({self.key})"
        if self.members.ndim != 5 or self.members.shape[1:] != self.truth.shape:
            raise ValueError(
                f"{name}: members have shape {self.members.shape}, the truth {self.truth.shape}; expected "
                "(M, S, C, H, W) and (S, C, H, W)"
            )
        for what, values in (("forecast", self.members), ("truth", self.truth), ("history", self.history)):
            num_bad = values.size - int(np.isfinite(values).sum())
            if num_bad:
                raise ValueError(f"{name}: {num_bad} of {values.size} values of the {what} are NaN or infinite")


@dataclass(frozen=True)
class UnreadableCase:
    """A case that can't even be read: it is named and counted like one that can't be scored."""

    number: int
    reason: str
    """One line that names the case."""
