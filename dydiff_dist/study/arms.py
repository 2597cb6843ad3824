"""What a study consists of: every run and every forecast with its folder, named by a hash of all it follows from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dydiff_dist.data.manifest import manifest_identity
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.run import changed_sampling
from dydiff_dist.study.config import ForecastConfig, StudyConfig, TaskName
from dydiff_dist.tasks.config import FewStepRunConfig, RunConfig
from dydiff_dist.training.config import load_config

HASH_LENGTH = 12
"""Hexadecimal digits kept of a SHA-256."""


@dataclass(frozen=True, kw_only=True)
class PlannedForecast:
    """One forecast of one trained model."""

    name: str
    config: ForecastConfig
    sampling: SamplingConfig
    """The run's, with the fields that the forecast changes."""
    hash: str
    """Of the run's hash, the cases and the sampling."""
    folder: Path

    @property
    def record(self) -> Path:
        """JSON file that is there once it is scored: means, sampler and time."""
        return self.folder / "scored.json"

    @property
    def scores_by_case(self) -> Path:
        """Its rows of the table by case."""
        return self.folder / "scores_by_case.csv"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training: an arm with a seed."""

    arm: str
    seed: int
    task: TaskName
    config: RunConfig
    hash: str
    """Of what the training follows from: the resolved configuration without output folder, the data, and of few-step
    training the run that it starts from; without sampling, which other training does not depend on."""
    passes: int
    """Forward and backward passes of one sample through the network in training, with those of what it started from:
    the cost that trainings of different kinds are compared at."""
    forecasts: tuple[PlannedForecast, ...]

    @property
    def name(self) -> str:
        """Arm and seed, as messages name the run."""
        return f"{self.arm} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where the training writes: its output_dir."""
        return Path(self.config.output_dir)

    @property
    def record(self) -> Path:
        """JSON file that is there once it is trained: how long it took, with what."""
        return self.folder / "trained.json"


def plan_study(study: StudyConfig, folder: Path, only: tuple[str, ...] | None = None) -> list[PlannedRun]:
    """All runs of a study, by seed first, checked as far as possible before anything is trained.

    Args:
        study: the study.
        folder: of the study; runs lie in it as ARM-seedN-HASH.
        only: names of arms to take; None is all.

    Raises:
        ValueError, FileNotFoundError: one line with what is wrong.
    """
    unknown = [name for name in only or () if name not in study.arms]
    if unknown:
        raise ValueError(f"no arm {unknown[0]!r}; the arms are {', '.join(study.arms)}")
    arms = [name for name in study.arms if only is None or name in only]
    identity = cache(_shards_identity)  # arms share their shards
    # in the order in which the study lists them, others after
    others = sorted({seed for arm in arms for seed in study.seeds_of(arm)} - set(study.seeds))
    runs = [
        _plan_run(study, arm, seed, folder, identity)
        for seed in dict.fromkeys((*study.seeds, *others))
        for arm in arms
        if seed in study.seeds_of(arm)
    ]
    for source in {study.climatology or run.config.data.train for run in runs}:
        _check_climatology(source)
    return runs


def _check_climatology(source: str) -> None:
    """Found out now rather than after the first training."""
    if ShardSet.open(source).manifest.latents is not None:
        raise ValueError(
            f"{source} holds latents, and the climatological ensemble is of frames; "
            'set the study\'s "climatology" to the frames that were encoded'
        )


def _plan_run(study: StudyConfig, arm: str, seed: int, folder: Path, identity: Callable[[str], str]) -> PlannedRun:
    fields = {**study.fields_of(arm), "seed": seed}
    task, init_from, start_hash, passes = study.arms[arm].task, study.arms[arm].init_from, "", 0
    if init_from is not None:
        start = _plan_run(study, init_from, seed, folder, identity)
        fields, start_hash, passes = {**fields, "init_from": str(start.folder)}, start.hash, start.passes
    kind = FewStepRunConfig if task == "fewstep" else RunConfig
    try:
        config = load_config(study.base, kind, [f"{key}={json.dumps(value)}" for key, value in fields.items()])
    except ValueError as error:
        raise ValueError(f"arm {arm!r}: {error}") from None
    content = config.model_dump(mode="json", exclude_defaults=True, exclude={"output_dir", "sampling", "init_from"})
    trained = {"config": content, "training_data": identity(config.data.train)}
    if isinstance(config, FewStepRunConfig):
        trained |= {"unrolled": config.sampling.model_dump(mode="json"), "start": start_hash}
    run_hash = hash_of(trained)
    output = folder / f"{arm}-seed{seed}-{run_hash}"
    config = config.model_copy(update={"output_dir": str(output)})
    forecasts = tuple(
        _plan_forecast(name, forecast, config, run_hash, identity(study.shards_of(name)), output)
        for name, forecast in study.forecasts.items()
        if forecast.is_of(arm, seed)
    )
    passes += config.training.steps * config.training.global_batch_size * _passes_of_sample(config)
    return PlannedRun(arm=arm, seed=seed, task=task, config=config, hash=run_hash, passes=passes, forecasts=forecasts)


def _passes_of_sample(config: RunConfig) -> int:
    """One of a denoising network; of few-step training those of all members."""
    if not isinstance(config, FewStepRunConfig):
        return 1
    return config.training.num_members * config.sampling.num_passes(config.diffusion.build_without_data().table)


def _plan_forecast(
    name: str, forecast: ForecastConfig, run: RunConfig, run_hash: str, cases_sha256: str, folder: Path
) -> PlannedForecast:
    try:
        sampling = changed_sampling(run.sampling, forecast.sampling)
    except ValueError as error:
        raise ValueError(f"forecast {name!r}: {error}") from None
    process = run.diffusion.build_without_data()  # steps ignore the input's scale and the noise's covariance
    try:
        sampling.check(process.table)
    except ValueError as error:
        raise ValueError(f"forecast {name!r} of {folder.name}: {error}") from None
    content = {
        "run": run_hash,
        "cases": cases_sha256,
        "sampling": sampling.model_dump(mode="json"),
        "settings": forecast.model_dump(mode="json", exclude={"arms", "seeds", "sampling", "shards"}),
    }
    digits = hash_of(content)
    place = folder / "forecasts" / f"{name}-{digits}"
    return PlannedForecast(name=name, config=forecast, sampling=sampling, hash=digits, folder=place)


def _shards_identity(shards: str) -> str:
    """What tells these shards from others; ``FileNotFoundError`` where there are none."""
    return manifest_identity(ShardSet.open(shards).manifest)


def hash_of(content: Any) -> str:
    """The first 12 digits of the SHA-256 of JSON types, whatever the order of keys.

    Examples:
        >>> hash_of({"a": 1, "b": [2]})
        '0855bfc20eb6'
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]
