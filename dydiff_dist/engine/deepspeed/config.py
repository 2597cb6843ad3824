"""DeepSpeed's configuration, derived from ours in one place and checked there."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from dydiff_dist.engine.config import OptimizationConfig, accumulation_steps

DEFAULT_BUCKET = 500_000_000
"""Elements of DeepSpeed's bucket of gradients."""
_DERIVED = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_per_gpu",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_per_gpu",
    "gradient_clipping": "training.gradient_clipping",
    "bf16": "training.precision",
    "fp16": "training.precision and loss_scale",
    "optimizer": "training.optimizer, learning_rate, betas and weight_decay",
    "scheduler": "training.schedule and training.warmup_steps",
    "steps_per_print": "training.log_every_steps",
}
"""DeepSpeed keys that follow from ours -> where to set them."""

_PASSED_ON = {
    "zero_optimization",
    "activation_checkpointing",
    "aio",
    "checkpoint",
    "comms_logger",
    "communication_data_type",
    "data_types",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
"""DeepSpeed's own top-level keys that make sense here. It ignores unknown ones silently, so they are checked here."""


def zero_stage(section: Mapping[str, Any]) -> int:
    """The ZeRO stage of the configuration's ``deepspeed`` section (0 if none is given)."""
    return section.get("zero_optimization", {}).get("stage", 0)


def offloads(section: Mapping[str, Any], what: str) -> bool:
    """Whether the section puts ``optimizer`` or ``param`` (the weights) into the host's memory."""
    return section.get("zero_optimization", {}).get(f"offload_{what}", {}).get("device", "none") != "none"


def check_deepspeed(section: Mapping[str, Any], training: OptimizationConfig) -> None:
    """Refuses keys that DeepSpeed would ignore, keys that follow from ours, and stages that don't fit the precision.

    Raises:
        ValueError: naming the key and what to set instead.
    """
    for key in section:
        if key in _DERIVED:
            raise ValueError(f"deepspeed.{key} follows from {_DERIVED[key]}; set that and remove this key")
        if key not in _PASSED_ON:
            nearest = difflib.get_close_matches(key, _PASSED_ON, n=1, cutoff=0.5)
            hint = f"did you mean 'deepspeed.{nearest[0]}'?" if nearest else f"valid keys: {sorted(_PASSED_ON)}"
            raise ValueError(f"unknown key 'deepspeed.{key}'; {hint}")
    _check_sections(section)
    stage = zero_stage(section)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"deepspeed.zero_optimization.stage is {stage!r}; it must be 0, 1, 2 or 3")
    if stage == 0 and training.precision != "fp32":
        raise ValueError(
            f"training.precision {training.precision!r} needs float32 master weights, which ZeRO stages 1 to 3 keep; "
            "set deepspeed.zero_optimization.stage to 1"
        )


def _check_sections(section: Mapping[str, Any]) -> None:
    """Refuses values where DeepSpeed has sections that are read here."""
    examples = {"": '{"stage": 2}', ".offload_optimizer": '{"device": "cpu"}', ".offload_param": '{"device": "cpu"}'}
    zero = section.get("zero_optimization", {})
    for key, example in examples.items():
        value = zero.get(key[1:], {}) if key else zero
        if not isinstance(value, Mapping):
            raise ValueError(f"deepspeed.zero_optimization{key} is {value!r}; it must be a section, e.g. {example}")


def check_device(section: Mapping[str, Any], training: OptimizationConfig, device_type: str) -> None:
    """Refuses what DeepSpeed can't do on this kind of device: fp16 on CPUs without fp16 products (as DeepSpeed itself
    does), and its CPU optimizer for weights on a GPU.

    Args:
        section: ``deepspeed`` of the run configuration.
        training: of the run.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        ValueError: naming the alternatives.
    """
    if training.precision == "fp16" and device_type == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise ValueError(
            "training.precision is 'fp16', which DeepSpeed refuses on this CPU, as it has no fp16 arithmetic; set bf16 "
            "or fp32, or train on a GPU"
        )
    if training.optimizer == "deepspeed_cpu_adam" and device_type != "cpu" and not offloads(section, "optimizer"):
        raise ValueError(
            "training.optimizer 'deepspeed_cpu_adam' updates weights in the host's memory; set "
            'deepspeed.zero_optimization.offload_optimizer={"device": "cpu"}, or another optimizer'
        )


def derive_deepspeed(
    section: Mapping[str, Any], training: OptimizationConfig, world_size: int, ranks_per_sample: int = 1
) -> dict[str, Any]:
    """The dictionary handed to DeepSpeed: the passed-on section and everything that follows from ``training``.

    Of ranks that share their samples DeepSpeed is not told: it averages gradients over all ranks, which is what
    `dydiff_dist.models.sequence_parallel` asks for, and each of them counts as one with a batch of its own.

    Args:
        section: ``deepspeed`` of the run configuration.
        training: of the run.
        world_size: all ranks.
        ranks_per_sample: that share their samples.

    Raises:
        ValueError: as `check_deepspeed`, or the batch sizes don't fit the ranks.
    """
    check_deepspeed(section, training)
    return {
        **section,
        "train_batch_size": training.global_batch_size * ranks_per_sample,
        "train_micro_batch_size_per_gpu": training.micro_batch_per_gpu,
        "gradient_accumulation_steps": accumulation_steps(training, world_size // ranks_per_sample),
        "gradient_clipping": training.gradient_clipping,
        # the trainer has looked for NaN by then; DeepSpeed would look at each gradient again, and wait for the answer
        "bf16": {"enabled": training.precision == "bf16", "check_grad_overflow": False},
        "fp16": {"enabled": training.precision == "fp16", "loss_scale": training.loss_scale},
        # DeepSpeed would insist on its own CPU optimizer beside offloading, which not every machine can compile
        "zero_force_ds_cpu_optimizer": section.get("zero_force_ds_cpu_optimizer", False),
        "steps_per_print": training.steps + 1,  # our own log lines say more
    }


def fit_bucket(section: Mapping[str, Any], num_params: int) -> dict[str, Any]:
    """The section with a bucket for gradients of no more elements than there are parameters, where it gives none.

    DeepSpeed asks the system for all of a bucket, 500 million elements by default. What is never written to is no
    memory of the machine, but a limit on addresses (``ulimit -v``) counts it.
    """
    zero = section.get("zero_optimization", {})
    bucket = {"reduce_bucket_size": max(1, min(DEFAULT_BUCKET, num_params))}
    return {**section, "zero_optimization": {**bucket, **zero}} if zero.get("stage", 0) else dict(section)
