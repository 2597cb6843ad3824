"""Scoring a folder of forecasts against the shards they were made from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dydiff_dist.evaluation import choice
from dydiff_dist.evaluation.baselines import Baseline, Climatology
from dydiff_dist.evaluation.calibration import Climate
from dydiff_dist.evaluation.case import ForecastCase, UnreadableCase
from dydiff_dist.evaluation.choice import IMAGE_RANGE, ForecastKind, VideoProtocol
from dydiff_dist.evaluation.evaluate import Evaluation, evaluate
from dydiff_dist.evaluation.fvd import ClipExtractor, Fvd, FvdProtocol
from dydiff_dist.evaluation.lpips import load_lpips, lpips_suite
from dydiff_dist.evaluation.optical_flow import OpticalFlow
from dydiff_dist.evaluation.resampling import Independent
from dydiff_dist.evaluation.suites import Suite
from dydiff_dist.forecasting.cases import CaseReader, is_array
from dydiff_dist.forecasting.store import ForecastStore
from dydiff_dist.ranks.collectives import gather_objects, own_rank


@dataclass(frozen=True)
class Verification:
    """A folder of forecasts beside what happened."""

    store: ForecastStore
    reader: CaseReader
    numbers: list[int]
    """Cases that are to be scored; one without a forecast is counted as an error."""

    @classmethod
    def open(
        cls, forecasts: str | Path, shards: str | Path | None = None, num_cases: int | None = None
    ) -> "Verification":
        """Opens forecasts with their truth.

        Args:
            forecasts: folder that tools/forecast.py wrote.
            shards: folder of the truth; None is where the forecasts say they were made from.
            num_cases: score the first so many; None is all that were asked for, or up to the last that is there where
                the forecasts' record does not say how many that are.

        Raises:
            FileNotFoundError: no forecasts, or no shards.
            ValueError: other shards than the forecasts were made from, or more cases than they have.
        """
        store = ForecastStore.open(forecasts)
        request = store.request
        if shards is None and is_array(request.shards):
            raise ValueError(
                f"{forecasts} was made from the array {request.shards}, which holds no truth; nothing to score"
            )
        reader = _open_truth(store, shards)
        if reader.sha256 != request.shards_sha256:
            raise ValueError(
                f"{forecasts} was made from other shards ({request.shards}) than {reader.source}; give those"
            )
        have = store.cases()
        if not have:
            raise ValueError(f"{forecasts} lacks every case; run tools/forecast.py to its end")
        if num_cases is not None and not 1 <= num_cases <= len(reader):
            raise ValueError(f"num_cases is {num_cases}; score 1 to {len(reader)}, as many as the shards have")
        return cls(store, reader, list(range(num_cases or max(request.num_cases or 0, have[-1] + 1))))

    def unfinished(self) -> str | None:
        """A line that says how many of the cases to be scored have no forecast and what to do; None if all have."""
        num_there = len(set(self.numbers) & set(self.store.cases()))
        if num_there == len(self.numbers):
            return None
        return (
            f"{self.store.folder} is unfinished: {num_there} of {len(self.numbers)} cases are forecast; finish it with "
            "the same tools/forecast.py command, or score fewer with --cases"
        )

    def check_numbers(self, cases: Sequence[int] | None) -> tuple[int, ...] | None:
        """``cases`` as they are, or None for none chosen.

        Raises:
            ValueError: one of them is not among those to be scored.
        """
        for number in cases or ():
            if number not in self.numbers:
                raise ValueError(f"there is no case {number} to picture; choose 0 to {self.numbers[-1]}")
        return None if cases is None else tuple(cases)

    def case(self, number: int) -> ForecastCase:
        """One forecast beside its truth, without the frames that have none.

        Raises:
            ValueError: the file is damaged, or belongs to another sample.
        """
        key, members = self.store.read(number)
        case = self.reader.read(number)
        if members.shape[1:2] == (self.store.request.num_leads,):
            members = members[:, : len(case.truth)]
        if key != case.key:
            raise ValueError(
                f"{self.store.path(number)} is of sample {key!r}, case {number} is {case.key!r}; delete it"
            )
        return case.with_members(members)

    @property
    def kind(self) -> ForecastKind:
        """What scores must know of the forecasts."""
        schema, data = self.reader.schema, self.reader.data
        height, width = data.crop_size or schema.shape[1:]
        statistics, climate = self.reader.shards.manifest.statistics, None
        if schema.sample_scaling == "none" and min(statistics.std) > 0:
            climate = Climate(statistics.mean, statistics.std)
        return ForecastKind(
            schema=schema,
            shape=(data.num_future_frames, schema.shape[0], height, width),
            num_history_frames=data.num_history_frames,
            num_members=self.store.request.num_members,
            periodic=self.reader.is_periodic,
            climate=climate,
            patch_pixels=self.store.request.patch_pixels,
        )

    def climatology(self, folder: str | Path, seed: int = 0, num_members: int | None = None) -> Climatology:
        """The climatology of the training shards in ``folder``, cut as the forecasts are.

        Args:
            folder: training shards.
            seed: of its ensemble.
            num_members: of its ensemble; None is as many as each forecast has.

        Raises:
            ValueError: its frames have another shape.
        """
        training = CaseReader.open(folder, self.reader.data)
        here, there = self.reader.schema.shape, training.schema.shape
        if here != there and (self.reader.data.crop_size is None or here[0] != there[0]):
            raise ValueError(
                f"{folder} has frames of shape {there}, the forecasts' shards {here}; give their training set"
            )
        return Climatology(training.frames, len(training), seed, num_members)

    def optical_flow(self) -> OpticalFlow:
        """Optical-flow extrapolation that follows the quantity which pictures show.

        Raises:
            ValueError: frames of one pixel, fewer than two given ones, or pysteps is not installed.
        """
        kind = self.kind
        if kind.is_series or kind.num_history_frames < 2:
            what = "frames of one pixel" if kind.is_series else f"{kind.num_history_frames} given frame"
            raise ValueError(f"optical flow needs fields and at least 2 given ones, these have {what}; leave it out")
        return OpticalFlow(self.reader.style().tracer, kind.periodic)

    def evaluate(
        self,
        *baselines: Baseline,
        suites: Sequence[Suite] = (),
        fvd: Fvd | None = None,
        independent: Independent | None = None,
        on_case: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Scores this process's share of the cases and returns the scores of all, the same on any number of processes.

        Collective where the ranks have met: rank r of W takes every W-th case from the r-th on.

        Args:
            baselines: beyond persistence.
            suites: scores beyond CRPS and MSE, as ``choose_suites`` makes them.
            fvd: adds the Fréchet video distance.
            independent: what counts as one observation in intervals; None takes what the shards' manifest says, and
                chooses by the keys where it says nothing.
            on_case: called after each of this process's cases.
        """
        rank, world_size = own_rank()

        def watched() -> Iterator[ForecastCase | UnreadableCase]:
            for number in self.numbers[rank::world_size]:
                yield self._case_or_reason(number)
                if on_case is not None:
                    on_case()

        bounds = self.reader.schema.bounds
        independent = independent or self.reader.shards.manifest.independent
        evaluation = evaluate(watched(), *baselines, suites=suites, fvd=fvd, independent=independent, bounds=bounds)
        if world_size > 1:
            evaluation = _gathered(evaluation)
        evaluation.protocol |= self._protocol()
        return evaluation

    def _case_or_reason(self, number: int) -> ForecastCase | UnreadableCase:
        """The case, or why it can't be read: no forecast, a damaged file, a forecast of another sample."""
        try:
            return self.case(number)
        except (ValueError, OSError) as error:
            return UnreadableCase(number, f"case {number}: {error}")

    def choose_suites(self, names: Sequence[str] | None = None, preset: str = "default") -> list[Suite]:
        """Score suites by name (None: all that fit the data), with a preset of a published protocol.

        Raises:
            ValueError: an unknown name, or one that the data don't fit.
        """
        return choice.choose_suites(names, preset, self.kind)

    def lpips(self, backbone: str | Path, preset: str = "default", device: torch.device | str | None = None) -> Suite:
        """The suite of LPIPS with a file of AlexNet or VGG-16 weights.

        Args:
            backbone: the file.
            preset: of ``PRESETS``; one of video says which network it must be.
            device: where it runs; None takes a GPU if there is one.

        Raises:
            FileNotFoundError, ValueError: no such file, not such weights, other ones than the preset's, or frames that
                are no pictures.
        """
        self.kind.check_images("LPIPS")
        network, sha256 = load_lpips(backbone, _device(device))
        protocol = choice.find_preset(preset)
        wanted = protocol.lpips_network if isinstance(protocol, VideoProtocol) else None
        if wanted not in (None, network.net):
            raise ValueError(f"preset {preset!r} asks for LPIPS with {wanted}, {backbone} is {network.net}")
        return lpips_suite(network, sha256, IMAGE_RANGE)

    def fvd(
        self,
        extractor: str | Path,
        sha256: str | None = None,
        protocol: FvdProtocol | None = None,
        device: torch.device | str | None = None,
    ) -> Fvd:
        """The Fréchet video distance with a TorchScript extractor, which is loaded, that is: run.

        Args:
            extractor: file of the network.
            sha256: what the file must be.
            protocol: how clips are made; None is that of published numbers.
            device: where it runs; None takes a GPU if there is one.

        Raises:
            FileNotFoundError, ValueError: no such file, another one than pinned, or frames that are no pictures.
        """
        self.kind.check_images("FVD")
        protocol = protocol or FvdProtocol()
        network = ClipExtractor(extractor, sha256=sha256, device=_device(device), size_pixels=protocol.size_pixels)
        return Fvd(network, protocol, IMAGE_RANGE)

    def _protocol(self) -> dict:
        request = self.store.request
        more: dict[str, Any] = {"caution": request.sampling.caution} if request.sampling.caution else {}
        if request.inflation is not None:
            more["calibration"] = {"inflation": list(request.inflation)}
        return more | {
            "model": request.model,
            "weights_sha256": request.weights_sha256,
            "shards": str(self.reader.source),
            "shards_sha256": request.shards_sha256,
            "num_cases_in_shards": len(self.reader),
            "frames_without_truth": request.num_leads - request.data.num_future_frames,
            "sampling": request.sampling.model_dump(mode="json"),
            "seed": request.seed,
            "precision": request.precision,
            "frame_stride": request.data.frame_stride,
            "crop_size": request.data.crop_size,
        }


def _open_truth(store: ForecastStore, shards: str | Path | None) -> CaseReader:
    """The shards that forecasts were made from, or the ones given in their place."""
    request = store.request
    if shards is None and "://" not in request.shards and not Path(request.shards).is_dir():
        relative = "" if Path(request.shards).is_absolute() else f" (as seen from {Path.cwd()})"
        raise FileNotFoundError(
            f"{store.folder} was made from {request.shards}, which is not there{relative}; give these shards with "
            "--shards DIR"
        )
    return CaseReader.open(shards or request.shards, request.data)


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _gathered(evaluation: Evaluation) -> Evaluation:
    """The scores of all processes on each of them."""
    parts = gather_objects(replace(evaluation, suites=()))  # suites hold functions, which can't be sent
    return replace(parts[0].merge(parts[1:]), suites=evaluation.suites)
