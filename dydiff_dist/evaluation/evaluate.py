"""Scoring a stream of cases: the forecast and its baselines, side by side, case by case."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dydiff_dist.data.manifest import Bounds
from dydiff_dist.evaluation.baselines import Baseline, Persistence
from dydiff_dist.evaluation.case import ForecastCase, UnreadableCase
from dydiff_dist.evaluation.fvd import Fvd, frechet_distance
from dydiff_dist.evaluation.resampling import (
    Independent,
    choose_independent,
    describe_resampling,
    distance_interval_95,
    group_cases,
    interval_95,
)
from dydiff_dist.evaluation.suites import Suite, Terms, base_suite
from dydiff_dist.evaluation.table import BOOTSTRAP_DRAWS, ScoreTable

FORECAST, TRUTH = "forecast", "truth"
FVD = "fvd"
_COMMON_PROTOCOL = {
    "units": "as stored in the shards",
    "frames": "forecast frames only; history is not scored",
    "aggregation": "mean over channels and pixels of a case, then over cases, in exact float64 sums",
}
"""What the numbers mean, whatever the data."""


class Intervals(NamedTuple):
    """95 % intervals of a score."""

    by_lead: np.ndarray
    """(2, S)."""
    overall: np.ndarray
    """(2,)."""


class Draws(NamedTuple):
    """Scores of resampled cases, for intervals and paired comparisons."""

    by_lead: Terms
    """Each score (1000, S)."""
    overall: Terms
    """Each score (1000,)."""


@dataclass
class Evaluation:
    """Scores of the forecast and its baselines over the same cases, with how they were made; see ``evaluate``."""

    tables: dict[str, ScoreTable]
    """By forecaster: forecast and each baseline."""
    protocol: dict = field(default_factory=dict)
    suites: tuple[Suite, ...] = field(default_factory=lambda: (base_suite(),))
    keys: dict[int, str] = field(default_factory=dict)
    """Key of each scored case."""
    clips: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """Features of clips, (M, D) float32 by case, by forecaster and under ``truth`` of the real ones; empty without
    FVD. A clip takes some 2 KB: 100 samples of each of 256 contexts are 41 MB."""
    independent: Independent | None = None
    """What counts as one observation in intervals; None chooses by the keys."""
    _drawn: dict[str, Draws] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_cases(self) -> int:
        """How many cases were scored; ``errors`` holds the others."""
        return len(self.tables[FORECAST].cases)

    @property
    def errors(self) -> dict[int, str]:
        """Cases that could not be scored, with the reason."""
        return self.tables[FORECAST].errors

    @property
    def num_leads(self) -> int:
        """S, how many frames of each case are scored."""
        return len(self.tables[FORECAST].by_lead("crps"))

    @property
    def scores(self) -> list[str]:
        """Names of all scores, in the order of their suites."""
        return [score for suite in self.suites for score in suite.scores]

    def skill(self, baseline: str, score: str = "crps") -> float:
        """Our score over the baseline's, both over all lead times and cases: below 1 is better than it."""
        ours, theirs = (self.tables[name].overall(score) for name in (FORECAST, baseline))
        return ours / theirs if theirs else float("nan")

    def by_lead(self, forecaster: str) -> Terms:
        """All scores (S,) and profiles (S, K) of a forecaster by lead time."""
        return _derived(self.suites, self._means(forecaster))

    def overall(self, forecaster: str) -> Terms:
        """All scores () and profiles (K,) over lead times, pooled or averaged as each suite says."""
        return _over_leads(self.suites, self._means(forecaster), lead_axis=0)

    def of_case(self, forecaster: str, number: int) -> Terms:
        """All scores () and profiles (K,) of one case over lead times."""
        return _over_leads(self.suites, self.tables[forecaster].cases[number], lead_axis=0)

    def features(self, forecaster: str) -> np.ndarray:
        """(N, D) of all clips, cases in order: the same to the last bit on any number of processes."""
        return np.concatenate([features for _, features in sorted(self.clips[forecaster].items())])

    def fvd(self, forecaster: str) -> float:
        """Fréchet video distance of a forecaster's clips to the real ones; NaN for fewer than two of either."""
        real, forecast = self.features(TRUTH), self.features(forecaster)
        if min(len(real), len(forecast)) < 2:
            return float("nan")
        return frechet_distance(real, forecast, self.protocol[FVD]["covariance_divisor"])

    def draws(self, forecaster: str) -> Draws:
        """All scores of 1000 sets of resampled cases, the same cases in each draw for every forecaster and run."""
        if forecaster not in self._drawn:
            means = self.tables[forecaster].bootstrap_means(self._groups()[0])
            found = _derived(self.suites, means), _over_leads(self.suites, means, lead_axis=1)
            names = set(self.scores)
            self._drawn[forecaster] = Draws(*({k: v for k, v in terms.items() if k in names} for terms in found))
        return self._drawn[forecaster]

    def intervals(self, forecaster: str, score: str) -> Intervals:
        """The intervals of one score: percentiles of the draws, or of a distance the basic ones of its square."""
        draws = self.draws(forecaster)
        found = draws.by_lead[score], draws.overall[score]
        if not self.is_distance(score):
            return Intervals(*map(interval_95, found))
        values = self.by_lead(forecaster)[score], self.overall(forecaster)[score]
        return Intervals(*map(distance_interval_95, values, found))

    def is_distance(self, score: str) -> bool:
        """Whether a score is a distance from perfect, which resampling enlarges."""
        return any(score in suite.distances for suite in self.suites)

    def resampling(self) -> dict[str, Any]:
        """What intervals are over, for the record."""
        groups, independent = self._groups()
        what = describe_resampling(groups, independent)
        text = f"95 %, percentile bootstrap over {what}, {BOOTSTRAP_DRAWS} draws, the same for every score and run"
        distances = [score for score in self.scores if self.is_distance(score)]
        if distances:
            text += f"; basic bootstrap of the square for {' and '.join(distances)}"
        return {"independent": independent, "num_independent": len(np.unique(groups)), "intervals": text}

    def merge(self, others: Sequence["Evaluation"]) -> "Evaluation":
        """This evaluation with the cases of others, made alike of other cases (by other processes, say).

        Raises:
            ValueError: a case is in two of them.
        """
        everyone = (self, *others)
        return Evaluation(
            tables={name: table.merge(other.tables[name] for other in others) for name, table in self.tables.items()},
            # one without a case knows less of the protocol, so the first word counts
            protocol={key: value for each in reversed(everyone) for key, value in each.protocol.items()},
            suites=self.suites,
            keys={number: key for each in everyone for number, key in each.keys.items()},
            clips={
                name: {number: features for each in everyone for number, features in each.clips[name].items()}
                for name in self.clips
            },
            independent=self.independent,
        )

    def _groups(self) -> tuple[np.ndarray, Independent]:
        """Groups of the cases in order of number, and what they are."""
        keys = [self.keys[number] for number in sorted(self.keys)]
        independent = self.independent or choose_independent(keys)
        return group_cases(keys, independent), independent

    def _means(self, forecaster: str) -> Terms:
        """Means over cases of all terms."""
        table = self.tables[forecaster]
        return {name: table.by_lead(name) for name in table.names}


