"""Source ``timeseries``: multivariate series, cut into windows of context and horizon.

Two inputs: tables with a row per time (LSTNet's text, CSV, or long tables), and GluonTS-style JSON lines (an object
with ``target`` per variate; .json, .jsonl), both also packed by gzip. A sample is (S, D, 1, 1): S = context + horizon
times, one channel per variate. No window holds a missing value or crosses a gap in time.

The last ``rolling_windows`` horizons are the test set, as in the field's CRPS-sum protocol: window i forecasts the i-th
of them from the context before it. The ``valid_windows`` horizons before them are for validation, everything earlier
for training, so no training window reaches into what is forecast later.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema, Independent
from dydiff_dist.data.scaling import history_scale
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source, register_source, schema_of, split_tasks
from dydiff_dist.data.sources.series_files import Series, read_json_lines, read_series, stack_targets
from dydiff_dist.data.tables import Decimal
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
GAP_STEPS = 1.5
"""Rows that lie further apart than so many usual steps have a gap between them."""
MAX_GAP_SHARE = 0.1
"""Above this share of the steps, long ones are the calendar (weekends) and no gaps."""
LARGE_SCALED_VALUE = 100.0
"""Scaled values above it are named: their context is close to zero."""


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
    by it, so that they come out in the units of the file; the shards hold the file's values either way. A context of
    zeros alone is scaled by the variate's mean absolute value over the training times."""
    decimal: Decimal | None = None
    """Whether numbers in a table have a decimal point or a decimal comma; found in the file if left out."""
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
    "timeseries",
    TimeseriesSourceConfig,
    "Multivariate series: tables (CSV, LSTNet's text) or GluonTS-style JSON lines.",
)
class TimeseriesSource(Source[TimeseriesSourceConfig]):
    """Windows of one multivariate series, one channel per variate and one pixel: samples (S, D, 1, 1) float32."""

    def __init__(self, config: TimeseriesSourceConfig):
        super().__init__(config)
        self._window = config.resolved_context() + config.resolved_horizon()

    def plan(self) -> list[ShardTask]:
        """Shards of each split; an item is (test group or -1 for the training file, first time) of a window."""
        series = self._train_series()
        by_split = {split: [(-1, start) for start in starts] for split, starts in self._starts(series).items()}
        if self.config.test_file is not None:
            groups = self._test_groups(self.config.test_file, series.values.shape[1])
            by_split["test"] = [(number, len(group.values) - self._window) for number, group in enumerate(groups)]
        sample_bytes = self._window * series.values.shape[1] * 4 + 3072
        sized = {split: [(item, sample_bytes) for item in items] for split, items in by_split.items()}
        return split_tasks(sized, self.config.samples_per_shard)

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem | LeftOut]:
        """The windows of the shard; those with a missing value are rejected, all that hold the same one together, and
        those that cross a gap in time are left out."""
        train = self._train_series()
        groups: list[Series] = []
        if self.config.test_file is not None and task.split == "test":
            groups = self._test_groups(self.config.test_file, train.values.shape[1])
        gaps = time_gaps(train)
        missing: dict[str, list[int]] = {}
        for number, (group, start) in enumerate(task.items):
            series = train if group < 0 else groups[group]
            window_SD = series.values[start : start + self._window]
            key = f"{task.split}-{task.name.split('-')[-1].removesuffix('.tar')}-{number:06d}"
            if not np.isfinite(window_SD).all():
                missing.setdefault(_first_missing(series, start, window_SD), []).append(start)
            elif group < 0 and gaps[start : start + self._window - 1].any():
                row = start + int(np.argmax(gaps[start : start + self._window - 1])) + 1
                yield LeftOut(f"a window would cross the gap in time before {series.places[row]}")
            else:
                yield Sample(key, window_SD.astype(np.float32)[:, :, None, None], meta={"start": start})
        for reason, starts in missing.items():
            windows = f"window at time {starts[0]}" if len(starts) == 1 else f"{len(starts)} windows"
            span = "" if len(starts) == 1 else f" at times {starts[0]} to {starts[-1]}"
            yield BadItem(windows + span, reason)

    def item_files(self, item: Any) -> list[Path]:
        """The file or files of the series."""
        return [Path(name) for name in (self.config.train_file, self.config.test_file) if name is not None]

    def independent(self, split: str) -> Independent | None:
        """Each window of validation and testing, as their horizons lie one after the other."""
        return None if split == "train" else "case"

    def split_hint(self, split: str) -> str:
        """The option that makes the split."""
        return (
            f"--valid-windows is {self.config.valid_windows}" if split == "valid" else "the series has no such window"
        )

    def schema(self, sample: Sample) -> FrameSchema:
        """One channel per variate, one pixel."""
        scales = self.config.scaling == "mean"
        return schema_of(
            sample,
            channels=self._train_series().names,
            units="as in the file",
            sample_scaling="history_mean" if scales else "none",
            empty_history_scale=self._empty_history_scale() if scales else (),
        )

    def measured_frames(self, sample: Sample) -> np.ndarray:
        """As a run with this context would scale them."""
        if self.config.scaling == "none":
            return sample.frames
        return sample.frames / history_scale(
            sample.frames[: self.config.resolved_context()], self._empty_history_scale()
        )

    def details(self) -> dict[str, Any]:
        """Context, horizon and rolling windows after the protocol was looked up, in times and windows."""
        return {
            "context": self.config.resolved_context(),
            "horizon": self.config.resolved_horizon(),
            "rolling_windows": self.config.resolved_rolling_windows(),
        }

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """How the file was understood, what is missing in it, and series that mean scaling does not suit."""
        series = self._train_series()
        lines = [*series.notes, *_describe_steps(series)]
        missing = ~np.isfinite(series.values)
        if missing.any():
            count = f"{missing.sum()} values are missing" if missing.sum() > 1 else "1 value is missing"
            lines.append(f"{count}, the first at {_first_missing(series, 0, series.values)}")
        return lines + (self._describe_scales(series) if self.config.scaling == "mean" else [])

    def _train_series(self) -> Series:
        return _cached_series(*self._train_file())

    def _train_file(self) -> tuple[Path, tuple[int, int] | None, Decimal | None]:
        """What the series follows from: the file, its state, and how its numbers are read."""
        path = Path(self.config.train_file)
        state = path.stat() if path.is_file() else None
        return path, state and (state.st_mtime_ns, state.st_size), self.config.decimal

    def _empty_history_scale(self) -> tuple[float, ...]:
        """Mean absolute value of each variate over the training times; 1 for one that is zero throughout."""
        num_later = (self._num_test() + self.config.valid_windows) * self.config.resolved_horizon()
        return _cached_scale(*self._train_file(), num_later)

    def _num_test(self) -> int:
        """Test windows at the end of the training file."""
        return 0 if self.config.test_file is not None else self.config.resolved_rolling_windows()

    def _starts(self, series: Series) -> dict[str, range]:
        """First times of each split's windows in the training file."""
        horizon, total = self.config.resolved_horizon(), len(series.values)
        num_test = self._num_test()
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

    def _describe_scales(self, series: Series) -> list[str]:
        """Variates whose contexts are empty, or so small that scaled values are large."""
        size = np.abs(np.nan_to_num(series.values, posinf=0.0, neginf=0.0))
        context, num_windows = self.config.resolved_context(), len(size) - self._window + 1
        is_empty = _sliding_sums((size > 0).astype(np.int64), context)[:num_windows] == 0
        empty_scale = np.array(self._empty_history_scale())
        mean = np.maximum(_sliding_sums(size, context)[:num_windows] / context, np.finfo(float).tiny)
        largest = size[:num_windows].copy()
        for offset in range(1, self._window):
            np.maximum(largest, size[offset : offset + num_windows], out=largest)
        scaled = largest / np.where(is_empty, empty_scale, mean)
        late = [
            f"{name}: the context of {is_empty[:, variate].sum()} windows is zero throughout; it is scaled by the mean "
            f"absolute value over the training times, {empty_scale[variate]:.4g}"
            for variate, name in enumerate(series.names)
            if is_empty[:, variate].any()
        ]
        large = [
            f"warning: {name} is close to zero in some contexts; scaled by their mean absolute value it reaches "
            f"{scaled[:, variate].max():,.0f} (window from {series.places[scaled[:, variate].argmax()]}): consider "
            "--scaling none"
            for variate, name in enumerate(series.names)
            if scaled[:, variate].max() > LARGE_SCALED_VALUE
        ]
        return _first_few(late, "begin late") + _first_few(large, "reach large values")

    def _test_groups(self, test_file: str, num_variates: int) -> list[Series]:
        """The series of each test window, (T, D), each ending with the horizon to forecast."""
        path = Path(test_file)
        targets = read_json_lines(path)
        if len(targets) % num_variates:
            raise ValueError(f"{path} has {len(targets)} lines, no multiple of the {num_variates} variates in training")
        groups = [
            stack_targets(targets[first : first + num_variates], path) for first in range(0, len(targets), num_variates)
        ]
        groups.sort(key=lambda group: len(group.values))
        if len(groups[0].values) < self._window:
            raise ValueError(
                f"{path}: a series of {len(groups[0].values)} times is shorter than context + horizon {self._window}"
            )
        return groups


