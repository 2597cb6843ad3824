"""Configuration of a study: what is varied, how often, and how it is judged."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from dydiff_dist.evaluation.resampling import Independent
from dydiff_dist.strict_config import StrictConfig, describe_error
from dydiff_dist.study.kept_scores import SCORES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Names become folder names, so they hold no separators."""
TaskName = Literal["diffusion", "fewstep"]


class ArmConfig(StrictConfig):
    """One setting of the training: the base run with some fields changed."""

    label: str = ""
    """How tables name it; the arm's own name if left out."""
    set: dict[str, Any] = {}
    """Fields that differ from the base run, ``section.key`` to value."""
    seeds: tuple[int, ...] | None = None
    """Seeds of this arm; null takes the study's."""
    task: TaskName = "diffusion"
    """What is trained: a denoising network, or the forecast of few steps on the ensemble's score."""
    init_from: Name | None = None
    """Of few-step training: the arm whose run with the same seed it starts from; null is new weights. ``set`` is then
    what differs from that arm."""


class ForecastConfig(StrictConfig):
    """One way to forecast with every trained model."""

    members: PositiveInt = 8
    """Ensemble members of each case."""
    cases: PositiveInt | None = None
    """The first so many cases; null is all."""
    shards: str | None = None
    """Shards of its cases; null takes the study's. Settings are chosen on validation shards, reported on test."""
    sampling: dict[str, Any] = {}
    """Fields of the run's sampling section that differ."""
    arms: tuple[Name, ...] | None = None
    """Arms that are forecast in this way; null is all."""
    seeds: tuple[int, ...] | None = None
    """Of these arms, the runs with these seeds; null is all."""
    noise_seed: int = Field(default=0, ge=0)
    """Key of all noise of the forecasts, the same for all models."""

    def is_of(self, arm: str, seed: int) -> bool:
        """Whether an arm's run with this seed is forecast in this way."""
        return (self.arms is None or arm in self.arms) and (self.seeds is None or seed in self.seeds)


class ComparisonConfig(StrictConfig):
    """One table of the page: arms (or forecasts) against one of them."""

    title: str
    """Heading of the table."""
    reference: str
    """What the others are compared with: ARM, or ARM/FORECAST."""
    against: tuple[str, ...]
    """ARM or ARM/FORECAST each; an arm alone is judged by the study's first forecast."""
    note: str = ""
    """A sentence below the table."""
    summary: bool = False
    """Whether its rows also stand in the summary at the top of the page."""
    curves: Literal["lead", "cost"] | None = None
    """Figure below the table: scores by lead time, or by what sampling costs; null for none."""


