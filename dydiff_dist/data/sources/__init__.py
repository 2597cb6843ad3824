"""Converters: each module reads one kind of source and yields samples."""

from dataclasses import dataclass

from dydiff_dist.data.convert import Source
from dydiff_dist.data.sources.arrays import ArraysSource, ArraysSourceConfig
from dydiff_dist.data.sources.bair import BairSource, BairSourceConfig
from dydiff_dist.data.sources.robonet import RobonetSource, RobonetSourceConfig
from dydiff_dist.data.sources.sevir import SevirSource, SevirSourceConfig
from dydiff_dist.data.sources.timeseries import TimeseriesSource, TimeseriesSourceConfig
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
    "sevir": SourceKind(
        SevirSource, SevirSourceConfig, "Weather events in SEVIR's layout: CATALOG.csv and HDF5 files."
    ),
    "robonet": SourceKind(
        RobonetSource, RobonetSourceConfig, "Robot trajectories with actions in RoboNet's HDF5 layout."
    ),
    "bair": SourceKind(BairSource, BairSourceConfig, "BAIR robot pushing: TFRecord files, read without TensorFlow."),
    "timeseries": SourceKind(
        TimeseriesSource, TimeseriesSourceConfig, "Multivariate series: LSTNet's text or GluonTS-style JSON lines."
    ),
    "arrays": SourceKind(ArraysSource, ArraysSourceConfig, "Your own data: npy, npz, HDF5, zarr or video files."),
}
