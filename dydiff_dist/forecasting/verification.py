"""Scoring a folder of forecasts against the shards they were made from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from dydiff_dist.evaluation import figures
from dydiff_dist.evaluation.baselines import Climatology
from dydiff_dist.evaluation.choice import choose_suites
from dydiff_dist.evaluation.evaluate import FORECAST, Evaluation, ForecastCase, evaluate
from dydiff_dist.evaluation.html_report import ReportRun, write_report, write_strips
from dydiff_dist.evaluation.report import write_summary
from dydiff_dist.evaluation.suites import Suite
from dydiff_dist.evaluation.table import ScoreTable
from dydiff_dist.forecasting.cases import CaseReader
from dydiff_dist.forecasting.store import ForecastStore


@dataclass(frozen=True)
class Verification:
    """A folder of forecasts beside what happened."""

    store: ForecastStore
    reader: CaseReader
    numbers: list[int]
    """Cases that are scored."""

    @classmethod
    def open(cls, forecasts: str | Path, shards: str | Path | None = None, num_cases: int | None = None):
        """Opens forecasts with their truth.

        Args:
            forecasts: folder that tools/forecast.py wrote.
            shards: folder of the truth; None is where the forecasts say they were made from.
            num_cases: score the first so many; None is all that were forecast.

        Raises:
            FileNotFoundError: no forecasts, or no shards.
            ValueError: other shards than the forecasts were made from, or fewer cases than asked for.
        """
        store = ForecastStore.open(forecasts)
        request = store.request
        reader = CaseReader.open(shards or request.shards, request.data)
        if reader.sha256 != request.shards_sha256:
            raise ValueError(
                f"{forecasts} was made from other shards ({request.shards}) than {reader.shards.folder}; give those"
            )
        if num_cases is not None and num_cases < 1:
            raise ValueError(f"num_cases is {num_cases}; score at least 1")
        wanted = range(num_cases) if num_cases is not None else store.cases()
        have = set(store.cases())
        missing = [number for number in wanted if number not in have]
        if missing or not have:
            what = f"case {missing[0]} and {len(missing) - 1} more of {len(wanted)}" if missing else "every case"
            raise ValueError(f"{forecasts} lacks {what}; run tools/forecast.py to its end, or score fewer with --cases")
        return cls(store, reader, list(wanted))

    def case(self, number: int) -> ForecastCase:
        """One forecast beside its truth.

        Raises:
            ValueError: the file is damaged, or belongs to another sample.
        """
        key, members = self.store.read(number)
        case = self.reader.read(number)
        if key != case.key:
            raise ValueError(
                f"{self.store.path(number)} is of sample {key!r}, case {number} is {case.key!r}; delete it"
            )
        return ForecastCase(number, key, case.history, case.truth, members)

    @property
    def frames_are_images(self) -> bool:
        """Whether frames have an extent; those of time series are one pixel."""
        return self.reader.shards.schema.shape[1:] != (1, 1)

    def climatology(self, folder: str | Path, seed: int = 0) -> Climatology:
        """The climatology of the training shards in ``folder``, cut as the forecasts are.

        Raises:
            ValueError: its frames have another shape.
        """
        training = CaseReader.open(folder, self.reader.data)
        here, there = self.reader.shards.schema.shape, training.shards.schema.shape
        if here != there and (self.reader.data.crop_size is None or here[0] != there[0]):
            raise ValueError(
                f"{folder} has frames of shape {there}, the forecasts' shards {here}; give their training set"
            )
        return Climatology(training.frames, len(training), seed)

    def evaluate(
        self,
        climatology: Climatology | None = None,
        num_climatology_members: int | None = None,
        suites: Sequence[Suite] = (),
        on_case: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Scores this process's share of the cases and returns the scores of all, the same on any number of processes.

        Collective where ``torch.distributed`` runs: process r of W takes every W-th case from the r-th on.

        Args:
            climatology: None leaves that baseline out.
            num_climatology_members: None is as many as the forecast has.
            suites: scores beyond CRPS and MSE, as ``choose_suites`` makes them.
            on_case: called after each of this process's cases.
        """
        if num_climatology_members is not None and num_climatology_members < 1:
            raise ValueError(f"num_climatology_members is {num_climatology_members}; take at least 1")
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

        def watched() -> Iterator[ForecastCase]:
            for number in self.numbers[rank::world_size]:
                yield self.case(number)
                if on_case is not None:
                    on_case()

        evaluation = evaluate(watched(), climatology, num_climatology_members, suites)
        if world_size > 1:
            evaluation = _gathered(evaluation, world_size)
        evaluation.protocol |= self._protocol()
        return evaluation

    def choose_suites(self, names: Sequence[str] | None = None, preset: str = "default") -> list[Suite]:
        """Score suites by name (None: all that fit the data), with a rain preset.

        Raises:
            ValueError: an unknown name, or one that the data don't fit.
        """
        schema, data = self.reader.shards.schema, self.reader.data
        height, width = data.crop_size or schema.shape[1:]
        return choose_suites(
            names,
            preset=preset,
            num_history_frames=data.num_history_frames,
            shape_SCHW=(data.num_future_frames, schema.shape[0], height, width),
            schema=schema.model_dump(),
            periodic="periodic_shift" in schema.allowed_augmentations and data.crop_size is None,
        )

    def _protocol(self) -> dict:
        request = self.store.request
        return {
            "model": request.model,
            "weights_sha256": request.weights_sha256,
            "shards": str(self.reader.shards.folder),
            "shards_sha256": request.shards_sha256,
            "sampling": request.sampling.model_dump(mode="json"),
            "seed": request.seed,
            "precision": request.precision,
            "frame_stride": request.data.frame_stride,
            "crop_size": request.data.crop_size,
        }


