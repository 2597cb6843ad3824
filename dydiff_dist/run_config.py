"""The run configuration: one JSON file, one typed tree.

Each section's class stands beside the part that it configures; this module only collects them, reads files and applies
``section.key=value`` overrides.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from dydiff_dist.autoencoders.config import AutoencoderConfig, AutoencoderLossConfig, AutoencoderModelConfig
from dydiff_dist.data.config import DataConfig
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.models import AnyDenoiserConfig, ExecutionConfig
from dydiff_dist.strict_config import StrictConfig, describe_error
from dydiff_dist.training.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, TrainingConfig


class KernelsConfig(StrictConfig):
    """Which implementation of the fused operations runs."""

    backend: Literal["auto", "triton", "cpp", "reference"] = "auto"
    """auto: Triton on GPUs, C++ on CPUs, torch where that is not to be had; what runs is logged once per operation."""


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
    """Sections that a resumed run must have in common with its checkpoint."""

    output_dir: str
    """Folder of everything the run writes; relative to the working folder."""
    needs: RunNeeds | None = Field(default=None, exclude=True)
    """What the run was planned to need."""
    seed: int = 0
    """Key of all random numbers: initial weights, data order, timesteps, noise, forecasts."""
    data: DataConfig
    training: TrainingConfig
    deepspeed: dict[str, Any] = {}
    """Passed on to DeepSpeed, e.g. {"zero_optimization": {"stage": 2}}; keys that follow from this file are refused."""

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that compute one sample together; all other ranks are there for other samples."""
        return 1


class RunConfig(BaseRunConfig):
    """Everything that defines the training of a forecaster, and its forecasts."""

    fixed_sections = ("model", "diffusion", "data", "seed")

    model: AnyDenoiserConfig
    training: DiffusionTrainingConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    kernels: KernelsConfig = KernelsConfig()
    execution: ExecutionConfig = ExecutionConfig()
    autoencoder: AutoencoderConfig | None = None
    """Train on latents: of latent shards that this autoencoder made, or encoding the frames in every step."""

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that share the frames of a sample."""
        return self.execution.sequence_parallel_size


class AutoencoderRunConfig(BaseRunConfig):
    """Everything that defines the training of an autoencoder. History and future frames of ``data`` count alike: each
    sample gives so many frames in a row."""

    fixed_sections = ("model", "loss", "data", "seed")

    model: AutoencoderModelConfig
    training: AutoencoderTrainingConfig
    loss: AutoencoderLossConfig = AutoencoderLossConfig()


AnyRunConfig = TypeVar("AnyRunConfig", bound=BaseRunConfig)


def load_config(
    path: str | Path, overrides: list[str] | None = None, config_type: type[AnyRunConfig] = RunConfig
) -> AnyRunConfig:
    """Reads a run configuration.

    Args:
        path: JSON file.
        overrides: ``section.key=value`` each; the value is JSON, or a plain string where it isn't.
        config_type: the kind of run.

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
    for override in overrides or []:
        _apply_override(tree, override)
    return parse_config(tree, source=str(path), config_type=config_type)


def parse_config(tree: dict[str, Any], source: str, config_type: type[AnyRunConfig] = RunConfig) -> AnyRunConfig:
    """Validates a configuration tree as read from JSON; ``source`` names it in errors."""
    try:
        return config_type.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ValueError(f"{source}: {describe_error(error, config_type, tree)}") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a later key replace an earlier one of the same name; in a configuration that hides a mistake."""
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"key {key!r} stands twice in the configuration; remove one")
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
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {section!r} is a value, not a section")
    tree[name] = value
