"""Batches whose loss or gradient is not finite: all ranks agree on it before the update, which is left out.

What was in the batch goes to a JSON file, so that the samples can be looked at. Too many in a row end the run, or take
it back to its last checkpoint, past the batches that did it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dydiff_dist.checkpoints.position import RunPosition
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.errors import SharedError
from dydiff_dist.files import parse_sealed, read_document_bytes, seal, write_json
from dydiff_dist.ranks.collectives import gather_objects
from dydiff_dist.ranks.world import World
from dydiff_dist.training.config import NonFiniteConfig
from dydiff_dist.training.task import MicroLoss


@dataclass
class StepRecord:
    """One step of this rank until its update: what was read and what it cost."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    """Key and index of every sample, in order."""
    parts: list[MicroLoss] = field(default_factory=list)
    wait_sec: float = 0.0
    """Time spent waiting for data."""

    def read(self, batch: dict[str, Any]) -> None:
        """Notes which samples a micro-batch has."""
        indices = batch["sample_index"].tolist()
        self.samples += [{"key": k, "sample_index": i} for k, i in zip(batch["key"], indices, strict=True)]

    @property
    def networks(self) -> list[str]:
        """The networks that a loss was named for, in order."""
        return list(dict.fromkeys(part.network for part in self.parts))


class NonFiniteGuard:
    """Counts bad batches of a run and decides what happens to it.

    Args:
        config: how many in a row are too many, and what to do then.
        folder: of the JSON files, made where needed.
        world: the ranks.
        global_batch_size: samples of a batch, by which batches are numbered.
    """

    def __init__(self, config: NonFiniteConfig, folder: Path, world: World, global_batch_size: int):
        self.config, self.folder, self.world, self.global_batch_size = config, folder, world, global_batch_size
        self.num_skipped, self._in_a_row, self._num_rollbacks = 0, 0, 0

    def is_bad(self, record: StepRecord, engines: Mapping[str, Engine]) -> bool:
        """Whether a loss or a gradient on this rank is not finite.

        Args:
            record: a step after its last backward pass.
            engines: by network.
        """
        losses = torch.stack([part.loss.detach().float() for part in record.parts])
        # every engine is asked, as some leave a norm behind
        finite = [engines[name].gradients_are_finite() for name in record.networks]
        return not (losses.isfinite().all() and all(finite))

    def passed(self) -> None:
        """Notes that a batch was good, which ends the row of bad ones."""
        self._in_a_row = 0

    def judge(self, record: StepRecord, position: RunPosition) -> tuple[Literal["skip", "rollback"], str]:
        """Records a batch that the ranks have agreed is bad; returns what to do, and a line that says so. Collective.

        Raises:
            SharedError: the run should not go on.
        """
        self.num_skipped += 1
        self._in_a_row += 1
        path = self._write(record, position)
        number = self.batch_number(position)
        line = f"batch {number} after step {position.step}: loss or gradient not finite, skipped (see {path})"
        if self._in_a_row < self.config.max_in_a_row:
            return "skip", line
        line = f"{self._in_a_row} batches in a row with a loss or gradient that is not finite, the last after step "
        line += f"{position.step} (see {self.folder})"
        if self.config.action == "stop":
            raise SharedError(
                f"{line}; lower training.learning_rate or training.gradient_clipping, or look at these samples. The "
                "same command goes on from the last checkpoint, and with training.nonfinite.action=rollback past them"
            )
        if self._num_rollbacks == self.config.max_rollbacks:
            raise SharedError(
                f"{line}, after {self._num_rollbacks} rollbacks, as many as training.nonfinite.max_rollbacks allows; "
                "lower training.learning_rate"
            )
        self._num_rollbacks += 1
        self._in_a_row = 0
        return "rollback", line

    def batch_number(self, position: RunPosition) -> int:
        """Number of the global batch at a position."""
        return position.samples // self.global_batch_size

    def record_rollback(self, loaded: RunPosition, now: RunPosition) -> None:
        """Notes beside the bad batches where the data go on, for a start from the same checkpoint."""
        if self.world.is_main:
            note = {
                "checkpoint_step": loaded.step,
                "next_sample": now.samples,
                "next_batch": self.batch_number(now),
            }
            write_json(self._rollback_path, seal(note), indent=None)

    def after_rollback(self, loaded: RunPosition) -> RunPosition:
        """The position to go on from after a start: past what a rollback to this very checkpoint went past."""
        if not self._rollback_path.is_file():
            return loaded
        remedy = "delete it to go on with the checkpoint's own next batch"
        note = parse_sealed(read_document_bytes(self._rollback_path), str(self._rollback_path), remedy)
        if note["checkpoint_step"] != loaded.step:
            return loaded
        next_sample = note.get("next_sample", note["next_batch"] * self.global_batch_size)  # absent from older notes
        return replace(loaded, samples=max(loaded.samples, next_sample))

    @property
    def _rollback_path(self) -> Path:
        return self.folder / "rollback.json"

    def _write(self, record: StepRecord, position: RunPosition) -> Path:
        """Every rank's samples with their losses, in one file written by the main process."""
        path = self.folder / f"batch_{self.batch_number(position):06d}.json"
        finite = all(bool(part.loss.isfinite()) for part in record.parts)
        mine = {"rank": self.world.rank, "losses_finite": finite, "samples": _samples(record)}
        ranks = gather_objects(mine)
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            report = {"after_step": position.step, "batch": self.batch_number(position), "ranks": ranks}
            write_json(path, report, allow_nan=False)
        return path


def _samples(record: StepRecord) -> list[dict[str, Any]]:
    """Key, index and values of every sample of a step on this rank."""
    rows = [dict(sample) for sample in record.samples]
    for name in dict.fromkeys(name for part in record.parts for name in part.per_sample):
        values = torch.cat([part.per_sample[name] for part in record.parts if name in part.per_sample]).tolist()
        if len(values) == len(rows):  # not so for a loss that some micro-batches lack
            for row, value in zip(rows, values, strict=True):
                row[name] = value if math.isfinite(value) else str(value)
    return rows
