"""The whole estimate of a run: memory by ZeRO stage, time, cost, and the micro-batch that fits."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from dydiff_dist.hardware import GpuModel
from dydiff_dist.models.flops import parameter_count, training_flops
from dydiff_dist.planning.activations import Activations, simulate_activations
from dydiff_dist.planning.memory import MemoryEstimate, Sharding, estimate_memory, sharding_of
from dydiff_dist.planning.step_time import Assumptions, StepTime, Work, estimate_step
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.run_plan import RunPlan, make_plan


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run is planned to happen."""

    gpu: GpuModel
    nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        """Ranks."""
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
        self.plan = _plan(config, cluster)
        self.sharding = sharding_of(config, cluster.num_gpus)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Arguments of models/flops.py that follow from the data."""
        data, schema = self.config.data, self.plan.train_shards.schema
        height, width = data.crop_size or schema.shape[1:]
        return {
            "num_frames": data.num_frames,
            "height": height,
            "width": width,
            "num_channels": schema.shape[0],
            "num_action_channels": schema.num_actions if data.use_actions else 0,
        }

    @cached_property
    def activations(self) -> Activations:
        """Of one sample."""
        return simulate_activations(self.config, self.plan.train_shards.schema)

    @cached_property
    def num_params(self) -> int:
        """P."""
        channels = {name: self.sizes[name] for name in ("num_channels", "num_action_channels")}
        return parameter_count(self.config.model, **channels)

    @property
    def usable_bytes(self) -> float:
        """Of a GPU's memory."""
        return self.cluster.gpu.memory_bytes * (1 - self.assumptions.memory_reserve)

    def memory(self, stage: int | None = None, micro_batch: int | None = None) -> MemoryEstimate:
        """Of one rank; the configuration's ZeRO stage and micro-batch unless others are given."""
        micro_batch = micro_batch or self.config.training.micro_batch_per_gpu
        sharding = self.sharding if stage is None else replace(self.sharding, stage=stage)
        return memory_of(self.config, self.sizes, sharding, self.activations, self.num_params, micro_batch)

    @cached_property
    def step(self) -> StepTime:
        """Time of one step."""
        model, execution = self.config.model, self.config.execution
        samples = self.config.training.global_batch_size / self.cluster.num_gpus
        fused = self.assumptions.fused_traffic if execution.compile_blocks else 1.0
        work = Work(
            model_flops=samples * training_flops(model, **self.sizes),
            hardware_flops=samples
            * training_flops(model, **self.sizes, checkpoint_fraction=execution.checkpoint_fraction),
            # what ranks share of a sample is a part of it, and they take that part of more samples
            traffic_bytes=samples * self.config.ranks_per_sample * self.activations.traffic_bytes * fused,
            num_params=self.num_params,
            num_layers=model.depth,
        )
        return estimate_step(
            work,
            self.sharding,
            self.cluster.gpu,
            self.cluster.gpus_per_node,
            self.config.training.precision,
            self.assumptions,
        )

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.config.training.steps * self.step.total_sec * (1 + self.assumptions.time_overhead) / 3600

    @cached_property
    def largest_micro_batch(self) -> int:
        """Most samples of a micro-batch that fit and divide the global batch over the ranks; 0 if not even one fits."""
        replicas = self.cluster.num_gpus // self.config.ranks_per_sample
        most = self.config.training.global_batch_size // replicas
        sizes = [size for size in range(1, most + 1) if most % size == 0]
        fitting = [size for size in sizes if self.memory(micro_batch=size).peak <= self.usable_bytes]
        return max(fitting, default=0)


def memory_of(
    config: RunConfig,
    sizes: dict[str, int],
    sharding: Sharding,
    activations: Activations,
    num_params: int,
    micro_batch: int,
) -> MemoryEstimate:
    """The memory of one rank with ``micro_batch`` samples at a time."""
    model = config.model
    replicas = sharding.world_size // config.ranks_per_sample
    accumulation = max(1, config.training.global_batch_size // (micro_batch * replicas))
    frame = sizes["num_channels"] * sizes["height"] * sizes["width"]
    return estimate_memory(
        replace(sharding, accumulation=accumulation),
        num_params,
        largest_param=model.width * max(model.mlp_width, 3 * model.width),
        activation_bytes=micro_batch * activations.peak_bytes,
        batch_elements=micro_batch * sizes["num_frames"] * frame,
    )


def _plan(config: RunConfig, cluster: Cluster) -> RunPlan:
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
    return DiffusionTask(make_plan(config, world, may_lack_data=True)).plan