@lru_cache(maxsize=2)
def _cached_series(path: Path, state: tuple[int, int] | None, decimal: Decimal | None) -> Series:
    """The series of a file in this ``state``."""
    return read_series(path, decimal)


@lru_cache(maxsize=2)  # every window asks for it
def _cached_scale(
    path: Path, state: tuple[int, int] | None, decimal: Decimal | None, num_later: int
) -> tuple[float, ...]:
    """``mean_absolute`` of such a file without its last ``num_later`` times."""
    values = _cached_series(path, state, decimal).values
    return mean_absolute(values[: len(values) - num_later])


def mean_absolute(values_TD: np.ndarray) -> tuple[float, ...]:
    """The mean absolute value of each variate over the times that have one; 1 where it is 0 or there is none."""
    is_known = np.isfinite(values_TD)
    total = np.abs(np.where(is_known, values_TD, 0.0)).sum(axis=0)
    mean = total / np.maximum(is_known.sum(axis=0), 1)
    return tuple(np.where(mean > 0, mean, 1.0).tolist())


def time_gaps(series: Series) -> np.ndarray:
    """(T - 1,): whether time jumps between a row and the next. No gaps are known without times, nor where the steps are
    uneven throughout, as those of trading days."""
    steps = series.steps()
    if steps is None or not len(steps):
        return np.zeros(max(len(series.values) - 1, 0), bool)
    gaps = steps > GAP_STEPS * np.median(steps)
    return gaps if gaps.mean() <= MAX_GAP_SHARE else np.zeros_like(gaps)


