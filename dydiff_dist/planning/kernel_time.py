"""How long launches take on a GPU: from a few rates of the machine, each one number for all networks and sizes.

A kernel takes the longest of what its bytes, its products, its addresses and its rows take, and never less than the
shortest kernel.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dydiff_dist.planning.launches import Launch


@dataclass(frozen=True, kw_only=True)
class KernelRates:
    """Of one GPU in one precision; where the numbers come from says `Assumptions`."""

    copy: float
    """Bytes per second, read and written."""
    products: float
    """Operations of large matrix products per second."""
    attention: float
    """Operations of fused attention per second, with the tiles that it fills up."""
    addressed: float
    """Elements per second of kernels that work out an address for each."""
    rows: float
    """Rows per second of kernels that give a thread block to each: to start it and wait for memory."""
    shortest: float
    """Seconds of a kernel that has next to nothing to do."""

    def seconds(self, launch: Launch) -> float:
        """Of one launch."""
        return max(
            launch.bytes / self.copy,
            launch.flops / (self.attention if launch.kind == "attention" else self.products),
            launch.elements / self.addressed,
            launch.rows / self.rows,
            self.shortest,
        )


@dataclass(frozen=True)
class Total:
    """Of several launches."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Total") -> "Total":
        return Total(self.calls + other.calls, self.bytes + other.bytes, self.seconds + other.seconds)


def by_kind(launches: Iterable[Launch], rates: KernelRates) -> dict[str, Total]:
    """Totals by kind of kernel, the longest first."""
    return _totals(((launch.kind, launch) for launch in launches), rates)


def by_operation(launches: Iterable[Launch], rates: KernelRates) -> dict[str, Total]:
    """Totals by kind and name of the operation, the longest first."""
    return _totals(((f"{launch.kind}: {launch.op}", launch) for launch in launches), rates)


def _totals(named: Iterable[tuple[str, Launch]], rates: KernelRates) -> dict[str, Total]:
    totals: dict[str, Total] = {}
    for name, launch in named:
        totals[name] = totals.get(name, Total()) + Total(1, launch.bytes, rates.seconds(launch))
    return dict(sorted(totals.items(), key=lambda item: -item[1].seconds))
