"""The sources that come with the package: each module registers its own. The order is that of the help."""

# ruff: noqa: F401, I001
from dydiff_dist.data.sources import turbulence, sevir, robonet, bair, timeseries, weather, pdebench, arrays