def _sliding_sums(values_TD: np.ndarray, length: int) -> np.ndarray:
    """(T - length + 1, D): sums over so many times from each on."""
    sums = np.concatenate([np.zeros_like(values_TD[:1]), np.cumsum(values_TD, axis=0)])
    return sums[length:] - sums[:-length]


def _first_few(lines: list[str], what: str) -> list[str]:
    """The first lines, and how many more series there are."""
    return lines if len(lines) <= 5 else [*lines[:4], f"{len(lines) - 4} more series {what} in the same way"]


def _describe_steps(series: Series) -> list[str]:
    """What the times say, where rows are not evenly spaced."""
    steps = series.steps()
    if steps is None or not len(steps) or steps.max() <= GAP_STEPS * np.median(steps):
        return []
    gaps = time_gaps(series)
    if gaps.any():
        row = int(np.argmax(gaps))
        return [
            f"{gaps.sum()} gaps in time, the first before {series.places[row + 1]} ({_in_words(steps[row])} after the "
            f"row before it, elsewhere {_in_words(float(np.median(steps)))}); no window crosses one"
        ]
    common = ", ".join(_in_words(step) for step, _ in Counter(steps.tolist()).most_common(3))
    return [f"rows are unevenly spaced ({common}, ...) and are taken as equal steps, as of trading days"]


def _in_words(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _first_missing(series: Series, start: int, window_SD: np.ndarray) -> str:
    """Where the first value is missing in a window that begins at ``start``."""
    row, column = np.unravel_index(int(np.argmax(~np.isfinite(window_SD))), window_SD.shape)
    what = "no value" if np.isnan(window_SD[row, column]) else "an infinite value"
    return f"{series.places[start + row]}: {what} of {series.names[column]} (variate {column + 1})"
