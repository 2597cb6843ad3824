"""All that an engine needs to go on as if it had never stopped, as ranges of parameters and a few numbers.

The ranges are those of ``partitions.py`` beside this file, one tensor per kind: ``weights`` (float32 masters),
``optimizer.NAME`` (Adam's moments under the optimizer's own names) and ``average.NAME`` (moving averages). A range can
be read back into any other sharding, so neither the number of ranks nor the ZeRO stage need be those of the run that
wrote it.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dydiff_dist.engine.deepspeed.partitions import Piece, engine_shards
from dydiff_dist.engine.ema import ShardedEMA

logger = logging.getLogger(__name__)

AVERAGED = "model"
"""The engine whose weights are averaged and exported."""
WEIGHTS = "weights"
_ENGINE_COUNTS = ("global_steps", "global_samples", "skipped_steps")
_LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

ReadRange = Callable[[str, Piece], Tensor]
"""(kind, piece) -> the piece's elements as a checkpoint has them, flat."""


def average_kind(name: str) -> str:
    """The kind under which a moving average is stored."""
    return f"average.{name}"


class EngineState:
    """The state of one DeepSpeed engine and of the averages of its weights, on this rank.

    Args:
        engine: initialised.
        ema: of this engine's weights, if there is one.
        rank: this process's.
    """

    def __init__(self, engine, ema: ShardedEMA | None, rank: int):
        self._engine, self._ema, self._rank = engine, ema, rank
        self.shards = engine_shards(engine)

    def owned_pieces(self) -> list[Piece]:
        """What this rank is to write of every kind."""
        return self.shards.owned(self._rank)

    def kinds(self) -> dict[str, list[Tensor | None]]:
        """Kind -> this rank's shards, flat, on their devices; None where the optimizer has no moments yet."""
        found: dict[str, list[Tensor | None]] = {WEIGHTS: list(self.shards.weights)}
        states = self._optimizer_states()
        for name in dict.fromkeys(name for state in states for name in state if name != "step"):
            found[f"optimizer.{name}"] = [state[name].view(-1) if name in state else None for state in states]
        for name, shards in self._averages().items():
            found[average_kind(name)] = list(shards)
        return found

    def optimizer_steps(self) -> list[int | None]:
        """Updates that the optimizer has made of each shard; None before the first."""
        return [int(state["step"]) if state else None for state in self._optimizer_states()]

    def layout(self) -> dict[str, Any]:
        """What ``checkpoint_folder.seal`` takes of an engine; the same on every rank."""
        return {"shapes": self.shards.shapes, "kinds": list(self.kinds()), "buffers": list(self.shards.buffers())}

    def numbers(self) -> dict[str, Any]:
        """Counters, position in the learning-rate schedule and loss scale, as JSON types; the same on every rank."""
        numbers = {name: getattr(self._engine, name) for name in _ENGINE_COUNTS}
        numbers["schedule_steps"] = self._engine.lr_scheduler.last_epoch
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if getattr(scaler, "dynamic", False):
            numbers["loss_scale"] = {name: getattr(scaler, name) for name in _LOSS_SCALE_STATE}
        return numbers

    @torch.no_grad()
    def restore(
        self,
        read: ReadRange,
        *,
        kinds: list[str],
        steps: Callable[[str], int | None],
        buffers: dict[str, Tensor],
        numbers: dict[str, Any],
    ) -> None:
        """Takes the state that a checkpoint has. Collective.

        Args:
            read: the checkpoint's ranges.
            kinds: of state that it has.
            steps: parameter name -> updates its optimizer had made of it, None for none.
            buffers: of the network.
            numbers: as ``numbers()`` gave them.
        """
        pieces = self.shards.by_shard(self.shards.pieces(self._rank))
        for shard, own in zip(self.shards.weights, pieces, strict=True):
            _fill(shard, own, lambda piece: read(WEIGHTS, piece))
        moments = [kind.removeprefix("optimizer.") for kind in kinds if kind.startswith("optimizer.")]
        for index, own in enumerate(pieces):
            self._restore_moments(index, own, moments, read, steps)
        for name, shards in self._averages().items():
            kind = average_kind(name)
            if kind not in kinds and self._rank == 0:
                logger.warning("the checkpoint has no average %r; it starts from the checkpoint's weights", name)
            for shard, own in zip(shards, pieces, strict=True):
                _fill(shard, own, lambda piece, kind=kind if kind in kinds else WEIGHTS: read(kind, piece))
        for name, buffer in self.shards.buffers().items():
            buffer.copy_(buffers[name])
        self._restore_numbers(numbers)
        self.shards.publish()

    def _averages(self) -> dict[str, list[Tensor]]:
        return self._ema.averages() if self._ema is not None else {}

    def _optimizer_states(self) -> list[dict[str, Any]]:
        """The optimizer's state of each shard, empty before its first update."""
        state = self.shards.base_optimizer.state
        return [state.get(key, {}) for key in self.shards.keys]

    def _restore_moments(
        self, index: int, pieces: list[Piece], moments: list[str], read: ReadRange, steps: Callable[[str], int | None]
    ) -> None:
        """Adam's moments and step of one shard. Parameters that were never updated have moments of zero."""
        updated = [piece for piece in pieces if steps(piece.name) is not None]
        key, optimizer = self.shards.keys[index], self.shards.base_optimizer
        if not updated and not optimizer.state.get(key):
            return  # the optimizer fills it in at its first update
        state = optimizer.state.setdefault(key, {})
        for name in dict.fromkeys((*moments, *state)):
            if name == "step":
                continue
            if name not in state:
                state[name] = torch.zeros_like(key.data)
            state[name].zero_()  # also where an engine that is further on has more than the checkpoint
            _fill(state[name].view(-1), updated, lambda piece, kind=f"optimizer.{name}": read(kind, piece))
        step = max((steps(piece.name) for piece in updated), default=0)
        if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            state["step"] = step  # DeepSpeed's own optimizers count in plain integers
        elif "step" in state:
            state["step"].fill_(step)
        else:  # torch's count in float32 tensors, on the device where a fused kernel reads them
            on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
            state["step"] = torch.tensor(float(step), device=key.device if on_device else "cpu")

    def _restore_numbers(self, numbers: dict[str, Any]) -> None:
        for name in _ENGINE_COUNTS:
            setattr(self._engine, name, numbers[name])
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if getattr(scaler, "dynamic", False):
            for name, value in numbers.get("loss_scale", {}).items():
                setattr(scaler, name, value)
        # The rate follows from the schedule as it is configured now, so that a changed rate or length takes effect.
        schedule = self._engine.lr_scheduler
        schedule.last_epoch = numbers["schedule_steps"]
        schedule._step_count = schedule.last_epoch + 1
        schedule._last_lr = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate


def _fill(shard: Tensor, pieces: list[Piece], read: Callable[[Piece], Tensor]) -> None:
    """Writes the pieces of a flat shard in place."""
    for piece in pieces:
        shard[piece.offset : piece.offset + piece.length].copy_(read(piece))
