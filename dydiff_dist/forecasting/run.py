"""Forecasting a set of cases into a folder, case by case; a stopped run goes on where it stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from dydiff_dist.data.shard_set import DamagedSampleError
from dydiff_dist.evaluation.animation import forecast_animation
from dydiff_dist.forecasting.cases import Case, open_cases, stack_cases
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import case_data, find_model, load_forecaster, patch_pixels, read_description
from dydiff_dist.forecasting.inflation import inflate, read_inflation
from dydiff_dist.forecasting.store import FileFormat, ForecastRequest, ForecastStore, Precision
from dydiff_dist.strict_config import describe_error

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ForecastRun:
    """An ensemble forecast of the first cases of a folder of shards or of an array, by one process or several.

    Args:
        model: a model's or a run's folder.
        source: the cases: a folder of shards, or a ``.npy`` or ``.npz`` file of histories (``ArrayCases``).
        out: folder of the forecasts; it may hold a stopped run of the same request.
        num_members: M.
        num_cases: the first so many cases; None is all.
        num_frames: frames to forecast; None is the model's own number, more are rolled out, also beyond the frames
            that the shards know.
        seed: key of all noise, 0 <= seed < 2**64.
        sampling: fields of SamplingConfig that replace the model's own.
        precision: the network's storage.
        file_format: a file per case, or one zarr array of all.
        calibrated: move members from their mean as was fitted to the model on validation cases (``inflation.py``).
        device: where the network runs; None takes a GPU if there is one.
        batch: members that pass through the network together.
        rank, world_size: this process among those that share the cases; each takes every world_size-th.

    Raises:
        ValueError, FileNotFoundError: one line with what doesn't fit, before the first forecast.

    Examples:
        >>> run = ForecastRun("runs/radar", "shards/radar/test", "forecasts/radar", num_members=16)  # doctest: +SKIP
        >>> run.run()  # doctest: +SKIP
    """

    problems: dict[int, str]
    """Cases that ``run`` could not forecast, with the reason: a history that is not finite, a damaged sample."""

    def __init__(
        self,
        model: str | Path,
        source: str | Path,
        out: str | Path,
        *,
        num_members: int = 8,
        num_cases: int | None = None,
        num_frames: int | None = None,
        seed: int = 0,
        sampling: dict | None = None,
        precision: Precision = "fp32",
        file_format: FileFormat = "npz",
        calibrated: bool = False,
        device: torch.device | str | None = None,
        batch: int = 32,
        rank: int = 0,
        world_size: int = 1,
    ):
        _check_numbers(seed, num_members=num_members, num_frames=num_frames, batch=batch)
        description, weights_sha256 = read_description(model)
        data = case_data(description, model)
        num_frames = num_frames or data.num_future_frames
        self.reader = open_cases(source, data, description.data_schema, num_frames)
        self.sampling = changed_sampling(description.sampling, sampling or {})
        self.num_cases, self.num_members = self._checked_count(num_cases), num_members
        dtype = _DTYPES[precision]
        self.forecaster = load_forecaster(model, device=device, sampling=self.sampling, dtype=dtype, max_batch=batch)
        request = ForecastRequest(
            model=str(find_model(model)),
            weights_sha256=weights_sha256,
            autoencoder_sha256=description.autoencoder_sha256,
            patch_pixels=None if self.forecaster.moves_view else patch_pixels(description, model),
            shards=str(source),
            shards_sha256=self.reader.sha256,
            data=self.reader.data,
            frames=self.reader.schema,
            sampling=self.sampling,
            num_frames=num_frames,
            num_members=num_members,
            seed=seed,
            precision=precision,
            file_format=file_format,
            inflation=read_inflation(model, weights_sha256, self.sampling).factors if calibrated else None,
        )
        self.store = ForecastStore.create(out, request, self.num_cases)
        self._cases_at_once, self._mine = max(1, batch // num_members), range(rank, self.num_cases, world_size)
        self.missing: list[int] = sorted(set(self._mine) - set(there := self._cases_there()))
        """Cases that this process has yet to forecast."""
        self.num_reused, self.problems = len(there), {}

    def run(self, on_cases: Callable[[int], None] = lambda num_cases: None) -> None:
        """Forecasts the missing cases; ``on_cases`` is called with the number of cases done since the last call, by all
        processes. A case that can't be forecast is named in ``problems`` and stops no other."""
        done = self.num_reused
        for start in range(0, len(self.missing), self._cases_at_once):
            self._forecast(self.missing[start : start + self._cases_at_once])
            done, before = len(self._cases_there()) + len(self.problems), done
            on_cases(done - before)

    def _cases_there(self) -> list[int]:
        """Those of the run that any process has written, in this start or before."""
        return [number for number in self.store.cases() if number < self.num_cases]

    def _forecast(self, numbers: Sequence[int]) -> None:
        cases = [case for number in numbers if (case := self._forecastable(number)) is not None]
        if not cases:
            return
        request = self.store.request
        history, actions, case_index = stack_cases(cases, request.num_leads)
        members = self.forecaster.forecast(
            history,
            actions=actions,
            case_index=case_index,
            num_members=self.num_members,
            seed=request.seed,
            num_frames=request.num_leads,
        )
        for case, ensemble in zip(cases, members.numpy(), strict=True):
            if request.inflation is not None:
                ensemble = inflate(ensemble, request.inflation, request.frames)
            self.store.write(case.number, case.key, ensemble)

    def _forecastable(self, number: int) -> Case | None:
        """The case, or None with its problem noted."""
        try:
            case = self.reader.read(number)
            problem = case.problem()
        except DamagedSampleError as error:
            problem = f"case {number}: {error}"
        if problem is None:
            return case
        self.problems[number] = problem
        return None

    def animate(self, num_cases: int, suffix: str) -> list[Path]:
        """Animations of this process's share of the first ``num_cases``, beside the forecasts; all but those with
        ``problems`` must be there.

        Args:
            num_cases: at most so many.
            suffix: "gif" or "mp4".
        """
        written = []
        for number in self._mine:
            if number < num_cases and number not in self.problems:
                shown = self.reader.read(number).with_members(self.store.read(number)[1])
                path = self.store.folder / f"case_{number:06d}.{suffix}"
                written.append(forecast_animation(shown, self.reader.style(), path))
        return written

    def _checked_count(self, num_cases: int | None) -> int:
        have = len(self.reader)
        if num_cases is not None and not 1 <= num_cases <= have:
            raise ValueError(f"{num_cases} cases were asked for, {self.reader.source} has {have}; ask for 1 to {have}")
        return num_cases or have


def _check_numbers(seed: int, **counts: int | None) -> None:
    """A seed is one of 64 bits, each count at least 1, or None where it was not asked for."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; choose 0 to 2**64 - 1")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; ask for at least 1")


def changed_sampling(sampling: SamplingConfig, fields: dict) -> SamplingConfig:
    """``sampling`` with some fields replaced and everything checked again.

    Raises:
        ValueError: one line with the field, the value and the rule.
    """
    try:
        return SamplingConfig(**{**sampling.model_dump(), **fields})
    except ValidationError as error:
        raise ValueError(f"sampling: {describe_error(error, SamplingConfig)}") from None