def _derived(suites: Sequence[Suite], means: Terms) -> Terms:
    """Scores and profiles of terms with any axes before that of the lead times."""
    return {name: values for suite in suites for name, values in _of_suite(suite, means).items()}


def _of_suite(suite: Suite, means: Terms) -> Terms:
    """What a suite derives, without whatever else of the terms it hands through."""
    derived = suite.derive(means)
    return {name: derived[name] for name in (*suite.scores, *suite.profiles)}


def _over_leads(suites: Sequence[Suite], means: Terms, lead_axis: int) -> Terms:
    """Scores and profiles over lead times, of terms with any axes before that of the lead times."""
    pooled = {name: values.mean(axis=lead_axis, keepdims=True) for name, values in means.items()}
    result: Terms = {}
    for suite in suites:
        if suite.overall == "pooled":
            result |= {name: values.squeeze(lead_axis) for name, values in _of_suite(suite, pooled).items()}
        else:
            result |= {name: values.mean(axis=lead_axis) for name, values in _of_suite(suite, means).items()}
    return result


def evaluate(
    cases: Iterable[ForecastCase | UnreadableCase],
    *baselines: Baseline,
    suites: Sequence[Suite] = (),
    fvd: Fvd | None = None,
    independent: Independent | None = None,
    bounds: Sequence[Bounds] = (),
) -> Evaluation:
    """Scores every case; one that can't be scored is named and counted, and left out of the baselines too.

    Args:
        cases: each case once, in any order; only one is held at a time.
        baselines: beyond persistence, which is always there.
        suites: scores beyond the base suite's, of the forecast and its baselines alike.
        fvd: adds the Fréchet video distance.
        independent: what counts as one observation in intervals; None chooses by the keys.
        bounds: of each channel, to which forecast and baselines are clipped; empty leaves them as they are.

    Raises:
        ValueError: a baseline's name is another's, or can't be a key.

    Returns:
        the tables; ``protocol`` says how scores and baselines were made.

    Examples:
        >>> truth = np.arange(3.0).reshape(3, 1, 1, 1)
        >>> case = ForecastCase(0, "a", truth[:1], truth, members=np.stack([truth - 0.5, truth + 0.5]))
        >>> evaluation = evaluate([case])
        >>> float(evaluation.overall("forecast")["crps"]), evaluation.skill("persistence")
        (0.25, 0.25)
        >>> evaluation.by_lead("persistence")["mae"].tolist()
        [0.0, 1.0, 2.0]
    """
    all_suites, all_baselines = (base_suite(), *suites), (Persistence(), *baselines)
    names = _forecasters(all_baselines)
    protocol: dict[str, Any] = {
        **_COMMON_PROTOCOL,
        "scores": {suite.name: suite.protocol for suite in all_suites},
        "baselines": {baseline.name: baseline.protocol() for baseline in all_baselines},
        **({"clipped_to": [list(pair) for pair in bounds]} if bounds else {}),
    }
    evaluation = Evaluation({name: ScoreTable() for name in names}, protocol, all_suites, independent=independent)
    if fvd is not None:
        evaluation.clips = {name: {} for name in (TRUTH, *names)}
    for case in cases:
        if problem := case.problem():
            evaluation.errors[case.number] = problem
        elif isinstance(case, ForecastCase):
            _enter(evaluation, case, all_baselines, fvd, bounds)
    return evaluation