def _gathered(evaluation: Evaluation, world_size: int) -> Evaluation:
    """The scores of all processes on each of them."""
    parts: list = [None] * world_size
    dist.all_gather_object(parts, (evaluation.tables, evaluation.protocol))
    tables = {name: ScoreTable().merge(part[name] for part, _ in parts) for name in evaluation.tables}
    # a process without a case knows less of the protocol
    protocol = {key: value for _, known in reversed(parts) for key, value in known.items()}
    return Evaluation(tables, protocol, evaluation.suites)


def write_evaluation(
    verification: Verification,
    evaluation: Evaluation,
    out: str | Path,
    picture_cases: tuple[int, ...] = (0,),
    num_report_cases: int = 4,
) -> list[Path]:
    """Writes scores.json, report.html, the curves, and picture and animation of some cases; returns the paths.

    Args:
        verification: the forecasts that were scored.
        evaluation: their scores.
        out: folder, created where needed.
        picture_cases: count within the cases that were scored; those that are not there are left out.
        num_report_cases: cases animated in the report, evenly spaced.
    """
    out = Path(out)
    write_summary(evaluation, out / "scores.json")
    written = [out / "scores.json"]
    scored = sorted(evaluation.tables[FORECAST].cases)
    if not scored:
        return written
    count = min(num_report_cases, len(scored))
    shown = [verification.case(scored[index * len(scored) // count]) for index in range(count)]
    if verification.frames_are_images:
        write_strips(shown, verification.reader.style(), out)
    label = Path(verification.store.request.model).resolve().parent.name
    written.append(write_report([ReportRun(label, out)], out / "report.html", f"Forecasts of {label}"))
    written.append(figures.save_figure(figures.score_figure(evaluation), out / "scores.png"))
    for position in picture_cases:
        if 0 <= position < len(scored):
            written += _write_pictures(verification, verification.case(scored[position]), out)
    return written


def _write_pictures(verification: Verification, case: ForecastCase, out: Path) -> list[Path]:
    """Picture and animation of one case; of time series, a picture only."""
    stem = f"forecast_{case.number:06d}"
    if not verification.frames_are_images:
        channels = verification.reader.shards.schema.channels
        return [figures.save_figure(figures.series_figure(case, channels), out / f"{stem}.png")]
    style = verification.reader.style()
    return [
        figures.save_figure(figures.forecast_figure(case, style), out / f"{stem}.png"),
        figures.forecast_animation(case, style, out / f"{stem}.gif"),
    ]
