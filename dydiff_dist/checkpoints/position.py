"""Where a run is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunPosition:
    """All of a run's state beside weights, optimizer and averages: two integers, the same on every rank."""

    step: int = 0
    """Optimizer updates done."""
    batches: int = 0
    """Global batches taken from the data's order: ``step``, and more where batches were passed over."""
