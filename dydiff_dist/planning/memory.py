"""Memory of one rank: what stands all the time, and what the phases of a step add.

P parameters, N ranks. Weights, gradients and optimizer follow Rajbhandari et al. 2020, section 3; what DeepSpeed keeps
beside them was read in its source (0.19) and measured (tests/training/test_memory_estimate.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dydiff_dist.engine.config import accumulation_steps
from dydiff_dist.engine.deepspeed.config import memory_per_rank_bytes, zero_stage
from dydiff_dist.training.config import BaseRunConfig

_SINGLE = 4
"""Bytes of a float32."""
_BATCH_TENSORS = 6
"""Float32 tensors of a micro-batch's size around the network: frames, noisy frames, target, output, its gradient and
one more in between."""
_DEFAULT_BUCKET = 500_000_000
"""Elements of DeepSpeed's communication buckets where the configuration gives none."""
_DEFAULT_LIVE = 1_000_000_000
"""Elements that stage 3 leaves gathered where the configuration doesn't say."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a run spreads its state, from its configuration."""

    world_size: int
    stage: int
    storage_bytes: int
    """Of one weight or gradient in the network's precision."""
    accumulation: int
    reduce_bucket: int = _DEFAULT_BUCKET
    """Elements that are reduced at once."""
    live_params: int = _DEFAULT_LIVE
    """Elements of gathered weights that stage 3 holds at most."""
    overlaps: bool = False
    """Whether gradients travel while the backward pass goes on."""
    optimizer_on_host: bool = False
    weights_on_host: bool = False
    on_gpu: bool = True

    def share(self, count: int) -> int:
        """A rank's part of ``count`` sharded elements."""
        return -(-count // self.world_size)


def sharding_of(config: BaseRunConfig, world_size: int, on_gpu: bool = True) -> Sharding:
    """The sharding that a configuration asks for on ``world_size`` ranks.

    Raises:
        ValueError: another engine than DeepSpeed, or batch sizes that don't fit the number of ranks.
    """
    if config.engine != "deepspeed":
        raise ValueError(f"engine is {config.engine!r}; memory and time can be planned for 'deepspeed' only")
    zero, stage = config.deepspeed.get("zero_optimization", {}), zero_stage(config.deepspeed)
    overlaps = zero.get("overlap_comm")
    return Sharding(
        world_size=world_size,
        stage=stage,
        storage_bytes=_SINGLE if config.training.precision == "fp32" else 2,
        accumulation=accumulation_steps(config.training, world_size // config.ranks_per_sample),
        reduce_bucket=int(zero.get("reduce_bucket_size", _DEFAULT_BUCKET)),
        live_params=int(zero.get("stage3_max_live_parameters", _DEFAULT_LIVE)),
        overlaps=stage == 3 if overlaps is None else overlaps,
        optimizer_on_host=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        weights_on_host=zero.get("offload_param", {}).get("device", "none") != "none",
        on_gpu=on_gpu,
    )


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank at the moment of the step that needs most."""

    parts: dict[str, int]
    """Weights, gradients, optimizer, EMA, activations, buffers; those of the phase that is named."""
    phase: str
    """When the peak is reached."""
    host_parts: dict[str, int]
    """What is offloaded to the host's memory, per rank."""

    @property
    def peak(self) -> int:
        """Bytes of all ``parts`` together."""
        return sum(self.parts.values())


def estimate_memory(
    sharding: Sharding, parameter_sizes: Sequence[int], activation_bytes: float, batch_elements: int
) -> MemoryEstimate:
    """The peak of a training step on one rank.

    Args:
        sharding: of the run.
        parameter_sizes: elements of each parameter, P together.
        activation_bytes: peak of a micro-batch's activations on this rank.
        batch_elements: elements of a micro-batch's frames, B S C H W.
    """
    num_params = sum(parameter_sizes)
    precision = "fp32" if sharding.storage_bytes == _SINGLE else "half"
    state = memory_per_rank_bytes(num_params, sharding.world_size, sharding.stage, precision)
    gradients = state.pop("gradients")
    state, host = _offload(state, sharding)
    activations = round(activation_bytes + _BATCH_TENSORS * _SINGLE * batch_elements)
    buckets, gathered = _bucket_bytes(sharding, num_params), _gathered_bytes(sharding, num_params)
    phases = {
        "backward pass, start": {
            "gradients": gradients if sharding.accumulation > 1 or sharding.stage == 3 else 0,
            "activations": activations,
            # on the CPU, memory that is never written to is never taken: stages 1 and 2 allocate buckets anew each time
            "buffers": gathered + (buckets if sharding.on_gpu or sharding.stage == 3 else 0),
        },
        "backward pass, end": {"gradients": gradients, "activations": 0, "buffers": gathered + buckets},
        "optimizer step": {
            "gradients": gradients,
            "activations": 0,
            "buffers": _optimizer_buffers(sharding, num_params, max(parameter_sizes))
            + (gathered + buckets if sharding.stage == 3 else 0),
        },
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    return MemoryEstimate(parts={**state, **phases[phase]}, phase=phase, host_parts=host)


def _offload(state: dict[str, int], sharding: Sharding) -> tuple[dict[str, int], dict[str, int]]:
    """What stays on the device and what goes to the host."""
    gone = {"optimizer", "EMA"} if sharding.optimizer_on_host else set()
    gone |= {"weights"} if sharding.weights_on_host else set()
    return {name: 0 if name in gone else size for name, size in state.items()}, {name: state[name] for name in gone}


def _bucket_bytes(sharding: Sharding, num_params: int) -> int:
    """The buckets in which DeepSpeed reduces gradients (stages 1 to 3)."""
    if sharding.stage == 0:
        return 0
    elements = sharding.reduce_bucket if sharding.on_gpu else min(sharding.reduce_bucket, num_params)
    return sharding.storage_bytes * elements * (2 if sharding.overlaps and sharding.on_gpu else 1)


def _gathered_bytes(sharding: Sharding, num_params: int) -> int:
    """Whole weights that stage 3 holds while the network runs, and until the next pass uses them again."""
    gathers = sharding.stage == 3 and sharding.world_size > 1
    return sharding.storage_bytes * min(sharding.live_params, num_params) if gathers else 0


def _optimizer_buffers(sharding: Sharding, num_params: int, largest_param: int) -> int:
    """What the optimizer's step needs beside state and gradients: a float32 copy of the gradients (stages 1 to 3), and
    on the CPU two temporaries of AdamW, which runs over one parameter (stage 0) or one flat partition at a time; on
    GPUs its fused kernel needs none."""
    if sharding.optimizer_on_host:
        return 0
    share = sharding.share(num_params)
    copy = _SINGLE * share if sharding.stage else 0
    temporaries = 0 if sharding.on_gpu else 2 * _SINGLE * (share if sharding.stage else largest_param)
    return copy + temporaries
