"""One forecast case as it is scored.

Letters: M members, S_h given and S forecast frames, C channels, H W height and width.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ForecastCase:
    """A forecast beside what happened; all arrays in the same, stored units.

    Examples:
        >>> history, truth = np.zeros((2, 1, 8, 8)), np.ones((3, 1, 8, 8))
        >>> case = ForecastCase(0, "storm-00", history, truth, members=np.zeros((4, 3, 1, 8, 8)))
        >>> case.problem()  # none
        >>> case.num_leads
        3
    """

    number: int
    """Names the case's random draws; each number is scored once."""
    key: str
    """Of its sample; what stands before the last hyphen names the event or trajectory it belongs to."""
    history: np.ndarray
    """(S_h, C, H, W)."""
    truth: np.ndarray
    """(S, C, H, W)."""
    members: np.ndarray
    """(M, S, C, H, W)."""

    @property
    def num_leads(self) -> int:
        """S, how many frames are forecast."""
        return len(self.truth)

    def problem(self) -> str | None:
        """Why it can't be scored, in a line that names the case: shapes that don't fit, values that are not finite."""
        name = f"case {self.number} ({self.key})"
        if self.members.ndim != 5 or self.members.shape[1:] != self.truth.shape:
            return (
                f"{name}: members have shape {self.members.shape}, the truth {self.truth.shape}; expected "
                "(M, S, C, H, W) and (S, C, H, W)"
            )
        for what, values in (("forecast", self.members), ("truth", self.truth), ("history", self.history)):
            num_bad = values.size - int(np.isfinite(values).sum())
            if num_bad:
                return f"{name}: {num_bad} of {values.size} values of the {what} are NaN or infinite"
        return None

    def shown_futures(self, num_members: int = 2) -> dict[str, np.ndarray]:
        """What pictures show, (S, C, H, W) by label: the truth, the mean of all members and the first members."""
        members = {f"member {m + 1}": self.members[m] for m in range(min(num_members, len(self.members)))}
        return {"truth": self.truth, "ensemble mean": self.members.mean(axis=0), **members}


@dataclass(frozen=True)
class UnreadableCase:
    """A case that can't even be read: it is named and counted like one that can't be scored."""

    number: int
    reason: str
    """One line that names the case."""

    def problem(self) -> str:
        """Why it can't be scored."""
        return self.reason
