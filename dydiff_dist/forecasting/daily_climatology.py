"""What is usual on a day of the year at an hour, from a store of it, as the baseline of weather forecasts."""

from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from dydiff_dist.data.packing import unpack
from dydiff_dist.data.remote import check_address
from dydiff_dist.data.sources import weather_files
from dydiff_dist.data.tables import parse_time
from dydiff_dist.evaluation.baselines import Baseline
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.forecasting.cases import CaseReader
from dydiff_dist.quoting import first_line


class DailyClimatology(Baseline):
    """The value of a climatology for each forecast frame's day of the year and hour (UTC), an ensemble of one.

    The store is zarr or netCDF as WeatherBench 2 has it (arXiv 2308.15560): variables named and in units as in the
    forecasts' source, axes ``dayofyear`` (1 to 366), ``hour`` (left out where it is by day alone), level where they
    have some, latitude and longitude, in any order.
    """

    name = "daily_climatology"

    def __init__(self, address: str, reader: CaseReader):
        """
        Args:
            address: of the store, on this machine or a URL.
            reader: of the cases, from shards of source ``weather``.

        Raises:
            ValueError: no such store, or one of other variables, levels or another grid; shards whose samples have no
                date, or that are cropped.
        """
        weather_files.check_installed([check_address(address)])
        self.address, self.reader, self._stack = address, reader, ExitStack()  # the store stays open
        self._times(0, 1)
        try:
            self._dataset = self._stack.enter_context(weather_files.opened(address))
        except Exception as error:  # whatever the library raises on a damaged store
            raise ValueError(f"{address} can't be read: {first_line(error)}") from None
        self._channels = [self._channel(name) for name in reader.schema.channels]

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(1, S, C, H, W) float32; ``ValueError`` where the store lacks an hour, a day or a pixel."""
        times = self._times(case.number, case.num_leads)
        return np.stack([[self._field(data, time) for data in self._channels] for time in times])[None]

    def protocol(self) -> dict:
        """Where it comes from, and what CRPS is of a single member."""
        return {"forecast": f"the value of {self.address} for day of the year and hour", "crps": "its absolute error"}

    def _times(self, number: int, num_leads: int) -> list[datetime]:
        """When the forecast frames of a case are valid."""
        data, shards = self.reader.data, self.reader.shards
        meta = shards.read(shards.address(number), with_extras=True).meta
        if not {"start", "step_sec"} <= set(meta) or data.crop_size is not None:
            fault = "are cropped" if data.crop_size else "don't say when they are; only those of source weather do"
            raise ValueError(f"no climatology by day of the year: samples of {self.reader.source} {fault}")
        step = timedelta(seconds=meta["step_sec"] * data.frame_stride)
        return [parse_time(meta["start"]) + (data.num_history_frames + lead) * step for lead in range(num_leads)]

    def _channel(self, name: str) -> Any:
        """An array (dayofyear, hour if it has one, H, W), rows from north to south, not read yet."""
        variable, _, level = (name, "", "") if name in self._dataset else name.rpartition("_")
        if variable not in self._dataset:
            raise ValueError(f"{self.address} holds no {name!r}, only {', '.join(map(str, self._dataset.data_vars))}")
        data, schema = self._dataset[variable], self.reader.schema
        roles = weather_files.ROLES.items()
        dims = {role: dim for dim in data.dims for role, names in roles if str(dim).lower() in names}
        order = [dim for dim in ("dayofyear", "hour", dims.get("row"), dims.get("column")) if dim in data.dims]
        if level and "level" in dims:
            data = data.isel({dims["level"]: np.flatnonzero(np.isclose(data[dims["level"]], float(level)))[:1]})
        more = [dim for dim in data.dims if dim not in order]
        if "dayofyear" not in order or any(data.sizes[dim] != 1 for dim in more):
            raise ValueError(f"{self.address} has no field {name!r} for each dayofyear; its axes: {dict(data.sizes)}")
        days, axis = np.arange(data.sizes["dayofyear"]), self._dataset[variable].dims.index("dayofyear")
        if weather_files.absent_places(self.address, variable, axis, days).any():
            raise ValueError(f"{self.address} lacks chunks of {variable!r}; copy it again")
        data = data.squeeze(more).transpose(*order).sortby(dims.get("row", []), ascending=False)
        if data.shape[-2:] != schema.shape[1:] or not np.allclose(data[order[-2]], schema.latitudes or data[order[-2]]):
            raise ValueError(f"{self.address} has {name!r} on another grid than {self.reader.source}; regrid one")
        return data

    def _field(self, data: Any, time: datetime) -> np.ndarray:
        """(H, W) of a channel at a time."""
        place = {"dayofyear": time.timetuple().tm_yday, "hour": time.hour + time.minute / 60}
        try:
            found = data.sel({dim: value for dim, value in place.items() if dim in data.dims})
            stored = weather_files.stored_values(self.address, found)
        except KeyError:
            raise ValueError(f"{self.address} has no {data.name!r} for {time:%d %B, %H:%M}") from None
        except Exception as error:
            raise ValueError(f"{self.address} can't be read: {first_line(error)}") from None
        unpacked = unpack(stored, weather_files.stored_attributes(data))
        if unpacked.is_missing is not None:
            raise ValueError(f"{self.address} lacks pixels of {data.name!r} for {time:%d %B, %H:%M}")
        return unpacked.values
