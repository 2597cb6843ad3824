"""What a run will be, checked before anything large is built: configuration, data, network, memory, ranks."""

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch

from dydiff_dist.data.augment import check_against_schema
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.expected import expected_shards
from dydiff_dist.data.manifest import FrameSchema, document_bytes
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.engine.config import accumulation_steps
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.optimizer import num_parameters
from dydiff_dist.errors import reason_and_advice
from dydiff_dist.ranks.world import World
from dydiff_dist.training.config import AnyRunConfig, parse_config
from dydiff_dist.training.loggers import check_loggers

if TYPE_CHECKING:
    from dydiff_dist.training.task import Task

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class RunPlan(Generic[AnyRunConfig]):
    """A validated run: its configuration, its data opened, its ranks."""

    config: AnyRunConfig
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

    @property
    def data_sha256(self) -> str:
        """Of the training shards' content, wherever they lie and whichever version wrote them: that of what their
        manifest says."""
        manifest = self.train_shards.manifest
        return hashlib.sha256(document_bytes(manifest.model_copy(update={"tool_version": ""}))).hexdigest()

    def check_same_run(self, saved: dict[str, Any], data_sha256: str | None = None) -> None:
        """Refuses to resume a checkpoint of another run.

        Args:
            saved: the configuration stored with the checkpoint.
            data_sha256: of the data stored with it; None where it is not known, in checkpoints of older versions.

        Raises:
            ValueError: naming the first key that differs.
        """
        present, fixed = self.config.model_dump(mode="json"), self.config.fixed_sections
        # read by this version, so that neither a retired key nor the default of a new one is a difference
        old = {section: (saved if section in fixed else present).get(section) for section in (*present, *fixed)}
        old = {section: tree for section, tree in old.items() if tree is not None}
        try:
            old = parse_config(old, "its configuration", type(self.config)).model_dump(mode="json")
        except ValueError as error:
            raise ValueError(
                f"{self.config.output_dir} holds a run of another version ({error}); finish it with the version that "
                "began it, or set output_dir to a new folder"
            ) from None
        free = self.config.free_keys
        if data_sha256 is not None:
            if data_sha256 != self.data_sha256:
                raise ValueError(
                    f"{self.config.output_dir} holds a run on other data than data.train {self.config.data.train} has "
                    "now; give the shards that it began with, or set output_dir to a new folder"
                )
            free = (*free, "data.train")
        differing = [found for section in fixed for found in differences(old[section], present[section], section)]
        for key, before, now in differing:
            if not any(f"{key}.".startswith(f"{free_key}.") for free_key in free):
                raise ValueError(
                    f"{self.config.output_dir} holds a run with {key} = {before!r}, the configuration says {now!r}; "
                    "set it back, or set output_dir to a new folder"
                )


def make_plan(config: AnyRunConfig, world: World, may_lack_data: bool = False) -> RunPlan[AnyRunConfig]:
    """Opens the data and checks all that doesn't depend on what is trained.

    Args:
        config: the run.
        world: its ranks.
        may_lack_data: plan with ``data.expect`` where the training shards' folder does not exist; such a plan can be
            described, not run.

    Raises:
        ValueError, FileNotFoundError: one line with what is wrong and what to change.
    """
    check_output_dir(config.output_dir)
    world = world.with_ranks_per_sample(config.ranks_per_sample)
    accumulation_steps(config.training, world.num_replicas)
    ENGINES[config.engine].check(config.training, config.engine_options, world.device.type)
    check_loggers(config.training.loggers)
    data, valid = config.data, None
    absent = may_lack_data and "://" not in data.train and not Path(data.train).exists()
    if absent and data.expect is not None:
        train = expected_shards(data.expect, data.train)
    else:
        absent = False
        train = ShardSet.open(data.train, remote=data.remote, use_actions=data.use_actions)
        if data.valid:
            valid = ShardSet.open(data.valid, remote=data.remote, use_actions=data.use_actions)
    check_against_schema(data, train.schema, str(train.folder))
    return RunPlan(config=config, world=world, train_shards=train, valid_shards=valid, data_is_absent=absent)


def check_output_dir(output_dir: str) -> None:
    """Refuses a folder that can't be made or written, without making it.

    Raises:
        ValueError: naming what stands in the way.
    """
    folder = Path(output_dir).absolute()
    place = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not place.is_dir():
        raise ValueError(f"output_dir is {output_dir!r}, but {place} is no folder; set output_dir to another path")
    if not os.access(place, os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        reason = reason_and_advice(OSError(code, os.strerror(code)))
        raise ValueError(f"output_dir is {output_dir!r}, but {place} can't be written to: {reason}")
    if len(os.fsencode(folder.name)) > 255:
        raise ValueError("output_dir has a name of more than 255 bytes; set it to a shorter one")


def check_validation_frames(valid: ShardSet, data: DataConfig, trained_on: FrameSchema) -> None:
    """Refuses validation shards of other frames than training sees.

    Args:
        valid: the validation shards.
        data: how their samples are cut.
        trained_on: the frames of training.

    Raises:
        ValueError: samples too short, another shape or number of actions.
    """
    check_against_schema(data, valid.schema, str(valid.folder))
    found = (valid.schema.shape, valid.schema.num_actions)
    expected = (trained_on.shape, trained_on.num_actions if data.use_actions else 0)
    if found != expected:
        raise ValueError(
            f"data.valid {valid.folder} has frames {found[0]} and {found[1]} actions, those of training have "
            f"{expected[0]} and {expected[1]}; data.train and data.valid must agree"
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
    engine = ENGINES[config.engine]
    memory = engine.state_bytes(sum(sizes.values()), world.world_size, training, config.engine_options)
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
        "memory": f"per rank, without activations: {parts} ({engine.describe(config.engine_options)})",
    }
    if config.needs is not None:
        lines["needs"] = str(config.needs)
    return "\n".join(f"{name + ':':<10}{text}" for name, text in lines.items())


def differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) of the leaves that differ between two trees with the same keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield key, old, new


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
