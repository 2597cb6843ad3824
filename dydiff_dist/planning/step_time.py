"""Time of a training step: the network's kernels, communication, and what the engine does to update the weights.

P parameters, N ranks, b bytes of a gradient. The network is traced launch by launch (``launches.py``) and each is given
the time that its bytes, products, addresses or rows take (``kernel_time.py``); collectives are rings over the slowest
link on their way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from dydiff_dist.engine.footprint import Footprint, UpdateTraffic
from dydiff_dist.hardware import GpuModel
from dydiff_dist.planning.kernel_time import KernelRates
from dydiff_dist.strict_config import StrictConfig


class Assumptions(StrictConfig):
    """What no data sheet says. The rates of kernels were measured on an H100 (docs/launch.md tells where); other GPUs
    are given the same share of their data sheet."""

    matmul_efficiency: float = Field(default=0.807, gt=0, le=1)
    """Share of the GPU's peak that large matrix products reach: 798 of 989 TFLOP/s, a bf16 product of 8192 x 8192."""
    attention_efficiency: float = Field(default=0.489, gt=0, le=1)
    """The same of fused attention, with the tiles that it fills up: 32.2 TFLOP of XL's forward and backward passes in
    66.6 ms."""
    memory_efficiency: float = Field(default=0.899, gt=0, le=1)
    """Share of the memory bandwidth that kernels reach which read straight on: 3.011 of 3.35 TB/s, a copy."""
    addressed_per_byte: float = Field(default=0.0896, gt=0)
    """Elements per byte of memory bandwidth of kernels that work out an address for each element, as torch's do where
    they broadcast, change type or change layout: 3.0e11 per second, 341 float32 products of 28.3 M elements with a
    broadcast factor in 32.2 ms."""
    rows_per_byte: float = Field(default=2.99e-4, gt=0)
    """Rows per byte of memory bandwidth of norms that give each row a thread block: 1.0e9 per second, from the layer
    norms of XL's 72-channel heads, forward and backward."""
    shortest_kernel_sec: float = Field(default=1.4e-6, ge=0)
    """Of a kernel with next to nothing to do: the small ones around this project's own, 5 to 15 a call."""
    network_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of the links' bandwidth that collectives reach; not measured."""
    network_latency_sec: float = Field(default=1e-5, ge=0)
    """Per collective and doubling of the ranks; not measured."""
    overlap: float = Field(default=0.8, ge=0, le=1)
    """Share of the backward pass under which communication can hide, where DeepSpeed overlaps them; not measured."""
    host_memory_bandwidth: float = Field(default=2e11, gt=0)
    """Bytes per second of a server's memory, for an offloaded optimizer; not measured."""
    memory_reserve: float = Field(default=0.08, ge=0, lt=1)
    """Share of the GPU's memory for context, communication library and fragmentation."""
    time_overhead: float = Field(default=0.05, ge=0)
    """Validation, checkpoints and starts, over the time of the steps."""

    def rates(self, gpu: GpuModel, precision: str) -> KernelRates:
        """What kernels of ``gpu`` reach in ``fp32``, ``bf16`` or ``fp16``."""
        peak = gpu.peak_flops(precision)
        return KernelRates(
            copy=gpu.memory_bandwidth * self.memory_efficiency,
            products=peak * self.matmul_efficiency,
            attention=peak * self.attention_efficiency,
            addressed=gpu.memory_bandwidth * self.addressed_per_byte,
            rows=gpu.memory_bandwidth * self.rows_per_byte,
            shortest=self.shortest_kernel_sec,
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank has to do in a step."""

    model_flops: float
    """Operations of forward and backward pass over all its micro-batches, nothing counted twice."""
    network_sec: Mapping[str, float]
    """Seconds of the network's kernels over all its micro-batches, by kind."""
    num_params: int
    """Elements of all parameters."""
    num_layers: int
    """Blocks."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, and what they come from."""

    network_sec: Mapping[str, float]
    """Of the network's kernels, by kind."""
    communication_sec: float
    """All of it, hidden or not."""
    exposed_sec: float
    """What of the communication is waited for."""
    update_sec: Mapping[str, float]
    """Of the engine's update, by part."""
    sent_bytes: float
    """By each rank."""
    mfu: float
    """Model FLOPs utilisation: operations of the model over what the GPU could do in the step."""

    @property
    def total_sec(self) -> float:
        """Seconds of the whole step, communication that is hidden left out."""
        return sum(self.network_sec.values()) + self.exposed_sec + sum(self.update_sec.values())


def estimate_step(
    work: Work, footprint: Footprint, gpu: GpuModel, gpus_per_node: int, precision: str, assumptions: Assumptions
) -> StepTime:
    """The time of one step.

    Args:
        work: of each rank.
        footprint: of the run on ``footprint.world_size`` GPUs.
        gpu: one of them.
        gpus_per_node: ranks beyond it talk over the network between nodes.
        precision: ``fp32``, ``bf16`` or ``fp16``, which says the GPU's peak.
        assumptions: what no data sheet says.
    """
    network = sum(work.network_sec.values())
    sent, num_collectives = (
        footprint.communication(work.num_params, work.num_layers) if footprint.world_size > 1 else (0.0, 0)
    )
    bandwidth = gpu.link_bandwidth
    if footprint.world_size > gpus_per_node:
        bandwidth = min(bandwidth, gpu.network_bandwidth)
    latency = assumptions.network_latency_sec * math.log2(footprint.world_size) * num_collectives
    communicated = sent / (bandwidth * assumptions.network_efficiency) + latency
    # two thirds of the arithmetic is the backward pass
    hidden = min(communicated, assumptions.overlap * 2 / 3 * network) if footprint.overlaps else 0.0
    update = _update_sec(
        footprint.update_traffic(work.num_params), gpu, min(gpus_per_node, footprint.world_size), assumptions
    )
    total = network + communicated - hidden + sum(update.values())
    return StepTime(
        network_sec=work.network_sec,
        communication_sec=communicated,
        exposed_sec=communicated - hidden,
        update_sec=update,
        sent_bytes=sent,
        mfu=work.model_flops / (total * gpu.peak_flops(precision)),
    )


def _update_sec(
    traffic: UpdateTraffic, gpu: GpuModel, ranks_per_host: int, assumptions: Assumptions
) -> dict[str, float]:
    """Passes over gradients, the optimizer's state and the moving average; ranks of a host share its memory."""
    rate = gpu.memory_bandwidth * assumptions.memory_efficiency
    seconds = {part: size / rate for part, size in traffic.device.items()}
    if traffic.transferred:
        seconds["to the host and back"] = traffic.transferred / gpu.host_bandwidth
    for part, size in traffic.host.items():
        seconds[part] = size * ranks_per_host / assumptions.host_memory_bandwidth
    return seconds
