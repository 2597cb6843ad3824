"""Where an engine keeps its float32 weights and the optimizer's moments: flat partitions, made of ranges of parameters.

A rank holds a few flat float32 tensors, its partitions, and every stretch of one is a range of one parameter: a
``Piece``. Averages, checkpoints and exports speak of pieces only, so they know nothing of engines and ZeRO stages.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A contiguous range of one parameter, elements counted in row-major order, in one of a rank's partitions."""

    name: str
    """The parameter's, as ``named_parameters`` says it."""
    start: int
    """First element within the parameter."""
    length: int
    """Elements."""
    partition: int
    """Index of the partition."""
    offset: int
    """First element within the partition."""


class Partitions(ABC):
    """One engine's float32 state as flat partitions; see the module. A subclass knows one way of dividing it.

    Args:
        module: the network, all of whose parameters are trained.
        optimizer: the one that updates the partitions.
        device: where ranks exchange tensors.

    Raises:
        ValueError: a parameter that is not trained, which no rank would keep.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device):
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        if frozen:
            raise ValueError(
                f"the network has parameters that are not trained ({frozen[0]}, {len(frozen)} in all); keep frozen "
                "networks outside of the trained one"
            )
        self.module, self.optimizer, self._device = module, optimizer, device
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.world_size = dist.get_world_size()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every parameter, by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """The network's persistent buffers, by name; whole on every rank."""
        kept = self.module.state_dict().keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in kept}

    @property
    @abstractmethod
    def keys(self) -> list[Tensor]:
        """The tensors under which ``optimizer.state`` keeps each partition's state."""

    @property
    def weights(self) -> list[Tensor]:
        """This rank's partitions of the float32 weights, flat; writing to them is writing to the optimizer's."""
        return [key.data.view(-1) for key in self.keys]

    @abstractmethod
    def pieces(self, rank: int) -> list[Piece]:
        """What the partitions of ``rank`` hold, padding left out. The same on every rank, without communication."""

    def owned(self, rank: int) -> list[Piece]:
        """The pieces that ``rank`` writes: over all ranks, every element of every parameter once."""
        return self.pieces(rank)

    @abstractmethod
    def publish(self) -> None:
        """Makes the weights that the network computes with those of the partitions. Collective."""

    @torch.no_grad()
    def gather(self, partitions: list[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by parameter name, float32 on the CPU, from every rank's ``partitions``. Collective.

        Args:
            partitions: this rank's, in the layout of ``weights``.
        """
        whole = {name: torch.empty(shape) for name, shape in self.shapes.items()}
        layouts = [self.by_partition(self.pieces(rank)) for rank in range(self.world_size)]
        for index, partition in enumerate(partitions):
            for layout, part in zip(layouts, self._every_ranks(partition), strict=False):
                for piece in layout[index]:
                    source = part[piece.offset : piece.offset + piece.length]
                    whole[piece.name].view(-1)[piece.start : piece.start + piece.length] = source.cpu()
        return whole

    def by_partition(self, pieces: list[Piece]) -> list[list[Piece]]:
        """Pieces of one rank, listed for each of its partitions."""
        listed: list[list[Piece]] = [[] for _ in self.keys]
        for piece in pieces:
            listed[piece.partition].append(piece)
        return listed

    def _every_ranks(self, partition: Tensor) -> list[Tensor]:
        """This partition of every rank, in rank order; they are of one size. The first alone where all are the same."""
        if self.world_size == 1:
            return [partition]
        partition = partition.to(self._device)
        parts = [torch.empty_like(partition) for _ in range(self.world_size)]
        dist.all_gather(parts, partition.contiguous())
        return parts


class WholeParameters(Partitions):
    """Nothing is divided: each partition is a float32 parameter of the network, the same on every rank."""

    @property
    def keys(self) -> list[Tensor]:
        return list(self.module.parameters())

    def pieces(self, rank: int) -> list[Piece]:
        return [Piece(self._names[id(p)], 0, p.numel(), index, 0) for index, p in enumerate(self.keys)]

    def owned(self, rank: int) -> list[Piece]:
        """Each rank writes an equal share of all elements laid end to end."""
        total = sum(key.numel() for key in self.keys)
        return _cut(self.pieces(rank), total * rank // self.world_size, total * (rank + 1) // self.world_size)

    def publish(self) -> None:
        """Nothing to do: the network computes with the partitions themselves."""

    def _every_ranks(self, partition: Tensor) -> list[Tensor]:
        return [partition]


def _cut(pieces: list[Piece], begin: int, end: int) -> list[Piece]:
    """The part of ``pieces``, laid end to end, from element ``begin`` up to ``end``."""
    cut, position = [], 0
    for piece in pieces:
        first, last = max(begin, position), min(end, position + piece.length)
        if first < last:
            skipped = first - position
            start, offset = piece.start + skipped, piece.offset + skipped
            cut.append(replace(piece, start=start, length=last - first, offset=offset))
        position += piece.length
    return cut
