"""Converters: each module reads one kind of source and yields samples."""

from dataclasses import dataclass

from dydiff_dist.data.convert import Source
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.strict_config import StrictConfig


@dataclass(frozen=True)
class SourceKind:
    """A converter as the command line knows it."""

    source: type[Source]
    config: type[StrictConfig]
    summary: str


SOURCES = {
    "turbulence": SourceKind(
        TurbulenceSource, TurbulenceSourceConfig, "Two-dimensional turbulence, simulated here: nothing is read."
    ),
}