class StudyConfig(StrictConfig):
    """A study: arms x seeds trained alike, each forecast and scored in the same ways."""

    title: str
    """Heading of its section on the page."""
    text: str = ""
    """What is asked, in a few sentences below the heading."""
    base: str
    """Run configuration that every arm starts from; relative to the working folder."""
    set: dict[str, Any] = {}
    """Fields changed for all arms alike, ``section.key`` to value."""
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    """By name; the order of training is by seed first, so that every arm has one run before any has two."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of initial weights, data order, timesteps and noise: arms with the same seed share them all."""
    shards: str
    """Shards of the cases that are forecast."""
    forecasts: dict[Name, ForecastConfig] = Field(min_length=1)
    """By name; the first is the one that arms are compared by."""
    scores: tuple[str, ...] = Field(default=("crps", "mse"), min_length=1)
    """Scores that are kept case by case; the first decides, the second stands beside it in the tables."""
    climatology: str | None = None
    """Shards of frames whose samples are the climatological ensemble; null takes what the run was trained on. Needed
    where an arm is trained on latents."""
    season_frames: PositiveInt | None = None
    """Frames of a season, for the seasonal naive forecast beside series (5 for business days); null leaves it out."""
    columns: tuple[str, ...] = ()
    """More columns of the tables, means over seeds without intervals: scores over all cases and lead times
    (``coverage_80``), or what a row by run has besides (``train_cpu_sec``, ``forecast_cpu_sec_per_member``)."""
    independent: Independent = "case"
    """What counts as one independent observation: each case, or all cases whose keys agree up to the last hyphen
    (windows of one radar event, clips of one trajectory)."""
    comparisons: tuple[ComparisonConfig, ...] = ()
    """Tables of the page."""
    learning_curves: dict[str, tuple[str, ...]] = {}
    """Label to arms that differ in their budget alone: curves of the first score at the head of the page."""

    @field_validator("scores")
    @classmethod
    def _known_scores(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SCORES:
                raise ValueError(f"unknown score {name!r}; there are {', '.join(SCORES)}")
        return names

    @model_validator(mode="after")
    def _check_names(self) -> "StudyConfig":
        named = {f"forecasts.{name}.arms": forecast.arms or () for name, forecast in self.forecasts.items()}
        named |= {f"learning_curves.{label}": arms for label, arms in self.learning_curves.items()}
        named |= {f"arms.{name}.init_from": (arm.init_from,) for name, arm in self.arms.items() if arm.init_from}
        for place, arms in named.items():
            for arm in arms:
                if arm not in self.arms:
                    raise ValueError(f"{place} names {arm!r}; the arms are {', '.join(self.arms)}")
        for name in self.arms:
            self._check_start(name)
        for comparison in self.comparisons:
            for item in (comparison.reference, *comparison.against):
                arm, forecast = self.split_item(item)
                if arm not in self.arms or forecast not in self.forecasts:
                    raise ValueError(
                        f"comparison {comparison.title!r} names {item!r}; write ARM or ARM/FORECAST, of the arms "
                        f"{', '.join(self.arms)} and the forecasts {', '.join(self.forecasts)}"
                    )
        return self

    def _check_start(self, name: str) -> None:
        """What an arm starts from is trained before it."""
        arm = self.arms[name]
        if arm.init_from is None:
            return
        if arm.task != "fewstep":
            raise ValueError(f"arms.{name} has init_from; only few-step training starts so: give it task = 'fewstep'")
        names = list(self.arms)
        if names.index(arm.init_from) >= names.index(name):
            raise ValueError(f"arms.{name} starts from {arm.init_from!r}, which stands below it; write that one first")
        if missing := sorted(set(self.seeds_of(name)) - set(self.seeds_of(arm.init_from))):
            raise ValueError(f"arms.{name} has seed {missing[0]}, {arm.init_from!r} has not; give both the same seeds")

    def fields_of(self, arm: str) -> dict[str, Any]:
        """Fields of an arm's training that differ from the base run, with those of the arms that it starts from."""
        start = self.arms[arm].init_from
        return {**(self.fields_of(start) if start else self.set), **self.arms[arm].set}

    @property
    def main_forecast(self) -> str:
        """The forecast that arms are compared by."""
        return next(iter(self.forecasts))

    def split_item(self, item: str) -> tuple[str, str]:
        """(arm, forecast) that an item of a comparison means."""
        arm, _, forecast = item.partition("/")
        return arm, forecast or self.main_forecast

    def label(self, item: str) -> str:
        """How tables name an item of a comparison."""
        arm, forecast = self.split_item(item)
        label = self.arms[arm].label or arm
        return label if forecast == self.main_forecast and "/" not in item else f"{label}, {forecast}"

    def planned_forecasts(self) -> frozenset[tuple[str, int, str]]:
        """(arm, seed, forecast) of all that the study asks for."""
        return frozenset(
            (arm, seed, name)
            for arm in self.arms
            for seed in self.seeds_of(arm)
            for name, forecast in self.forecasts.items()
            if forecast.is_of(arm, seed)
        )

    def shards_of(self, forecast: str) -> str:
        """The shards whose cases a forecast is of."""
        return self.forecasts[forecast].shards or self.shards

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds an arm is trained with."""
        own = self.arms[arm].seeds
        return self.seeds if own is None else own


def load_study(path: str | Path) -> tuple[str, StudyConfig]:
    """Reads a study: (its name, the file's stem; the study).

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line with file, key, value and rule.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no study {str(path)!r}; configs/studies/ holds ready ones")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
        raise ValueError(f"{path}: the file's name names folders; use letters, digits, - and _ only")
    try:
        return path.stem, StudyConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ValueError(f"{path}: not JSON: {error.errors()[0]['ctx']['error']}") from None
        raise ValueError(f"{path}: {describe_error(error, StudyConfig)}") from None
