"""Which sampling is worth its cost: samplers, steps and members tried on validation cases.

A member is the same in an ensemble of any size, so each sampler and number of steps forecasts the largest ensemble
once, and smaller ones are parts of it. Letters: M members, S lead times, C channels, H W height and width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from dydiff_dist.data.manifest import Bounds
from dydiff_dist.evaluation.colors import BACKGROUND, CURVE_COLORS, FAINT_INK, INK
from dydiff_dist.evaluation.evaluate import FORECAST, evaluate
from dydiff_dist.evaluation.fields import spectrum_suite
from dydiff_dist.evaluation.figures import style_axis
from dydiff_dist.evaluation.suites import Suite
from dydiff_dist.forecasting.cases import Case, CaseReader, forecast_case
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.forecaster import Forecaster

SCORES = ("crps", "spread_skill_ratio", "log_spectral_distance_db")
WITHIN = 0.01
"""By which a setting may score above the best one and still be chosen for its cost."""


@dataclass(frozen=True)
class Measured:
    """One setting with its scores over all cases and lead times."""

    sampling: SamplingConfig
    num_members: int
    """M."""
    seconds_per_member: float
    """Of the whole forecast of a member, on the machine that it ran on."""
    scores: dict[str, float]
    """Of ``SCORES``, those that the data have."""

    @property
    def seconds_per_case(self) -> float:
        """What an ensemble costs."""
        return self.seconds_per_member * self.num_members


@dataclass(frozen=True)
class Trial:
    """A model and cases to try samplings on."""

    forecaster: Forecaster
    """Its network and process."""
    cases: Sequence[Case]
    """With their truth."""
    suites: Sequence[Suite] = ()
    """Beyond the base suite."""
    bounds: Sequence[Bounds] = ()
    """Of the quantity, as ``evaluate`` takes them."""

    @classmethod
    def on(cls, reader: CaseReader, num_cases: int, forecaster: Forecaster) -> "Trial":
        """A trial on at most ``num_cases`` cases, evenly spaced, with the spectra of fields among the scores.

        Raises:
            ValueError: no case is asked for, or one can't be forecast.
        """
        if num_cases < 1:
            raise ValueError(f"num_cases is {num_cases}; try on at least 1")
        count = min(num_cases, len(reader))
        cases = [reader.read(index * len(reader) // count) for index in range(count)]
        problems = [problem for case in cases if (problem := case.problem())]
        if problems:
            raise ValueError(problems[0])
        is_series = reader.schema.shape[1:] == (1, 1)
        suites = () if is_series else (spectrum_suite(reader.is_periodic),)
        return cls(forecaster, cases, suites, reader.schema.bounds)

    def measure(
        self, sampling: SamplingConfig, members: Sequence[int], clock: Callable[[], float] = time.perf_counter
    ) -> list[Measured]:
        """One sampling, for ensembles of several sizes.

        Args:
            sampling: how forecasts are drawn.
            members: sizes, each at least 2.
            clock: seconds.

        Raises:
            ValueError: sampling that the process doesn't take, or a case that can't be scored.
        """
        chosen = replace(self.forecaster, sampling=sampling)
        start = clock()
        forecasts = [forecast_case(chosen, case, num_members=max(members)) for case in self.cases]
        seconds = (clock() - start) / (len(self.cases) * max(members))
        measured = []
        for num_members in sorted(set(members)):
            parts = (replace(forecast, members=forecast.members[:num_members]) for forecast in forecasts)
            evaluation = evaluate(parts, suites=self.suites, bounds=self.bounds)
            if evaluation.errors:
                raise ValueError(next(iter(evaluation.errors.values())))
            overall = evaluation.overall(FORECAST)
            scores = {name: float(overall[name]) for name in SCORES if name in overall}
            measured.append(Measured(sampling, num_members, seconds, scores))
        return measured


def best_for_its_cost(measured: Sequence[Measured]) -> Measured:
    """The cheapest setting whose CRPS is within 1 % of the least one.

    Examples:
        >>> one, other = (Measured(SamplingConfig(), 8, sec, {"crps": crps}) for sec, crps in ((9, 1.0), (1, 1.009)))
        >>> best_for_its_cost([one, other]).seconds_per_member
        1
    """
    least = min(found.scores["crps"] for found in measured)
    good = [found for found in measured if found.scores["crps"] <= (1 + WITHIN) * least]
    return min(good, key=lambda found: found.seconds_per_case)


def frontier(measured: Sequence[Measured]) -> list[Measured]:
    """The settings that no cheaper one scores as well as, by rising cost."""
    found: list[Measured] = []
    for candidate in sorted(measured, key=lambda each: (each.seconds_per_case, each.scores["crps"])):
        if not found or candidate.scores["crps"] < found[-1].scores["crps"]:
            found.append(candidate)
    return found


def sweep_figure(measured: Sequence[Measured], chosen: Measured) -> Figure:
    """CRPS over seconds per case: a colour a sampler, the frontier as a line, a ring around the chosen setting."""
    figure = Figure(figsize=(9, 5.4), facecolor=BACKGROUND, layout="constrained")
    axis = figure.subplots()
    samplers = list(dict.fromkeys(found.sampling.sampler for found in measured))
    for sampler, color in zip(samplers, CURVE_COLORS * len(samplers), strict=False):
        own = [found for found in measured if found.sampling.sampler == sampler]
        costs, scores = [found.seconds_per_case for found in own], [found.scores["crps"] for found in own]
        axis.scatter(costs, scores, s=[8 * np.sqrt(found.num_members) for found in own], color=color, label=sampler)
    line = frontier(measured)
    axis.plot([f.seconds_per_case for f in line], [f.scores["crps"] for f in line], color=FAINT_INK, linewidth=1)
    place = ([chosen.seconds_per_case], [chosen.scores["crps"]])
    axis.scatter(*place, s=160, facecolors="none", edgecolors=INK, label="chosen")
    style_axis(axis, "CRPS; larger dots: more members", from_zero=False, xlabel="seconds per case")
    axis.set_xscale("log")
    axis.legend(frameon=False, labelcolor=INK, fontsize=10)
    return figure
