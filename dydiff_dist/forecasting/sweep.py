"""Which sampling is worth its cost: samplers, steps and members tried on validation cases.

A member is the same in an ensemble of any size, so each sampler and number of steps forecasts the largest ensemble
once, and smaller ones are parts of it. Letters: M members, S lead times, C channels, H W height and width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import BACKGROUND, FAINT_INK, INK, OURS
from dydiff_dist.evaluation.evaluate import FORECAST, evaluate
from dydiff_dist.evaluation.figures import style_axis
from dydiff_dist.evaluation.suites import Suite
from dydiff_dist.forecasting.cases import Case, forecast_case
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.forecaster import Forecaster

SCORES = ("crps", "spread_skill_ratio", "log_spectral_distance_db")
WITHIN = 0.01
"""By which a setting may score above the best one and still be chosen for its cost."""
_COLORS = (OURS, "#4fd1c1", "#f08adf", "#58a6ff", "#e3c341", "#7ee3c4")


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


def measure(
    forecaster: Forecaster,
    cases: Sequence[Case],
    sampling: SamplingConfig,
    members: Sequence[int],
    *,
    suites: Sequence[Suite] = (),
    bounds: Sequence = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measured]:
    """One sampling on some cases, for ensembles of several sizes.

    Args:
        forecaster: its network and process.
        cases: with their truth.
        sampling: how they are drawn.
        members: sizes, each at least 2.
        suites: beyond the base suite, e.g. of spectra.
        bounds: of the quantity, as ``evaluate`` takes them.
        seed: key of all noise.
        clock: seconds.

    Raises:
        ValueError: sampling that the process doesn't take.
    """
    chosen = replace(forecaster, sampling=sampling)
    start = clock()
    forecasts = [forecast_case(chosen, case, num_members=max(members), seed=seed) for case in cases]
    seconds = (clock() - start) / (len(cases) * max(members))
    measured = []
    for num_members in sorted(set(members)):
        parts = (_first_members(forecast, num_members) for forecast in forecasts)
        overall = evaluate(parts, suites=suites, bounds=bounds).overall(FORECAST)
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
    for sampler, color in zip(samplers, _COLORS * len(samplers), strict=False):
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


def _first_members(forecast: ForecastCase, num_members: int) -> ForecastCase:
    return replace(forecast, members=forecast.members[:num_members])
