"""Where a DeepSpeed engine keeps its float32 weights and Adam moments, under each ZeRO stage.

Stage 0 keeps every parameter whole on every rank. Stages 1 and 2 lay the parameters of each optimizer group end to end
(padded to a multiple of the ranks) and give each rank one equal partition. Stage 3 cuts each parameter into equal
slices, one a rank (the last padded), and lays a rank's slices of a sub-group end to end. In all cases a rank holds a
few flat float32 tensors, here called shards, and every stretch of a shard is a range of one parameter: a ``Piece``.
Averages, checkpoints and exports speak of pieces only, so they know nothing of stages.

The names touched here are private to DeepSpeed 0.19; setup.py pins it.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A contiguous range of one parameter, elements counted in row-major order, in one of a rank's shards."""

    name: str
    """The parameter's, as ``named_parameters`` says it."""
    start: int
    """First element within the parameter."""
    length: int
    """Elements."""
    shard: int
    """Index of the shard."""
    offset: int
    """First element within the shard."""


class EngineShards:
    """One engine's float32 state as flat shards; see the module. Subclasses know one way of sharding each."""

    def __init__(self, engine):
        self._engine, self._optimizer = engine, engine.optimizer
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        self.world_size = dist.get_world_size()

    @property
    def network(self) -> nn.Module:
        """The network inside the engine."""
        return self._engine.module

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every parameter, by name."""
        return {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.network.named_parameters()
        }

    def buffers(self) -> dict[str, Tensor]:
        """The network's persistent buffers, by name; whole on every rank."""
        kept = self.network.state_dict().keys()
        return {name: buffer for name, buffer in self.network.named_buffers() if name in kept}

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that steps the shards."""
        raise NotImplementedError

    @property
    def keys(self) -> list[Tensor]:
        """The objects under which ``base_optimizer.state`` keeps each shard's state."""
        raise NotImplementedError

    @property
    def weights(self) -> list[Tensor]:
        """This rank's shards of the float32 weights, flat; writing to them is writing to the optimizer's weights."""
        return [key.data.view(-1) for key in self.keys]

    def pieces(self, rank: int) -> list[Piece]:
        """What the shards of ``rank`` hold, padding left out. The same on every rank, without communication."""
        raise NotImplementedError

    def owned(self, rank: int) -> list[Piece]:
        """The pieces that ``rank`` writes: over all ranks, every element of every parameter once."""
        return self.pieces(rank)

    def publish(self) -> None:
        """Makes the weights that the network computes with those of the shards. Collective."""
        raise NotImplementedError

    @torch.no_grad()
    def gather(self, shards: list[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by parameter name, float32 on the CPU, from every rank's ``shards``. Collective.

        Args:
            shards: this rank's, in the layout of ``weights``.
        """
        whole = {name: torch.empty(shape) for name, shape in self.shapes.items()}
        layouts = [self.by_shard(self.pieces(rank)) for rank in range(self.world_size)]
        for index, shard in enumerate(shards):
            for layout, part in zip(layouts, self._every_ranks(shard), strict=False):
                for piece in layout[index]:
                    source = part[piece.offset : piece.offset + piece.length]
                    whole[piece.name].view(-1)[piece.start : piece.start + piece.length] = source.cpu()
        return whole

    def by_shard(self, pieces: list[Piece]) -> list[list[Piece]]:
        """Pieces of one rank, listed for each of its shards."""
        listed: list[list[Piece]] = [[] for _ in self.keys]
        for piece in pieces:
            listed[piece.shard].append(piece)
        return listed

    def _every_ranks(self, shard: Tensor) -> list[Tensor]:
        """This shard of every rank, in rank order; they are of one size. The first alone where all are the same."""
        if self.world_size == 1:
            return [shard]
        shard = shard.to(self._engine.device)
        parts = [torch.empty_like(shard) for _ in range(self.world_size)]
        dist.all_gather(parts, shard.contiguous())
        return parts


class WholeShards(EngineShards):
    """ZeRO stage 0: each shard is a parameter, the same on every rank."""

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    @property
    def keys(self) -> list[Tensor]:
        return list(self.network.parameters())

    def pieces(self, rank: int) -> list[Piece]:
        return [Piece(self._names[id(p)], 0, p.numel(), index, 0) for index, p in enumerate(self.keys)]

    def owned(self, rank: int) -> list[Piece]:
        """Each rank writes an equal share of all elements laid end to end."""
        total = sum(key.numel() for key in self.keys)
        return _cut(self.pieces(rank), total * rank // self.world_size, total * (rank + 1) // self.world_size)

    def publish(self) -> None:
        pass  # the network computes with the shards themselves

    def _every_ranks(self, shard: Tensor) -> list[Tensor]:
        return [shard]


class PartitionShards(EngineShards):
    """ZeRO stages 1 and 2: each shard is this rank's partition of one optimizer group."""

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer.optimizer

    @property
    def keys(self) -> list[Tensor]:
        return self._optimizer.single_partition_of_fp32_groups

    def pieces(self, rank: int) -> list[Piece]:
        found = []
        for index, key in enumerate(self.keys):
            begin, end = rank * key.numel(), (rank + 1) * key.numel()
            group = zip(
                self._optimizer.round_robin_bit16_groups[index],
                self._optimizer.round_robin_bit16_offsets[index],
                strict=True,
            )
            for parameter, offset in group:
                first, last = max(begin, offset), min(end, offset + parameter.numel())
                if first < last:
                    name = self._names[id(parameter)]
                    found.append(Piece(name, first - offset, last - first, index, first - begin))
        return found

    def publish(self) -> None:
        self._optimizer.update_lp_params()


class SliceShards(EngineShards):
    """ZeRO stage 3: each shard is this rank's slices of the parameters of one sub-group."""

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer.optimizer

    @property
    def keys(self) -> list[Tensor]:
        return self._optimizer.fp32_partitioned_groups_flat

    def pieces(self, rank: int) -> list[Piece]:
        found = []
        for index, group in enumerate(self._optimizer.fp16_groups):
            offset = 0
            for parameter in group:
                slice_numel = parameter.partition_numel()
                start = rank * slice_numel
                length = min(slice_numel, parameter.ds_numel - start)
                if length > 0:
                    found.append(Piece(self._names[id(parameter)], start, length, index, offset))
                offset += slice_numel
        return found

    def publish(self) -> None:
        optimizer = self._optimizer
        optimizer.checkpoint_event_prologue()  # small parameters are kept gathered; they go back to slices first
        for index in range(len(self.keys)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()


def engine_shards(engine) -> EngineShards:
    """The shards of an initialised DeepSpeed engine.

    Raises:
        ValueError: a way of keeping the weights that averages and checkpoints don't cover.
    """
    frozen = [name for name, parameter in engine.module.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"the network has parameters that are not trained ({frozen[0]}, {len(frozen)} in all); keep frozen "
            "networks outside of the trained one"
        )
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0 and isinstance(optimizer, torch.optim.Optimizer):
        return WholeShards(engine)
    if stage in (1, 2) and hasattr(optimizer, "single_partition_of_fp32_groups"):
        return PartitionShards(engine)
    if stage == 3:
        on_nvme = optimizer.swap_optimizer or optimizer.params_in_nvme_and_cpu
        if not on_nvme and not hasattr(optimizer, "backup_optimizer"):
            return SliceShards(engine)
    raise ValueError(
        f"ZeRO stage {stage} with {type(optimizer).__name__} keeps its float32 weights where averages and checkpoints "
        "don't reach; covered are float32 at stage 0, every precision at stages 1 to 3 with offload to the CPU (not to "
        "NVMe, not in part), and deepspeed.data_types.grad_accum_dtype left out"
    )


def _cut(pieces: list[Piece], begin: int, end: int) -> list[Piece]:
    """The part of ``pieces``, laid end to end, from element ``begin`` up to ``end``."""
    cut, position = [], 0
    for piece in pieces:
        first, last = max(begin, position), min(end, position + piece.length)
        if first < last:
            skipped = first - position
            cut.append(Piece(piece.name, piece.start + skipped, last - first, piece.shard, piece.offset + skipped))
        position += piece.length
    return cut
