"""Source ``timeseries``: multivariate series, cut into windows of context and horizon.

Two inputs: LSTNet's text (a row per time, comma-separated values; .txt, .csv, also .gz) and GluonTS-style JSON lines
(an object with ``target`` per variate; .json, .jsonl, also .gz). A sample is (S, D, 1, 1): S = context + horizon times,
one channel per variate.

The last ``rolling_windows`` horizons are the test set, as in the field's CRPS-sum protocol: window i forecasts the i-th
of them from the context before it. The ``valid_windows`` horizons before them are for validation, everything earlier
for training, so no training window reaches into what is forecast later.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.scaling import history_scale
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, ShardTask, Source, register_source, schema_of, shard_tasks
from dydiff_dist.strict_config import StrictConfig

PROTOCOLS = {
    "exchange": (30, 5),
    "solar": (24, 7),
    "electricity": (24, 7),
    "traffic": (24, 7),
    "taxi": (24, 56),
    "wikipedia": (30, 5),
}
"""(horizon, rolling test windows) of the data sets that the CRPS-sum literature shares."""


class TimeseriesSourceConfig(StrictConfig):
    """Which series to take and how to cut it."""

    train_file: str
    """The series; with test_file its training part alone."""
    test_file: str | None = None
    """GluonTS-style JSON lines of the test windows, one line per variate and window; if left out, the test windows are
    the end of train_file."""
    protocol: Literal["exchange", "solar", "electricity", "traffic", "taxi", "wikipedia"] | None = None
    """Sets horizon and rolling windows as the literature does for this data set."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """Times to forecast; needed without a protocol."""
    context: Annotated[int, Field(ge=1)] | None = None
    """Times given to the forecast. The horizon if left out."""
    rolling_windows: Annotated[int, Field(ge=1)] | None = None
    """Test windows, each a horizon after the last; 1 if left out without a protocol."""
    valid_windows: Annotated[int, Field(ge=0)] = 2
    """Validation windows before the test windows, each a horizon after the last."""
    train_step: Annotated[int, Field(ge=1)] = 1
    """Times between the starts of two training windows."""
    scaling: Literal["none", "mean"] = "mean"
    """mean: a run divides each variate of a window by the mean absolute value of its context, and multiplies forecasts
    by it, so that they come out in the units of the file; the shards hold the file's values either way."""
    samples_per_shard: Annotated[int, Field(ge=1)] = 4096
    """Windows of one shard."""

    def resolved_horizon(self) -> int:
        """The horizon, from the protocol or as given."""
        horizon = self.horizon or (PROTOCOLS[self.protocol][0] if self.protocol else None)
        if horizon is None:
            raise ValueError("neither --protocol nor --horizon is given; give one of them")
        return horizon

    def resolved_context(self) -> int:
        """The context, the horizon's length by default."""
        return self.context or self.resolved_horizon()

    def resolved_rolling_windows(self) -> int:
        """The number of test windows, from the protocol or as given."""
        return self.rolling_windows or (PROTOCOLS[self.protocol][1] if self.protocol else 1)


