"""Configuration of training: the sections that every kind of run has, and the reading of a run's JSON file.

Each section's class stands beside the part that it configures. A kind of run adds its own sections to `BaseRunConfig`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from dydiff_dist.data.config import DataConfig
from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.quoting import quoted
from dydiff_dist.ranks.config import FaultsConfig
from dydiff_dist.strict_config import TOO_DEEP, StrictConfig, check_values, describe_error


class NonFiniteConfig(StrictConfig):
    """What happens when a loss or a gradient is not finite. The update is left out in any case, on all ranks alike."""

    max_in_a_row: PositiveInt = 3
    """Bad batches in a row that are too many."""
    action: Literal["stop", "rollback"] = "stop"
    """Then: stop the run with its last checkpoint, or load that and go on with the data that follow."""
    max_rollbacks: PositiveInt = 3
    """Rollbacks of one start of the program; one more stops the run."""


class TrainingConfig(OptimizationConfig):
    """The training loop: what an engine is told, and when logs, checkpoints and validations fall due."""

    nonfinite: NonFiniteConfig = NonFiniteConfig()
    """Losses and gradients that are not finite."""
    faults: FaultsConfig = FaultsConfig()
    """Ranks that are slow or gone, signals."""
    log_every_steps: PositiveInt = 20
    """Steps between lines in the log and numbers for the loggers."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the run's numbers and pictures go; wandb and mlflow are set up by their own environment variables."""
    checkpoint_every_steps: PositiveInt = 500
    """Steps between checkpoints; one more is written at the end and at an interruption."""
    keep_last_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted once a newer one is complete."""
    keep_every_steps: NonNegativeInt = 0
    """Checkpoints at multiples of it are never deleted; 0 for none. Only steps at which a checkpoint falls count."""
    async_checkpoints: bool = True
    """Whether training goes on while a checkpoint is written; it takes host memory for a copy of the rank's share of
    weights, moments and averages."""
    validate_every_steps: NonNegativeInt = 500
    """Steps between validations; 0 turns them off."""


class RunNeeds(StrictConfig):
    """What a run was planned to need; printed by a dry run, and nothing else depends on it."""

    nodes: PositiveInt = 1
    """Machines."""
    gpus_per_node: NonNegativeInt
    """GPUs of each; 0: none, the processor does it."""
    gpu: str = ""
    """Their name in the table of hardware.py."""
    memory_gib: float = Field(gt=0)
    """At the peak of a step, per GPU; of all processes where there are none."""
    hours: float = Field(gt=0)
    """Of the whole run."""
    basis: str
    """Where the numbers come from."""

    @model_validator(mode="after")
    def _check_gpu(self) -> "RunNeeds":
        if bool(self.gpu) != bool(self.gpus_per_node):
            raise ValueError(f"needs.gpu is {self.gpu!r} with gpus_per_node {self.gpus_per_node}; give both or neither")
        return self

    def __str__(self) -> str:
        machines = f"{self.nodes} x {self.gpus_per_node} {self.gpu}" if self.gpu else "no GPU"
        whose = "per GPU" if self.gpu else "in all"
        return f"{machines}, {self.memory_gib:g} GiB {whose}, {self.hours:g} h ({self.basis})"


class BaseRunConfig(StrictConfig):
    """What every kind of training run has; each task adds its own sections."""

    fixed_sections: ClassVar[tuple[str, ...]] = ("data", "seed")
    """Sections that a resumed run must have in common with its checkpoint, but for ``free_keys``."""
    free_keys: ClassVar[tuple[str, ...]] = (
        *("data.valid", "data.remote", "data.num_workers", "data.prefetch_batches"),
        *("data.damaged_samples", "data.max_damaged_rate"),
    )
    """Keys and sections in them that change how data are had, not what is learned. ``data.train`` is one too where the
    shards are the same."""

    output_dir: str = Field(min_length=1)
    """Folder of everything the run writes; relative to the working folder."""
    needs: RunNeeds | None = Field(default=None, exclude=True)
    """What the run was planned to need."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Key of all random numbers: initial weights, data order, timesteps, noise, forecasts."""
    data: DataConfig
    training: TrainingConfig
    engine: str = "deepspeed"
    """What trains the networks on all ranks: a name in engine/engines.py. Its options are the section of its name."""
    deepspeed: dict[str, Any] = {}
    """Passed on to DeepSpeed, e.g. {"zero_optimization": {"stage": 2}}; keys that follow from this file are refused."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; it must be one of {', '.join(ENGINES)}")
        if self.deepspeed and self.engine != "deepspeed":
            raise ValueError(f"the section deepspeed is for engine 'deepspeed', it is {self.engine!r}; remove either")
        return self

    @classmethod
    def completed(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """A configuration tree with the sections that follow from files it names; by default there are none."""
        return tree

    @property
    def engine_options(self) -> dict[str, Any]:
        """The section of the engine's name; empty where it has none."""
        return getattr(self, self.engine, {})

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that compute one sample together; all other ranks are there for other samples."""
        return 1


AnyRunConfig = TypeVar("AnyRunConfig", bound=BaseRunConfig)


def load_config(path: str | Path, config_type: type[AnyRunConfig], overrides: Sequence[str] = ()) -> AnyRunConfig:
    """Reads a run configuration.

    Args:
        path: JSON file.
        config_type: the kind of run.
        overrides: ``section.key=value`` each; the value is JSON, or a plain string where it isn't.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line with file, key, value and rule.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {str(path)!r}; configs/ holds ready ones")
    try:
        tree = json.loads(path.read_text(), object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: {TOO_DEEP}") from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise ValueError(f"{path}: {str(error).partition(';')[0]}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a run configuration is an object of sections, {{…}}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, str(path), config_type)


def parse_config(tree: dict[str, Any], source: str, config_type: type[AnyRunConfig]) -> AnyRunConfig:
    """Validates a configuration tree as read from JSON.

    Args:
        tree: sections by name.
        source: what errors call it, e.g. its file.
        config_type: the kind of run.

    Raises:
        ValueError: one line with source, key, value and rule.
    """
    try:
        check_values(tree, source)
        tree = config_type.completed(tree)
        return config_type.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ValueError(f"{source}: {describe_error(error, config_type, tree)}") from None
    except RecursionError:
        raise ValueError(f"{source}: {TOO_DEEP}") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a later key replace an earlier one of the same name; in a configuration that hides a mistake."""
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"key {quoted(key)} stands twice in the configuration; remove one")
        tree[key] = value
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one ``section.key=value`` in the tree, creating sections on the way; the validation judges the names."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} must have the form section.key=value, e.g. training.steps=200")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"override {key}: {str(error).partition(';')[0]}; give a simpler value") from None
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {section!r} is a value, not a section")
    tree[name] = value
