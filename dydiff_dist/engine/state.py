"""All that an engine needs to go on as if it had never stopped, as ranges of parameters and a few numbers.

The ranges are pieces of the engine's partitions, one tensor per kind: ``weights`` (float32 masters), ``optimizer.NAME``
(Adam's moments under the optimizer's own names) and ``average.ema`` (the moving average). A range can be read back into
any other partitions, so neither the number of ranks nor the ZeRO stage need be those of the run that wrote it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dydiff_dist.engine.ema import EMA
from dydiff_dist.engine.partitions import Piece
from dydiff_dist.engine.protocol import Engine

AVERAGED = "model"
"""The engine whose weights are averaged and exported."""
WEIGHTS, AVERAGE = "weights", "average.ema"

ReadRange = Callable[[str, Piece], Tensor]
"""(kind, piece) -> the piece's elements as a checkpoint has them, flat."""


class EngineState:
    """The state of one engine and of the average of its weights, on this rank.

    Args:
        engine: whose state is kept.
        ema: of this engine's weights, if there is one.
        rank: this process's.
    """

    def __init__(self, engine: Engine, ema: EMA | None, rank: int):
        self.engine, self._ema, self._rank = engine, ema, rank
        self.partitions = engine.partitions

    def kinds(self) -> dict[str, list[Tensor | None]]:
        """Kind -> this rank's partitions, flat, on their devices; None where the optimizer has no moments yet."""
        found: dict[str, list[Tensor | None]] = {WEIGHTS: list(self.partitions.weights)}
        states = self._optimizer_states()
        for name in dict.fromkeys(name for state in states for name in state if name != "step"):
            found[f"optimizer.{name}"] = [state[name].view(-1) if name in state else None for state in states]
        if self._ema is not None:
            found[AVERAGE] = list(self._ema.weights)
        return found

    def optimizer_steps(self) -> list[int | None]:
        """Updates that the optimizer has made of each partition; None before the first."""
        return [int(state["step"]) if state else None for state in self._optimizer_states()]

    def layout(self) -> dict[str, Any]:
        """The engine's part of a checkpoint's ``layout.json`` (``checkpoints/folder.py``), the same on every rank:
        parameters' shapes by name, kinds of state, names of buffers."""
        buffers = list(self.partitions.buffers())
        return {"shapes": self.partitions.shapes, "kinds": list(self.kinds()), "buffers": buffers}

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
            numbers: as ``Engine.numbers`` gave them.
        """
        pieces = self.partitions.by_partition(self.partitions.pieces(self._rank))
        moments = [kind.removeprefix("optimizer.") for kind in kinds if kind.startswith("optimizer.")]
        for index, (weights, own) in enumerate(zip(self.partitions.weights, pieces, strict=True)):
            _fill(weights, own, WEIGHTS, read)
            self._restore_moments(index, own, moments, read, steps)
        if self._ema is not None:
            for average, own in zip(self._ema.weights, pieces, strict=True):
                _fill(average, own, AVERAGE, read)
        for name, buffer in self.partitions.buffers().items():
            buffer.copy_(buffers[name])
        self.engine.restore_numbers(numbers)
        self.partitions.publish()

    def _optimizer_states(self) -> list[dict[str, Any]]:
        """The optimizer's state of each partition, empty before its first update."""
        state = self.partitions.optimizer.state
        return [state.get(key, {}) for key in self.partitions.keys]

    def _restore_moments(
        self, index: int, pieces: list[Piece], moments: list[str], read: ReadRange, steps: Callable[[str], int | None]
    ) -> None:
        """Adam's moments and step of one partition. Parameters that were never updated have moments of zero."""
        updated = [piece for piece in pieces if steps(piece.name) is not None]
        key, optimizer = self.partitions.keys[index], self.partitions.optimizer
        if not updated and not optimizer.state.get(key):
            return  # the optimizer fills it in at its first update
        state = optimizer.state.setdefault(key, {})
        for name in dict.fromkeys((*moments, *state)):
            if name == "step":
                continue
            if name not in state:
                state[name] = torch.zeros_like(key.data)
            state[name].zero_()  # also where an engine that is further on has more than the checkpoint
            _fill(state[name].view(-1), updated, f"optimizer.{name}", read)
        step = max((steps(piece.name) or 0 for piece in updated), default=0)
        if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            state["step"] = step  # DeepSpeed's own optimizers count in plain integers
        elif "step" in state:
            state["step"].fill_(step)
        else:  # torch's count in float32 tensors, on the device where a fused kernel reads them
            on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
            state["step"] = torch.tensor(float(step), device=key.device if on_device else "cpu")


def _fill(partition: Tensor, pieces: list[Piece], kind: str, read: ReadRange) -> None:
    """Writes the pieces of a flat partition in place."""
    for piece in pieces:
        partition[piece.offset : piece.offset + piece.length].copy_(read(kind, piece))
