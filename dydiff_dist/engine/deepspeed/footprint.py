"""What DeepSpeed's engine holds, moves and sends, by ZeRO stage.

P parameters, N ranks. Weights, gradients and optimizer follow Rajbhandari et al. 2020, section 3; what DeepSpeed keeps
beside them was read in its source (0.19) and measured (tests/training/test_memory_estimate.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dydiff_dist.engine.config import OptimizationConfig, accumulation_steps
from dydiff_dist.engine.deepspeed.config import DEFAULT_BUCKET, offloads, zero_stage
from dydiff_dist.engine.footprint import ADAMW_BYTES, AVERAGE_BYTES, Bytes, Footprint, Memory, UpdateTraffic

_SINGLE = 4
"""Bytes of a float32."""
_DEFAULT_LIVE = 1_000_000_000
"""Elements that stage 3 leaves gathered where the configuration doesn't say."""


@dataclass(frozen=True, kw_only=True)
class ZeroFootprint(Footprint):
    """ZeRO of one stage, with what is offloaded to the host's memory."""

    stage: int
    storage_bytes: int
    """Of one weight or gradient in the network's precision."""
    reduce_bucket: int
    """Elements that are reduced at once."""
    live_params: int
    """Elements of gathered weights that stage 3 holds at most."""
    optimizer_on_host: bool
    weights_on_host: bool
    on_gpu: bool

    def memory(self, parameter_sizes: Sequence[int], activation_bytes: int) -> Memory:
        num_params, stage = sum(parameter_sizes), self.stage
        state = state_bytes(num_params, self.world_size, stage, self.storage_bytes)
        gradients = state.pop("gradients")
        gone = ["weights"] * self.weights_on_host + ["optimizer", "EMA"] * self.optimizer_on_host
        buckets, gathered = self._bucket_bytes(num_params), self._gathered_bytes(num_params)
        stay = gathered + buckets if stage == 3 else 0
        phases = {
            "backward pass, start": {
                "gradients": gradients if self.accumulation > 1 or stage == 3 else 0,
                "activations": activation_bytes,
                # on the CPU, memory that is never written to is never taken: stages 1 and 2 allocate buckets anew each
                # time
                "buffers": gathered + (buckets if self.on_gpu or stage == 3 else 0),
            },
            "backward pass, end": {"gradients": gradients, "activations": 0, "buffers": gathered + buckets},
            "optimizer step": {
                "gradients": gradients,
                "activations": 0,
                "buffers": self._optimizer_buffers(num_params, max(parameter_sizes)) + stay,
            },
        }
        standing = {name: 0 if name in gone else size for name, size in state.items()}
        return Memory(standing=standing, phases=phases, on_host={name: state[name] for name in gone})

    def update_traffic(self, num_params: int) -> UpdateTraffic:
        """As DeepSpeed 0.19 does it.

        Stages 1 and 2, with b bytes of a gradient: every gradient is copied into a bucket, divided by the ranks,
        gathered from the bucket into one tensor to reduce where there are several ranks, and this rank's share copied
        out. One pass over the share says its norm and whether it is finite; it is laid end to end, made float32 and
        scaled. Stage 3 is taken to do the same to its slices, but for a norm of its own and, in float64, a copy for it.
        An offloaded optimizer has its gradients sent to the host, and its new weights back.
        """
        storage, stage = self.storage_bytes, self.stage
        share = self._share(num_params) if stage else num_params
        adam = {"optimizer": ADAMW_BYTES * share, "moving average": AVERAGE_BYTES * share}
        if self.optimizer_on_host:
            return UpdateTraffic(host=adam, transferred=2 * share * storage)
        if stage == 0:
            return UpdateTraffic(device={"checks and norm": 3 * storage * share, **adam})
        copies = (6 * num_params + 4 * share) if self.world_size > 1 else (4 * num_params + 2 * share)
        norm_again = storage + 8 + 8 if stage == 3 else 0
        return UpdateTraffic(
            device={
                "gradients into buckets": storage * copies,
                "checks and norm": (storage + norm_again) * share,
                "float32 gradients": (2 * storage + storage + _SINGLE + 2 * _SINGLE) * share,
                "optimizer": adam["optimizer"],
                "weights": (_SINGLE + storage) * share,
                "moving average": adam["moving average"],
            }
        )

    def communication(self, num_params: int, num_layers: int) -> tuple[float, int]:
        """Stage 0 all-reduces gradients; stage 1 reduces them and gathers weights once a step; stage 2 reduces after
        every micro-batch, because no rank could hold the sum; stage 3 also gathers weights, block by block, for each
        forward and each backward pass."""
        passes = {0: 2, 1: 2, 2: self.accumulation + 1, 3: 3 * self.accumulation}[self.stage]
        sent = passes * num_params * self.storage_bytes * (self.world_size - 1) / self.world_size
        return sent, passes * (num_layers if self.stage == 3 else math.ceil(num_params / self.reduce_bucket))

    def alternatives(self) -> dict[str, Footprint]:
        lowest = 0 if self.storage_bytes == _SINGLE else 1  # stage 0 keeps no float32 weights
        return {f"ZeRO stage {stage}": replace(self, stage=stage) for stage in range(lowest, 4)}

    def facts(self) -> dict[str, int]:
        return {"zero_stage": self.stage}

    def _share(self, count: int) -> int:
        """A rank's part of ``count`` sharded elements."""
        return -(-count // self.world_size)

    def _bucket_bytes(self, num_params: int) -> int:
        """The buckets in which gradients are reduced (stages 1 to 3)."""
        if self.stage == 0:
            return 0
        elements = self.reduce_bucket if self.on_gpu else min(self.reduce_bucket, num_params)
        return self.storage_bytes * elements * (2 if self.overlaps and self.on_gpu else 1)

    def _gathered_bytes(self, num_params: int) -> int:
        """Whole weights that stage 3 holds while the network runs, and until the next pass uses them again."""
        gathers = self.stage == 3 and self.world_size > 1
        return self.storage_bytes * min(self.live_params, num_params) if gathers else 0

    def _optimizer_buffers(self, num_params: int, largest_param: int) -> int:
        """What the optimizer's step needs beside state and gradients: a float32 copy of the gradients (stages 1 to 3),
        and on the CPU two temporaries of AdamW, which runs over one parameter (stage 0) or one flat partition at a
        time; on GPUs its fused kernel needs none."""
        if self.optimizer_on_host:
            return 0
        share = self._share(num_params)
        copy = _SINGLE * share if self.stage else 0
        temporaries = 0 if self.on_gpu else 2 * _SINGLE * (share if self.stage else largest_param)
        return copy + temporaries


def read_footprint(
    section: Mapping[str, Any], training: OptimizationConfig, world_size: int, ranks_per_sample: int, on_gpu: bool
) -> ZeroFootprint:
    """What DeepSpeed makes of the section, with its own defaults; arguments as of `Engine.footprint`.

    Raises:
        ValueError: the batch sizes don't fit the ranks.
    """
    zero, stage = section.get("zero_optimization", {}), zero_stage(section)
    overlaps = zero.get("overlap_comm")
    return ZeroFootprint(
        world_size=world_size,
        stage=stage,
        storage_bytes=bytes_of(training.precision),
        accumulation=accumulation_steps(training, world_size // ranks_per_sample),
        reduce_bucket=int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)),
        live_params=int(zero.get("stage3_max_live_parameters", _DEFAULT_LIVE)),
        overlaps=stage == 3 if overlaps is None else overlaps,
        optimizer_on_host=offloads(section, "optimizer"),
        weights_on_host=offloads(section, "param"),
        on_gpu=on_gpu,
    )


def bytes_of(precision: str) -> int:
    """Of one weight or gradient in ``fp32``, ``bf16`` or ``fp16``."""
    return _SINGLE if precision == "fp32" else 2


def state_bytes(num_params: int, world_size: int, stage: int, storage_bytes: int) -> Bytes:
    """Bytes of weights, gradients and optimizer (float32 master weights, two Adam moments, EMA) on one rank.

    ZeRO stage 1 divides the optimizer between the ranks, 2 also the gradients, 3 also the weights.

    Args:
        num_params: elements of all parameters.
        world_size: ranks.
        stage: 0 to 3.
        storage_bytes: of one weight or gradient.
    """
    share = -(-num_params // world_size)
    master = 0 if stage == 0 else _SINGLE
    return {
        "weights": storage_bytes * (share if stage == 3 else num_params),
        "gradients": storage_bytes * (share if stage >= 2 else num_params),
        "optimizer": (master + 2 * _SINGLE) * (share if stage >= 1 else num_params),
        "EMA": _SINGLE * (share if stage >= 1 else num_params),
    }
