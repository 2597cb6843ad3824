"""Samplers: the weights of every step of a run, as numbers. ``sampling.py`` runs them.

With a and s the signal and noise of the table and primes for the timestep that a step goes to, a step is

    z' = A' ( clean x̂ + Σ previous_i x̂_i ) + B' ( noise ε̂ + sigma w )

A sampler is a function from the levels of a grid to the list of its steps, each one evaluation of the network, and what
must be known of it. `register_sampler` adds one. What is exact for which process stands in docs/method.md.

Letters: K steps of the grid.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dydiff_dist.diffusion.names import look_up, register


class StepWeights(NamedTuple):
    """The numbers of one step, see the module."""

    clean: float
    noise: float
    previous: tuple[float, ...] = ()
    """Of x̂ of the evaluations before, the latest first."""
    sigma: float = 0.0


class Level(NamedTuple):
    """A timestep of the grid with its signal a and noise s; the last one is clean: -1, 1, 0."""

    timestep: int
    signal: float
    noise: float

    @property
    def log_snr(self) -> float:
        """log(a/s), ±inf where one of them is 0."""
        if self.signal == 0 or self.noise == 0:
            return -math.inf if self.signal == 0 else math.inf
        return math.log(self.signal) - math.log(self.noise)


class Step(NamedTuple):
    """One evaluation of the network, at ``now``, and the step to ``after`` that it makes."""

    now: Level
    after: Level
    weights: StepWeights


@dataclass(frozen=True)
class Sampler:
    """An entry of the registry."""

    steps: Callable[[Sequence[Level], float], list[Step]]
    """(levels of the grid, descending, clean last; η) -> steps."""
    order: int
    """Of convergence, in the number of steps."""
    takes_eta: bool = False
    """Whether η, the share of fresh noise, may be chosen; others are given their own."""
    eta: float = 0.0
    """η where it can't be chosen."""
    any_process: bool = True
    """False: keeps its order only where z is one standard diffusion, seen through its operators, at all timesteps
    (`ProcessTable.is_whitened_standard`); refused elsewhere."""


def ddim_weights(now: Level, after: Level, eta: float = 0.0) -> StepWeights:
    """DDIM (Song et al. 2021, Eq. 12 and 16) in general a and s; η = 1 is ancestral sampling.

    z' = A' a' x̂ + B' (√(s'² - σ²) ε̂ + σ w) with σ = η s'/s √(s² - (a s'/a')²); at η = 1 that is the deviation of the
    forward process' posterior. The marginal stays exact, for any operators, if x̂ and ε̂ are.
    """
    spread = max(0.0, now.noise**2 - (now.signal * after.noise / after.signal) ** 2)
    sigma = eta * after.noise / now.noise * math.sqrt(spread)
    return StepWeights(after.signal, math.sqrt(max(0.0, after.noise**2 - sigma**2)), sigma=sigma)


def _ddim(levels: Sequence[Level], eta: float) -> list[Step]:
    return [Step(now, after, ddim_weights(now, after, eta)) for now, after in pairwise(levels)]


def _dpmpp_2m(levels: Sequence[Level], eta: float) -> list[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2).

    With h = λ' - λ, r = h_before/h and X = x̂ + (x̂ - x̂_before)/(2r), the published u' = (s'/s) u - a'(e^{-h} - 1) X
    equals DDIM plus a'(1 - e^{-h})/(2r) (x̂ - x̂_before), the form used here. Steps without such an x̂_before are plain
    DDIM: the first, the one after pure noise, and the last, to clean.
    """
    steps = _ddim(levels[:2], 0.0)
    for before, now, after in zip(levels, levels[1:], levels[2:], strict=False):
        weights = ddim_weights(now, after)
        h, h_before = after.log_snr - now.log_snr, now.log_snr - before.log_snr
        if math.isfinite(h) and math.isfinite(h_before):
            correction = after.signal * -math.expm1(-h) * h / (2 * h_before)
            weights = weights._replace(clean=weights.clean + correction, previous=(-correction,))
        steps.append(Step(now, after, weights))
    return steps


def _heun(levels: Sequence[Level], eta: float) -> list[Step]:
    """Heun's method in the ratio a/s, along which u/s moves with slope x̂.

    Each step but the last is made twice: u₁ = (s'/s) u + b x̂ with b = a' - a s'/s, which is DDIM, and after an
    evaluation there, which gives x̂₁, u' = (s'/s) u + b (x̂ + x̂₁)/2 = u₁ + b/2 (x̂₁ - x̂), where u₁ = a' x̂₁ + s' ε̂₁.
    Algorithm 1 of Karras et al. 2022 makes the same two evaluations at other slopes, dz/dσ = (z - x̂)/σ: as accurate to
    the order, but x̂₁ has the weight (σ - σ')/2σ' there, which grows with the step, and (σ - σ')/2σ here.
    """
    steps = []
    for now, after in pairwise(levels):
        steps.append(Step(now, after, ddim_weights(now, after)))
        if after.noise > 0:
            half = (after.signal - now.signal * after.noise / now.noise) / 2
            steps.append(Step(after, after, StepWeights(after.signal + half, after.noise, (-half,))))
    return steps


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(_ddim, order=1, takes_eta=True),
    "ancestral": Sampler(_ddim, order=1, eta=1.0),
    "dpmpp_2m": Sampler(_dpmpp_2m, order=2, any_process=False),
    "heun": Sampler(_heun, order=2, any_process=False),
    "euler": Sampler(_ddim, order=1),
}
"""``euler`` is DDIM with η = 0: z + (τ' - τ) v for flow matching, z + (σ' - σ) (z - x̂)/σ for EDM."""


def register_sampler(name: str, sampler: Sampler) -> None:
    """Makes ``sampling.sampler = name`` mean ``sampler``.

    Args:
        name: not yet taken.
        sampler: its steps and what must be known of them.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> def in_one_leap(levels, eta):
        ...     return [Step(levels[0], levels[-1], StepWeights(clean=1.0, noise=0.0))]
        >>> register_sampler("one_leap", Sampler(in_one_leap, order=1))
        >>> find_sampler("one_leap").takes_eta
        False
    """
    register("sampler", SAMPLERS, name, sampler)


def find_sampler(name: str, eta: float = 0.0) -> Sampler:
    """The sampler called ``name``, which can take ``eta``.

    Raises:
        ValueError: unknown name, or η out of range or given to a sampler that has its own.
    """
    sampler = look_up("sampler", name, SAMPLERS)
    if eta and not sampler.takes_eta:
        raise ValueError(
            f"eta is {eta} with sampler {name!r}; only 'ddim' takes it ('ancestral' is eta 1); set it to 0"
        )
    if eta < 0:
        raise ValueError(f"eta is {eta}; it must not be negative (0 is deterministic, 1 ancestral sampling)")
    return sampler
