"""Where a run is."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunPosition:
    """All of a run's state beside weights, optimizer and averages: two integers, the same on every rank."""

    step: int = 0
    """Optimizer updates done."""
    samples: int = 0
    """Samples taken from the data's order: a global batch for each step, and for each batch that was passed over. It
    counts samples, so that a run whose global batch changes still sees each of them once per epoch."""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "RunPosition":
        """The position in a checkpoint's ``complete.json``, of versions too that counted global batches."""
        position = dict(facts["position"])
        if "batches" in position:
            position["samples"] = position.pop("batches") * facts["config"]["training"]["global_batch_size"]
        return cls(**position)
