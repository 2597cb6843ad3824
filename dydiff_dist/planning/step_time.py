"""Time of a training step: arithmetic, memory traffic, communication, optimizer; from stated assumptions.

P parameters, N ranks, b bytes of a gradient. A roofline: matrix products at a share of the GPU's peak, all other
operations at a share of its memory bandwidth, collectives as rings over the slowest link on their way.
"""

import math
from dataclasses import dataclass

from pydantic import Field

from dydiff_dist.hardware import GpuModel
from dydiff_dist.planning.memory import Sharding
from dydiff_dist.strict_config import StrictConfig

_OPTIMIZER_BYTES = 7 * 4
"""AdamW reads gradient, master weight and two moments and writes the latter three, float32."""
_AVERAGE_BYTES = 3 * 4
"""A moving average reads weight and average and writes it."""


class Assumptions(StrictConfig):
    """What no data sheet says. None of it was measured on a GPU by this project."""

    matmul_efficiency: float = Field(default=0.6, gt=0, le=1)
    """Share of the GPU's peak that matrix products and attention reach."""
    memory_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of the memory bandwidth that all other operations reach."""
    fused_traffic: float = Field(default=0.5, gt=0, le=1)
    """With execution.compile_blocks: memory traffic that is left of eager's."""
    network_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of the links' bandwidth that collectives reach."""
    network_latency_sec: float = Field(default=1e-5, ge=0)
    """Per collective and doubling of the ranks."""
    overlap: float = Field(default=0.8, ge=0, le=1)
    """Share of the backward pass under which communication can hide, where DeepSpeed overlaps them."""
    host_memory_bandwidth: float = Field(default=2e11, gt=0)
    """Bytes per second of a server's memory, for an offloaded optimizer."""
    memory_reserve: float = Field(default=0.08, ge=0, lt=1)
    """Share of the GPU's memory for context, communication library and fragmentation."""
    time_overhead: float = Field(default=0.05, ge=0)
    """Validation, checkpoints and starts, over the time of the steps."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank has to do in a step."""

    model_flops: float
    """Operations of forward and backward pass over all its micro-batches, nothing counted twice."""
    hardware_flops: float
    """The same with what is recomputed."""
    traffic_bytes: float
    """Memory traffic of everything but matrix products."""
    num_params: int
    num_layers: int
    """Blocks, which stage 3 gathers one by one."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, and what they come from."""

    matrix_sec: float
    memory_sec: float
    communication_sec: float
    """All of it, hidden or not."""
    exposed_sec: float
    """What of the communication is waited for."""
    optimizer_sec: float
    sent_bytes: float
    """By each rank."""
    mfu: float
    """Model FLOPs utilisation: operations of the model over what the GPU could do in the step."""

    @property
    def total_sec(self) -> float:
        """Seconds of the whole step, communication that is hidden left out."""
        return self.matrix_sec + self.memory_sec + self.exposed_sec + self.optimizer_sec


def estimate_step(
    work: Work, sharding: Sharding, gpu: GpuModel, gpus_per_node: int, precision: str, assumptions: Assumptions
) -> StepTime:
    """The time of one step.

    Args:
        work: of each rank.
        sharding: how the run spreads its state over ``sharding.world_size`` GPUs.
        gpu: one of them.
        gpus_per_node: ranks beyond it talk over the network between nodes.
        precision: ``fp32``, ``bf16`` or ``fp16``, which says the GPU's peak.
        assumptions: what no data sheet says.
    """
    peak = gpu.peak_flops(precision)
    matrix = work.hardware_flops / (peak * assumptions.matmul_efficiency)
    memory = work.traffic_bytes / (gpu.memory_bandwidth * assumptions.memory_efficiency)
    sent, num_collectives = communication(work, sharding)
    bandwidth = gpu.link_bandwidth
    if sharding.world_size > gpus_per_node:
        bandwidth = min(bandwidth, gpu.network_bandwidth)
    latency = assumptions.network_latency_sec * math.log2(sharding.world_size) * num_collectives
    network = sent / (bandwidth * assumptions.network_efficiency) + latency
    # two thirds of the arithmetic is the backward pass
    hidden = min(network, assumptions.overlap * 2 / 3 * (matrix + memory)) if sharding.overlaps else 0.0
    optimizer = _optimizer_sec(work, sharding, gpu, gpus_per_node, assumptions)
    total = matrix + memory + network - hidden + optimizer
    return StepTime(
        matrix_sec=matrix,
        memory_sec=memory,
        communication_sec=network,
        exposed_sec=network - hidden,
        optimizer_sec=optimizer,
        sent_bytes=sent,
        mfu=work.model_flops / (total * peak),
    )


def communication(work: Work, sharding: Sharding) -> tuple[float, int]:
    """Bytes that each rank sends in a step, and the number of collectives.

    A ring all-reduce of n bytes sends 2 n (N - 1) / N, a reduce-scatter or all-gather half of it. Stage 0 all-reduces
    gradients; stage 1 reduces them and gathers weights once a step; stage 2 reduces after every micro-batch, because no
    rank could hold the sum; stage 3 also gathers weights for each forward and each backward pass.
    """
    if sharding.world_size == 1:
        return 0.0, 0
    passes = {0: 2, 1: 2, 2: sharding.accumulation + 1, 3: 3 * sharding.accumulation}[sharding.stage]
    whole = work.num_params * sharding.storage_bytes
    sent = passes * whole * (sharding.world_size - 1) / sharding.world_size
    pieces = work.num_layers if sharding.stage == 3 else math.ceil(work.num_params / sharding.reduce_bucket)
    return sent, passes * pieces


def _optimizer_sec(
    work: Work, sharding: Sharding, gpu: GpuModel, gpus_per_node: int, assumptions: Assumptions
) -> float:
    """Reading and writing the optimizer's state and the moving averages; through the host where they lie there."""
    share = sharding.share(work.num_params) if sharding.stage else work.num_params
    touched = share * (_OPTIMIZER_BYTES + _AVERAGE_BYTES)
    if not sharding.optimizer_on_host:
        return touched / (gpu.memory_bandwidth * assumptions.memory_efficiency)
    transfer = 2 * share * sharding.storage_bytes / gpu.host_bandwidth  # gradients there, weights back
    return transfer + touched * min(gpus_per_node, sharding.world_size) / assumptions.host_memory_bandwidth
