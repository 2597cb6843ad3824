"""The sources that come with the package. Each module registers its own; a new one is imported here."""

from dydiff_dist.data.sources import turbulence, sevir, robonet, bair, timeseries, arrays  # noqa: F401, I001 - in the order of the help