@register_source(
    "timeseries", TimeseriesSourceConfig, "Multivariate series: LSTNet's text or GluonTS-style JSON lines."
)
class TimeseriesSource(Source[TimeseriesSourceConfig]):
    """Windows of one multivariate series, one channel per variate and one pixel: samples (S, D, 1, 1) float32."""

    def __init__(self, config: TimeseriesSourceConfig):
        super().__init__(config)
        self._window = config.resolved_context() + config.resolved_horizon()

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (test group or -1 for the training file, first time) of a window."""
        series_TD = read_series(Path(self.config.train_file))
        by_split = {split: [(-1, start) for start in starts] for split, starts in self._starts(series_TD).items()}
        if self.config.test_file is not None:
            groups = self._test_groups(self.config.test_file, series_TD.shape[1])
            by_split["test"] = [(number, len(group) - self._window) for number, group in enumerate(groups)]
        sample_bytes = self._window * series_TD.shape[1] * 4 + 3072
        return [
            task
            for split, items in by_split.items()
            for task in shard_tasks(split, ((item, sample_bytes) for item in items), self.config.samples_per_shard)
        ]

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        """The windows of the shard; one with a NaN is rejected."""
        series_TD = read_series(Path(self.config.train_file))
        test_file = self.config.test_file
        groups = [] if test_file is None else self._test_groups(test_file, series_TD.shape[1])
        for number, (group, start) in enumerate(task.items):
            source = series_TD if group < 0 else groups[group]
            window_SD = source[start : start + self._window]
            key = f"{task.split}-{task.name.split('-')[-1].removesuffix('.tar')}-{number:06d}"
            if not np.isfinite(window_SD).all():
                yield BadItem(f"window at time {start}", "it holds NaN or infinite values")
                continue
            yield Sample(key, window_SD.astype(np.float32)[:, :, None, None], meta={"start": start})

    def schema(self, sample: Sample) -> FrameSchema:
        """One channel per variate, one pixel."""
        return schema_of(
            sample,
            channels=tuple(f"variate_{number}" for number in range(sample.frames.shape[1])),
            units="as in the file",
            sample_scaling="history_mean" if self.config.scaling == "mean" else "none",
        )

    def measured_frames(self, sample: Sample) -> np.ndarray:
        """As a run with this context would scale them."""
        if self.config.scaling == "none":
            return sample.frames
        return sample.frames / history_scale(sample.frames[: self.config.resolved_context()])

    def details(self) -> dict[str, Any]:
        """Context, horizon and rolling windows after the protocol was looked up, in times and windows."""
        return {
            "context": self.config.resolved_context(),
            "horizon": self.config.resolved_horizon(),
            "rolling_windows": self.config.resolved_rolling_windows(),
        }

    def _starts(self, series_TD: np.ndarray) -> dict[str, range]:
        """First times of each split's windows in the training file."""
        horizon, total = self.config.resolved_horizon(), len(series_TD)
        num_test = 0 if self.config.test_file is not None else self.config.resolved_rolling_windows()
        test_begin = total - num_test * horizon
        valid_begin = test_begin - self.config.valid_windows * horizon
        context = self.config.resolved_context()
        if valid_begin < self._window:
            raise ValueError(
                f"{self.config.train_file} has {total} times, too few for {num_test} test and "
                f"{self.config.valid_windows} validation windows of horizon {horizon} and a training window of "
                f"{self._window}; lower --context, --rolling-windows or --valid-windows"
            )
        starts = {"train": range(0, valid_begin - self._window + 1, self.config.train_step)}
        if self.config.valid_windows:
            starts["valid"] = range(valid_begin - context, test_begin - self._window + 1, horizon)
        if num_test:
            starts["test"] = range(test_begin - context, total - self._window + 1, horizon)
        return starts

    def _test_groups(self, test_file: str, num_variates: int) -> list[np.ndarray]:
        """The series of each test window, (T, D), each ending with the horizon to forecast."""
        path = Path(test_file)
        targets = _read_json_lines(path)
        if len(targets) % num_variates:
            raise ValueError(f"{path} has {len(targets)} lines, no multiple of the {num_variates} variates in training")
        groups = [_stack(targets[first : first + num_variates], path) for first in range(0, len(targets), num_variates)]
        groups.sort(key=len)
        if len(groups[0]) < self._window:
            raise ValueError(
                f"{path}: a series of {len(groups[0])} times is shorter than context + horizon {self._window}"
            )
        return groups


def read_series(path: Path) -> np.ndarray:
    """A series as (T, D) float64, from LSTNet's text or GluonTS-style JSON lines, by the file's name."""
    if not path.is_file():
        raise FileNotFoundError(f"series {path} does not exist; give another --train-file")
    name = path.name.removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        return _stack(_read_json_lines(path), path)
    with _open(path) as file:
        try:
            return np.loadtxt(file, delimiter=",", ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path} is not comma-separated numbers, a row per time: {error}") from None


def _read_json_lines(path: Path) -> list[np.ndarray]:
    """The target of each line, (T,) float64."""
    if not path.is_file():
        raise FileNotFoundError(f"series {path} does not exist")
    targets = []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                targets.append(
                    np.array([np.nan if value in (None, "NaN") else value for value in json.loads(line)["target"]])
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(f"{path}, line {number}: expected a JSON object with a list 'target'") from None
    if not targets:
        raise ValueError(f"{path} is empty")
    return targets


def _stack(targets: list[np.ndarray], path: Path) -> np.ndarray:
    """Variates of the same length as columns, (T, D)."""
    lengths = {len(target) for target in targets}
    if len(lengths) > 1:
        raise ValueError(
            f"{path}: variates of {min(lengths)} to {max(lengths)} times in one series; make them equally long"
        )
    return np.stack(targets, axis=1).astype(np.float64)


def _open(path: Path) -> Any:
    return gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
