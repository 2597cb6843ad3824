"""Forecasting a set of cases into a folder, case by case; a stopped run goes on where it stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.figures import forecast_animation
from dydiff_dist.forecasting.cases import ArrayCases, CaseReader, stack_cases
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import case_data, find_model, load_forecaster, read_description
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.forecasting.store import FileFormat, ForecastRequest, ForecastStore
from dydiff_dist.strict_config import describe_error

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OnCases = Callable[[int], None]
"""Called with the number of cases just written."""


class ForecastRun:
    """An ensemble forecast of the first cases of a folder of shards or of an array, by one process or several."""

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
        precision: str = "fp32",
        file_format: FileFormat = "npz",
        device: torch.device | str | None = None,
        batch: int = 32,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Opens everything and checks what can be checked before the first forecast.

        Args:
            model: a model's or a run's folder.
            source: the cases: a folder of shards, or a ``.npy`` or ``.npz`` file of histories (``ArrayCases``).
            out: folder of the forecasts; it may hold a stopped run of the same request.
            num_members: M.
            num_cases: the first so many cases; None is all.
            num_frames: frames to forecast; None is the model's own number, more are rolled out, also beyond the
                frames that the shards know.
            seed: key of all noise.
            sampling: fields of SamplingConfig that replace the model's own.
            precision: "fp32" or "bf16", the network's storage.
            file_format: a file per case, or one zarr array of all.
            device: where the network runs; None takes a GPU if there is one.
            batch: members that pass through the network together.
            rank, world_size: this process among those that share the cases; each takes every world_size-th.

        Raises:
            ValueError, FileNotFoundError: one line with what doesn't fit.
        """
        _check_counts(num_members=num_members, num_frames=num_frames, batch=batch)
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; choose 0 to 2**64 - 1")
        description, _ = read_description(model)
        data = case_data(description, model)
        num_frames = num_frames or data.num_future_frames
        self.reader = _open_cases(source, data, description.data_schema, num_frames)
        self._check_schema(description.data_schema, model)
        self.sampling = _replaced(description.sampling, sampling or {})
        self.num_cases, self.num_members = self._checked_count(num_cases), num_members
        chosen = {"num_members": num_members, "seed": seed, "precision": precision, "file_format": file_format}
        request = self._request(model, source, num_frames=num_frames, sampling=self.sampling, **chosen)
        self.forecaster: Forecaster = load_forecaster(
            model, device=device, sampling=self.sampling, dtype=_DTYPES[precision], max_batch=batch
        )
        self.store = ForecastStore.create(out, request, self.num_cases)
        self._cases_at_once = max(1, batch // num_members)
        self._mine = range(rank, self.num_cases, world_size)
        self.missing: list[int] = sorted(set(self._mine) - set(self.store.cases()))
        """Cases that this process has yet to forecast."""
        self.num_reused = len(self._mine) - len(self.missing)

    def _request(self, model: str | Path, source: str | Path, **chosen: Any) -> ForecastRequest:
        """What is asked for: the model, the cases, and what the caller chose."""
        description, weights_sha256 = read_description(model)
        return ForecastRequest(
            model=str(find_model(model)),
            weights_sha256=weights_sha256,
            autoencoder_sha256=description.autoencoder_sha256,
            shards=str(source),
            shards_sha256=self.reader.sha256,
            data=self.reader.data,
            frames=self.reader.schema,
            **chosen,
        )

    def run(self, on_cases: OnCases | None = None) -> None:
        """Forecasts the missing cases; ``on_cases`` hears of each batch that is written."""
        for start in range(0, len(self.missing), self._cases_at_once):
            numbers = self.missing[start : start + self._cases_at_once]
            self._forecast(numbers)
            if on_cases is not None:
                on_cases(len(numbers))

    def _forecast(self, numbers: Sequence[int]) -> None:
        cases = [self.reader.read(number) for number in numbers]
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
            self.store.write(case.number, case.key, ensemble)

    def animate(self, num_cases: int, suffix: str) -> list[Path]:
        """Animations of this process's share of the first ``num_cases``, beside the forecasts; all must be there.

        Args:
            num_cases: at most so many.
            suffix: "gif" or "mp4".
        """
        written = []
        for number in self._mine:
            if number < num_cases:
                case = self.reader.read(number)
                key, members = self.store.read(number)
                shown = ForecastCase(number, key, case.history, case.truth, members)
                path = self.store.folder / f"case_{number:06d}.{suffix}"
                written.append(forecast_animation(shown, self.reader.style(), path))
        return written

    def _check_schema(self, model_schema: dict, model: str | Path) -> None:
        """The shards must hold what the model was trained on."""
        schema = self.reader.schema
        here = (schema.shape[0], schema.num_actions)
        there = (model_schema["shape"][0], model_schema["num_actions"])
        if here != there:
            raise ValueError(
                f"{self.reader.source} has {here[0]} channels and {here[1]} actions, {model} was trained on "
                f"{there[0]} and {there[1]}; give data of the same kind"
            )

    def _checked_count(self, num_cases: int | None) -> int:
        if num_cases is not None and not 1 <= num_cases <= len(self.reader):
            raise ValueError(
                f"{num_cases} cases were asked for, {self.reader.source} has {len(self.reader)}; ask for 1 to "
                f"{len(self.reader)}"
            )
        return num_cases or len(self.reader)


def _open_cases(source: str | Path, data: DataConfig, model_schema: dict, num_frames: int) -> CaseReader | ArrayCases:
    """The cases, cut as the model takes them, with a truth for as many of ``num_frames`` as the shards have."""
    if Path(source).suffix in (".npy", ".npz"):
        return ArrayCases(source, data, model_schema)
    shards = ShardSet.open(source, remote=data.remote, use_actions=data.use_actions)
    known = (shards.schema.num_frames - 1) // data.frame_stride + 1 - data.num_history_frames
    # without a single frame of truth the reader says what the samples lack
    return CaseReader(shards, _with_future(data, max(1, min(num_frames, known))))


def _with_future(data: DataConfig, num_future_frames: int) -> DataConfig:
    return data.model_copy(update={"num_future_frames": num_future_frames})


def _check_counts(**counts: int | None) -> None:
    """Each count is at least 1, or None where it was not asked for."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; ask for at least 1")


def _replaced(sampling: SamplingConfig, fields: dict) -> SamplingConfig:
    """``sampling`` with some fields replaced and everything checked again."""
    try:
        return SamplingConfig(**{**sampling.model_dump(), **fields})
    except ValidationError as error:
        raise ValueError(f"sampling: {describe_error(error, SamplingConfig)}") from None
