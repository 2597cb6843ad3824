"""Contestants that do the same work, timed in turn, so that other load on the machine falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

from dydiff_kernels.benchmark.measure import synchronize

T = TypeVar("T")


class Seconds(NamedTuple):
    """What a piece of work took."""

    wall: float
    cpu: float
    """Processor time of this process, which other programs disturb less."""


class Spread(NamedTuple):
    """Median and the 20th and 80th percentile of several readings."""

    median: float
    p20: float
    p80: float


def timed(work: Callable[[], object], device: torch.device) -> Seconds:
    """Does the work and returns what it took, with all that it left ``device`` to do."""
    synchronize(device)
    started = Seconds(time.perf_counter(), time.process_time())
    work()
    synchronize(device)
    return Seconds(time.perf_counter() - started.wall, time.process_time() - started.cpu)


def in_turn(contestants: Mapping[str, Callable[[], T]], rounds: int, warm_up_rounds: int = 0) -> dict[str, list[T]]:
    """Calls each contestant once a round, in the order given and in the next round backwards.

    Args:
        contestants: name -> what does the work once and returns its reading, a rate or a time.
        rounds: that count.
        warm_up_rounds: before them, not counted.

    Returns:
        name -> readings, one a round; those of one round belong together.
    """
    readings: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(-warm_up_rounds, rounds):
        for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
            readings[name].append(contestants[name]())
    return {name: values[warm_up_rounds:] for name, values in readings.items()}


def ratios(readings: Sequence[float], over: Sequence[float]) -> list[float]:
    """Each reading over the other contestant's of the same round: ratios that other load hardly disturbs."""
    return [one / other for one, other in zip(readings, over, strict=True)]


def spread(readings: Sequence[float]) -> Spread:
    """Of one reading or more.

    Examples:
        >>> spread([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
        Spread(median=3.5, p20=2.0, p80=5.0)
    """
    fifths = statistics.quantiles(readings, n=5, method="inclusive") if len(readings) > 1 else [*readings] * 4
    return Spread(statistics.median(readings), fifths[0], fifths[-1])
