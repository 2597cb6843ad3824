"""The values that the method's fixed options take, and the registries of those that can be added to."""

import difflib
from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

BetaSchedule = Literal["cosine", "linear", "scaled_linear"]
GammaSchedule = Literal["cosine", "linear_cumprod", "linear_carry", "constant", "none"]
MixedParts = Literal["none", "both", "frames", "noise"]
SimpleForecastName = Literal["persistence", "regression"]
NetworkSpace = Literal["mixed", "unmixed"]
LossSpace = Literal["target", "mixed", "unmixed"]
LossFrames = Literal["all", "future"]
TimestepDensity = Literal["uniform"] | tuple[float, float]
Spacing = Literal["uniform", "quadratic", "log_snr", "trailing"]

Entry = TypeVar("Entry")


def check_name(argument: str, value: str, choices: object) -> None:
    """Raises ``ValueError`` unless ``value`` is one of the literals ``choices``."""
    if value not in get_args(choices):
        raise ValueError(f"{argument} is {value!r}; choose one of {', '.join(get_args(choices))}")


def look_up(argument: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """The entry called ``name``.

    Raises:
        ValueError: there is none; names the nearest one and all others.
    """
    if name in registry:
        return registry[name]
    nearest = difflib.get_close_matches(name, registry, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]!r}? Otherwise " if nearest else ""
    raise ValueError(f"{argument} is {name!r}; {hint}choose one of {', '.join(registry)}")


def register(kind: str, registry: dict[str, Entry], name: str, entry: Entry) -> None:
    """Adds an entry; raises ``ValueError`` where the name is taken."""
    if name in registry:
        raise ValueError(f"{kind} {name!r} is registered already; choose another name")
    registry[name] = entry
