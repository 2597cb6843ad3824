"""What a run will be, checked before anything large is built: configuration, data, network, memory, ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dydiff_dist.autoencoders.description import pixel_data
from dydiff_dist.data.augment import check_against_schema
from dydiff_dist.data.expected import check_expectation, expected_shards
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.engine.deepspeed.config import check_deepspeed, check_device, zero_stage
from dydiff_dist.engine.optimizer import num_parameters
from dydiff_dist.planning.memory import memory_per_rank_bytes
from dydiff_dist.ranks.world import World
from dydiff_dist.run_config import BaseRunConfig, RunConfig
from dydiff_dist.training.config import accumulation_steps

if TYPE_CHECKING:
    from dydiff_dist.training.task import Task

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A validated run: its configuration, its data opened, its ranks."""

    config: BaseRunConfig
    world: World
    train_shards: ShardSet
    valid_shards: ShardSet | None
    data_is_absent: bool = False
    """Whether the training shards are those of ``data.expect``, because the folder does not exist."""

    @property
    def network_dtype(self) -> torch.dtype:
        """Storage of the network's weights and activations."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.training.precision]

    @property
    def frame_autocovariance(self) -> tuple[float, ...]:
        """E[x^s x^{s+m}] of the training data in network units at the lags the network sees."""
        stored = self.train_shards.manifest.statistics.frame_autocovariance
        return stored[:: self.config.data.frame_stride][: self.config.data.num_frames]

    @property
    def data_schema(self) -> dict[str, Any]:
        """What an exported model must know about its data."""
        manifest = self.train_shards.manifest
        return {
            **manifest.frames.model_dump(mode="json"),
            "shift": list(manifest.shift),
            "scale": list(manifest.scale),
            "source": manifest.source,
            "frame_autocovariance": list(self.frame_autocovariance),
        }

    def check_same_run(self, saved: dict[str, Any]) -> None:
        """Refuses to resume a checkpoint of another run.

        Args:
            saved: the configuration stored with the checkpoint.

        Raises:
            ValueError: naming the first key that differs.
        """
        present, chosen = (self.config.model_dump(mode="json", exclude_defaults=left_out) for left_out in (False, True))
        for section in self.config.fixed_sections:
            found = _differences(saved[section], present[section], chosen.get(section), section)
            for key, (old, new) in found.items():
                raise ValueError(
                    f"{self.config.output_dir} holds a run with {key} = {old!r}, the configuration says {new!r}; set "
                    "output_dir to a new folder, or delete the old one"
                )


def make_plan(config: BaseRunConfig, world: World, may_lack_data: bool = False) -> RunPlan:
    """Opens the data and checks all that doesn't depend on what is trained.

    Args:
        config: the run.
        world: its ranks.
        may_lack_data: plan with ``data.expect`` where the training shards' folder does not exist; such a plan can be
            described, not run.

    Raises:
        ValueError, FileNotFoundError: one line with what is wrong and what to change.
    """
    world = world.with_ranks_per_sample(config.ranks_per_sample)
    accumulation_steps(config.training, world.num_replicas)
    check_deepspeed(config.deepspeed, config.training)
    check_device(config.deepspeed, config.training, world.device.type)
    data = config.data
    absent = may_lack_data and data.expect is not None and "://" not in data.train and not Path(data.train).exists()
    how = {"remote": data.remote, "use_actions": data.use_actions}
    train = expected_shards(data.expect, data.train) if absent else ShardSet.open(data.train, **how)
    valid = ShardSet.open(data.valid, **how) if data.valid and not absent else None
    if data.expect is not None and not _encodes_frames(config, train):
        check_expectation(data.expect, train)
    check_against_schema(config.data, train.schema, str(train.folder))
    if valid is not None:
        _check_validation_data(config, train, valid)
    return RunPlan(config=config, world=world, train_shards=train, valid_shards=valid, data_is_absent=absent)


def _encodes_frames(config: BaseRunConfig, train: ShardSet) -> bool:
    """Whether the run expects latents and is given frames, which it then encodes in every step."""
    takes_latents = isinstance(config, RunConfig) and config.autoencoder is not None
    return takes_latents and config.data.expect.frames.has_logvar and train.manifest.latents is None


def _check_validation_data(config: BaseRunConfig, train: ShardSet, valid: ShardSet) -> None:
    """Validation shards hold frames like the training shards', or like those that the training latents were made of."""
    data, trained_on, latents = config.data, train.schema, train.manifest.latents
    if valid.manifest.latents is not None:
        raise ValueError(
            f"data.valid {valid.folder} holds latents; forecasts are decoded and scored as frames, so give the shards "
            "that those latents were made from"
        )
    if latents is not None:
        data, trained_on = pixel_data(data, latents.temporal_ratio), latents.source_frames
    check_against_schema(data, valid.schema, str(valid.folder))
    found = (valid.schema.shape, valid.schema.num_actions)
    expected = (trained_on.shape, trained_on.num_actions if data.use_actions else 0)
    if found != expected:
        raise ValueError(
            f"{valid.folder} has frames {found[0]} and {found[1]} actions, {train.folder} "
            f"{'was made of' if latents is not None else 'has'} {expected[0]} and {expected[1]}; data.train and "
            "data.valid must agree"
        )


