"""The partitions of a DeepSpeed engine under each ZeRO stage.

Stage 0 keeps every parameter whole on every rank. Stages 1 and 2 lay the parameters of each optimizer group end to end
(padded to a multiple of the ranks) and give each rank one equal partition. Stage 3 cuts each parameter into equal
slices, one a rank (the last padded), and lays a rank's slices of a sub-group end to end.

The names touched here are private to DeepSpeed 0.19; setup.py pins it.
"""

from typing import Any

import torch
from torch import Tensor

from dydiff_dist.engine.partitions import Partitions, Piece, WholeParameters


class _ZeroPartitions(Partitions):
    """What the stages that divide the state have in common: an optimizer of DeepSpeed's around the one that steps."""

    def __init__(self, engine: Any):
        super().__init__(engine.module, engine.optimizer.optimizer, engine.device)
        self._zero = engine.optimizer


class GroupPartitions(_ZeroPartitions):
    """ZeRO stages 1 and 2: each partition is this rank's part of one optimizer group."""

    @property
    def keys(self) -> list[Tensor]:
        return self._zero.single_partition_of_fp32_groups

    def pieces(self, rank: int) -> list[Piece]:
        found = []
        for index, key in enumerate(self.keys):
            begin, end = rank * key.numel(), (rank + 1) * key.numel()
            group = zip(
                self._zero.round_robin_bit16_groups[index], self._zero.round_robin_bit16_offsets[index], strict=True
            )
            for parameter, offset in group:
                first, last = max(begin, offset), min(end, offset + parameter.numel())
                if first < last:
                    name = self._names[id(parameter)]
                    found.append(Piece(name, first - offset, last - first, index, first - begin))
        return found

    def publish(self) -> None:
        self._zero.update_lp_params()


class SlicePartitions(_ZeroPartitions):
    """ZeRO stage 3: each partition is this rank's slices of the parameters of one sub-group."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        # a parameter itself is empty while it is cut into slices
        parameters = self.module.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in parameters}

    @property
    def keys(self) -> list[Tensor]:
        return self._zero.fp32_partitioned_groups_flat

    def pieces(self, rank: int) -> list[Piece]:
        found = []
        for index, group in enumerate(self._zero.fp16_groups):
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
        self._zero.checkpoint_event_prologue()  # small parameters are kept gathered; they go back to slices first
        for index in range(len(self.keys)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        self._zero.checkpoint_event_epilogue()


def partitions_of(engine: Any) -> Partitions:
    """The partitions of an initialised DeepSpeed engine.

    Raises:
        ValueError: a way of keeping the weights that averages and checkpoints don't cover.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0 and isinstance(optimizer, torch.optim.Optimizer):
        return WholeParameters(engine.module, optimizer, engine.device)
    if stage in (1, 2) and hasattr(optimizer, "single_partition_of_fp32_groups"):
        return GroupPartitions(engine)
    if stage == 3:
        on_nvme = optimizer.swap_optimizer or optimizer.params_in_nvme_and_cpu
        if not on_nvme and not hasattr(optimizer, "backup_optimizer"):
            return SlicePartitions(engine)
    raise ValueError(
        f"ZeRO stage {stage} with {type(optimizer).__name__} keeps its float32 weights where averages and checkpoints "
        "don't reach; covered are float32 at stage 0, every precision at stages 1 to 3 with offload to the CPU (not to "
        "NVMe, not in part), and deepspeed.data_types.grad_accum_dtype left out"
    )
