"""Exponential moving average of the weights, kept in float32 where each rank's optimizer keeps its share of them.

Nothing is gathered to update it, so it costs 4 bytes per parameter over all ranks (per rank under ZeRO-0) and no
communication. Its shards are the optimizer's own: whole parameters under stage 0, flat partitions of each parameter
group under stages 1 and 2, a slice of each parameter under stage 3.
"""

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after ``step`` (1-based): grows from 1/10 so that early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class ShardedEMA:
    """Moving average of the float32 weights of a DeepSpeed engine, sharded like its optimizer.

    Args:
        engine: an initialised DeepSpeed engine in float32, or in bf16 with ZeRO stage 1 to 3.
        decay: asymptotic decay per step.
    """

    def __init__(self, engine, decay: float):
        self._engine, self.decay = engine, decay
        self._stage = engine.zero_optimization_stage()
        self.shards = [shard.detach().clone() for shard in self._live_shards()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after optimizer step ``step`` (1-based)."""
        torch._foreach_lerp_(self.shards, self._live_shards(), 1 - decay_at(step, self.decay))

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's shards."""
        return {str(index): shard for index, shard in enumerate(self.shards)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores this rank's shards, of the same stage and number of ranks."""
        for index, shard in enumerate(self.shards):
            shard.copy_(state[str(index)])

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """The full averaged weights by parameter name, float32 on the CPU. Collective: call it on every rank."""
        names = {id(parameter): name for name, parameter in self._engine.module.named_parameters()}
        parameters = list(self._engine.module.parameters())
        if self._stage == 0:
            return {names[id(p)]: shard.cpu().clone() for p, shard in zip(parameters, self.shards, strict=True)}
        if self._stage == 3:
            pairs = zip(parameters, self.shards, strict=True)
            return {names[id(p)]: _gather_flat(shard)[: p.ds_numel].view(p.ds_shape).cpu() for p, shard in pairs}
        weights = {}
        for group, shard in zip(self._engine.optimizer.round_robin_bit16_groups, self.shards, strict=True):
            flat = _gather_flat(shard).cpu()
            pieces = flat[: sum(p.numel() for p in group)].split([p.numel() for p in group])
            weights.update({names[id(p)]: piece.view_as(p).clone() for p, piece in zip(group, pieces, strict=True)})
        return weights

    def _live_shards(self) -> list[Tensor]:
        """This rank's float32 weights as the optimizer holds them."""
        if self._stage == 0:
            return [p.data for p in self._engine.module.parameters()]
        if self._stage == 3:
            return [safe_get_local_fp32_param(p) for p in self._engine.module.parameters()]
        return self._engine.optimizer.single_partition_of_fp32_groups


def _gather_flat(shard: Tensor) -> Tensor:
    """All ranks' shards (of one size, padded at the end) in rank order, flat."""
    if dist.get_world_size() == 1:
        return shard.flatten()
    pieces = [torch.empty_like(shard.flatten()) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, shard.flatten().contiguous())
    return torch.cat(pieces)