def describe(task: "Task") -> str:
    """The resolved run in a few lines: data, networks, memory, ranks, schedule, and the task's own facts."""
    plan = task.plan
    config, world, training = plan.config, plan.world, plan.config.training
    shape, num_samples = plan.train_shards.schema.shape, len(plan.train_shards)
    with torch.device("meta"):
        sizes = {name: num_parameters(network.parameters()) for name, network in task.build_networks().items()}
    accumulation = accumulation_steps(training, world.num_replicas)
    epochs = training.steps * training.global_batch_size / num_samples
    stage = zero_stage(config.deepspeed)
    memory = memory_per_rank_bytes(sum(sizes.values()), world.world_size, stage, training.precision)
    parts = ", ".join(f"{part} {_gib(size)}" for part, size in memory.items())
    lines = {
        "output": config.output_dir,
        "data": f"{plan.train_shards.folder}{' (not here; as data.expect says)' if plan.data_is_absent else ''}: "
        f"{num_samples} samples of {config.data.num_history_frames} + "
        f"{config.data.num_future_frames} frames, (C, H, W) = {shape}, {plan.train_shards.schema.num_actions} actions",
        "networks": ", ".join(f"{name} {size / 1e6:.2f} M parameters" for name, size in sizes.items())
        + f", {training.precision}",
        **task.facts(),
        "training": f"{training.steps} steps of {training.global_batch_size} samples ({epochs:.1f} epochs)",
        "ranks": f"{world.world_size} on {world.device.type}; {training.micro_batch_per_gpu} samples x {accumulation} "
        f"accumulation x {world.num_replicas} "
        + ("ranks" if world.ranks_per_sample == 1 else f"groups of {world.ranks_per_sample} ranks that share frames"),
        "memory": f"per rank, without activations: {parts} (ZeRO stage {stage})",
    }
    if config.needs is not None:
        lines["needs"] = str(config.needs)
    return "\n".join(f"{name + ':':<10}{text}" for name, text in lines.items())


def _differences(old: Any, new: Any, chosen: Any, key: str) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two configuration trees, by dotted key; ``chosen`` is what of ``new`` is no default.

    A key that the old tree lacks is newer than it. Left at its default it does what was done before there was one.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found, chosen = {}, chosen if isinstance(chosen, dict) else {}
        for name in {**old, **new}:
            if name in old or name in chosen:
                found.update(_differences(old.get(name), new.get(name), chosen.get(name), f"{key}.{name}"))
        return found
    return {} if old == new else {key: (old, new)}


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