def _forecasters(baselines: Sequence[Baseline]) -> tuple[str, ...]:
    """Names of the forecast and the baselines; one-line ``ValueError`` unless each can be a key of its own."""
    names = (FORECAST, *(baseline.name for baseline in baselines))
    for name in names:
        if not name.isidentifier() or [*names, TRUTH].count(name) > 1:
            raise ValueError(f"a baseline is called {name!r}; give it a name of letters and underscores of its own")
    return names


def _enter(
    evaluation: Evaluation,
    case: ForecastCase,
    baselines: Sequence[Baseline],
    fvd: Fvd | None,
    bounds: Sequence[Bounds],
) -> None:
    """Scores a case that is whole and enters it everywhere."""
    ensembles = {FORECAST: case.members} | {baseline.name: baseline.ensemble(case) for baseline in baselines}
    ensembles = {name: _within(members, bounds) for name, members in ensembles.items()}
    terms = {name: _measured(evaluation.suites, members, case) for name, members in ensembles.items()}
    for baseline in baselines:
        terms[baseline.name] |= _terms_of_guess(evaluation.suites, baseline, case)
    for name, measured in terms.items():
        evaluation.tables[name].add(case.number, measured)
    evaluation.keys[case.number] = case.key
    evaluation.protocol |= {
        "num_members": len(case.members),
        "num_history_frames": len(case.history),
        "num_forecast_frames": case.num_leads,
    }
    if fvd is not None:
        for name, futures in ((TRUTH, case.truth[None]), *ensembles.items()):
            evaluation.clips[name][case.number] = fvd.features(case.history, futures)
        evaluation.protocol[FVD] = fvd.protocol(len(case.history), case.num_leads)


def _within(members_MSCHW: np.ndarray, bounds: Sequence[Bounds]) -> np.ndarray:
    """The members clipped to the bounds of their channels."""
    for channel, (low, high) in enumerate(bounds):
        if (low, high) != (None, None):
            members_MSCHW = members_MSCHW.copy()
            ends = (-np.inf if low is None else low, np.inf if high is None else high)
            members_MSCHW[:, :, channel] = members_MSCHW[:, :, channel].clip(*ends)
    return members_MSCHW


def _measured(suites: Sequence[Suite], members: np.ndarray, case: ForecastCase) -> Terms:
    return {name: values for suite in suites for name, values in suite.measure(members, case.truth).items()}


def _terms_of_guess(suites: Sequence[Suite], baseline: Baseline, case: ForecastCase) -> Terms:
    """Terms that are of the baseline's best guess rather than of its ensemble, if it has one."""
    guess = baseline.best_guess(case)
    if guess is None:
        return {}
    measured = _measured([suite for suite in suites if suite.of_guess], guess, case)
    return {name: measured[name] for suite in suites for name in suite.of_guess}
