"""The whole estimate of a run: memory, as its state may be divided, time, cost, and the micro-batch that fits."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.footprint import Footprint
from dydiff_dist.hardware import GpuModel
from dydiff_dist.planning.fusion import fuse
from dydiff_dist.planning.kernel_time import by_kind
from dydiff_dist.planning.launches import Launch, NetworkTrace, trace_network
from dydiff_dist.planning.memory import MemoryEstimate, estimate_memory, footprint_of
from dydiff_dist.planning.step_time import Assumptions, StepTime, Work, estimate_step
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.run_plan import make_plan


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run is planned to happen."""

    gpu: GpuModel
    nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes together, a rank on each."""
        return self.nodes * self.gpus_per_node


class RunEstimate:
    """What a run of a forecaster needs on a cluster.

    Args:
        config: the run; its shards, or ``data.expect`` where they are absent, give the sizes.
        cluster: GPUs.
        assumptions: what no data sheet says.

    Raises:
        ValueError, FileNotFoundError: what a run of this configuration on so many GPUs would say.
    """

    def __init__(self, config: RunConfig, cluster: Cluster, assumptions: Assumptions):
        self.config, self.cluster, self.assumptions = config, cluster, assumptions
        task = _checked_task(config, cluster)
        self.plan, self.sizes = task.plan, task.sizes
        self.footprint = footprint_of(config, cluster.num_gpus)

    @cached_property
    def trace(self) -> NetworkTrace:
        """What a micro-batch launches in forward and backward pass, as if one rank had whole samples."""
        return trace_network(self.config, self.sizes, self.config.training.micro_batch_per_gpu)

    @cached_property
    def launches(self) -> list[Launch]:
        """Those of the trace, or what `execution.compile_blocks` leaves of them."""
        return fuse(self.trace) if self.config.execution.compile_blocks else self.trace.launches

    @property
    def activation_bytes(self) -> float:
        """Most that one sample's pass holds on one rank beside weights and gradients."""
        return self.trace.peak_bytes / self.config.training.micro_batch_per_gpu / self.config.ranks_per_sample

    @cached_property
    def parameter_sizes(self) -> list[int]:
        """Number of elements of each of the network's parameters."""
        return self.config.model.parameter_sizes(self.sizes)

    @property
    def division(self) -> str:
        """How the run's engine divides its state between ranks, in a few words."""
        return ENGINES[self.config.engine].describe(self.config.engine_options)

    @property
    def num_params(self) -> int:
        """Elements of all parameters of the network, on all ranks together."""
        return sum(self.parameter_sizes)

    @property
    def usable_bytes(self) -> float:
        """Bytes of a GPU's memory that a run may take: all but ``assumptions.memory_reserve``."""
        return self.cluster.gpu.memory_bytes * (1 - self.assumptions.memory_reserve)

    def memory(self, footprint: Footprint | None = None, micro_batch: int | None = None) -> MemoryEstimate:
        """Peak memory of one rank; footprint (one of its alternatives) and samples of a micro-batch are the
        configuration's unless given."""
        training, sizes = self.config.training, self.sizes
        micro_batch = micro_batch or training.micro_batch_per_gpu
        replicas = self.cluster.num_gpus // self.config.ranks_per_sample
        accumulation = max(1, training.global_batch_size // (micro_batch * replicas))
        return estimate_memory(
            replace(footprint or self.footprint, accumulation=accumulation),
            self.parameter_sizes,
            activation_bytes=micro_batch * self.activation_bytes,
            batch_elements=micro_batch * sizes.num_elements,
        )

    @cached_property
    def step(self) -> StepTime:
        """Seconds of one optimizer step, and what they come from."""
        training, world_size = self.config.training, self.cluster.num_gpus
        micro_batches = training.global_batch_size / training.micro_batch_per_gpu / world_size
        rates = self.assumptions.rates(self.cluster.gpu, training.precision)
        work = Work(
            model_flops=training.global_batch_size / world_size * self.config.model.training_flops(self.sizes),
            # what ranks share of a sample is a part of it, and they take that part of more samples
            network_sec={kind: micro_batches * total.seconds for kind, total in by_kind(self.launches, rates).items()},
            num_params=self.num_params,
            num_layers=self.config.model.num_blocks,
        )
        return estimate_step(
            work,
            self.footprint,
            self.cluster.gpu,
            self.cluster.gpus_per_node,
            training.precision,
            self.assumptions,
        )

    @property
    def hours(self) -> float:
        """Hours of the whole run, with ``assumptions.time_overhead`` for all that is no step."""
        return self.config.training.steps * self.step.total_sec * (1 + self.assumptions.time_overhead) / 3600

    @cached_property
    def largest_micro_batch(self) -> int:
        """Most samples of a micro-batch that fit and divide the global batch over the ranks; 0 if not even one fits."""
        replicas = self.cluster.num_gpus // self.config.ranks_per_sample
        most = self.config.training.global_batch_size // replicas
        sizes = [size for size in range(1, most + 1) if most % size == 0]
        fitting = [size for size in sizes if self.memory(micro_batch=size).peak <= self.usable_bytes]
        return max(fitting, default=0)


def _checked_task(config: RunConfig, cluster: Cluster) -> DiffusionTask:
    """The run as its first rank would check it."""
    # nothing runs, so the machine that plans needs neither GPUs nor what only they can do
    execution = config.execution.model_copy(update={"attention_backend": "sdpa"})
    world = World(
        rank=0,
        world_size=cluster.num_gpus,
        local_rank=0,
        local_world_size=cluster.gpus_per_node,
        device=torch.device("cpu"),
    ).with_ranks_per_sample(config.ranks_per_sample)
    training = config.training
    if training.precision == "fp16":
        training = training.model_copy(update={"precision": "bf16"})
    config = config.model_copy(update={"execution": execution, "training": training})
    return DiffusionTask(make_plan(config, world, may_lack_data=True))
