"""Cases: what a forecast is given and what happened, in stored units, from shards or from an array of one's own.

Letters: N cases, S frames (S_h history, S_f future), C channels, H W height and width, A actions.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from dydiff_dist.arrays import parse_npy, read_npz
from dydiff_dist.data.augment import check_against_schema
from dydiff_dist.data.config import AugmentationConfig, DataConfig
from dydiff_dist.data.manifest import FrameSchema, manifest_identity
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import FieldStyle, style_of
from dydiff_dist.files import file_sha256
from dydiff_dist.forecasting.exported import case_data, read_description
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.quoting import shortened
from dydiff_dist.strict_config import describe_error


@dataclass(frozen=True)
class Case:
    """One sample, cut as the forecast needs it."""

    number: int
    """Its position in the shards."""
    key: str
    history: np.ndarray
    """(S_h, C, H, W) float32, stored units."""
    truth: np.ndarray
    """(S_f, C, H, W) float32, stored units."""
    actions: np.ndarray | None
    """(S_h + S_f, A) float32, or longer where the forecast goes on beyond the truth."""

    def problem(self) -> str | None:
        """Why it can't be forecast, in a line that names it: a history or actions that are not finite."""
        for what, values in (("history", self.history), ("actions", self.actions)):
            num_bad = 0 if values is None else values.size - int(np.isfinite(values).sum())
            if values is not None and num_bad:
                of_what = f"{num_bad} of {values.size} values of its {what}"
                return f"case {self.number} ({self.key}): {of_what} are NaN or infinite"
        return None

    def with_members(self, members: np.ndarray) -> ForecastCase:
        """The case beside its forecast (M, S, C, H, W)."""
        return ForecastCase(self.number, self.key, self.history, self.truth, members)


class Cases(ABC):
    """Cases to be read by number, from 0 to ``len(cases) - 1``."""

    source: str
    """Where they come from, for messages."""
    sha256: str
    """Of the shards' manifest, which holds the checksums of all else, or of the array's file."""
    schema: FrameSchema
    """Of the stored frames."""
    data: DataConfig
    """How they are cut."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, number: int) -> Case:
        """A case by its number; ``Case.truth`` is empty where what happened is not known."""

    @property
    def is_periodic(self) -> bool:
        """Whether the frames, as they are cut, wrap around."""
        return "periodic_shift" in self.schema.allowed_augmentations and self.data.crop_size is None

    def style(self) -> FieldStyle:
        """How pictures show these frames, by what the schema says of them."""
        return style_of(self.schema, is_cropped=self.data.crop_size is not None)


class CaseReader(Cases):
    """Reads cases from shards: the first frames and the centre crop of a sample, nothing random, nothing rounded.

    Examples:
        >>> cases = CaseReader.for_model("runs/turbulence_fewstep", "shards/turbulence/test")  # doctest: +SKIP
        >>> case = cases.read(0)  # doctest: +SKIP
    """

    def __init__(self, shards: ShardSet, data: DataConfig):
        """
        Raises:
            ValueError: the samples are too short or too small for ``data``.
        """
        self.shards, self.source = shards, str(shards.folder)
        self.schema, self.sha256 = shards.schema, manifest_identity(shards.manifest)
        self.data = data.model_copy(update={"augmentation": AugmentationConfig()})
        check_against_schema(self.data, shards.schema, self.source)
        if shards.manifest.latents is not None:
            raise ValueError(
                f"{shards.folder} holds latents; forecasts start from frames, so give the shards that were encoded"
            )

    @classmethod
    def open(cls, folder: str | Path, data: DataConfig) -> "CaseReader":
        """The reader of the shards in ``folder``."""
        return cls(ShardSet.open(folder, remote=data.remote, use_actions=data.use_actions), data)

    @classmethod
    def for_model(cls, model: str | Path, folder: str | Path) -> "CaseReader":
        """The reader of the shards in ``folder``, cut as the model (a run's or a model's folder) takes them."""
        return cls.open(folder, case_data(read_description(model)[0], model))

    def __len__(self) -> int:
        return len(self.shards)

    def frames(self, number: int) -> np.ndarray:
        """All frames of a case, (S_h + S_f, C, H, W) float32."""
        case = self.read(number)
        return np.concatenate([case.history, case.truth])

    def read(self, number: int) -> Case:
        """A case by its number in the shards.

        Raises:
            DamagedSampleError: naming shard and key.
        """
        sample = self.shards.read(self.shards.address(number))
        frames, num_history = self._cut(sample.frames), self.data.num_history_frames
        actions = None
        if sample.actions is not None:
            actions = sample.actions.astype(np.float32)
            actions[0] = 0  # it leads from a frame that is not there
        return Case(number, sample.key, frames[:num_history], frames[num_history:], actions)

    def _cut(self, frames_SCHW: np.ndarray) -> np.ndarray:
        """First frames, centre crop, float32 but not normalised: integers stay exact, and so do thresholds on them."""
        data = self.data
        frames = frames_SCHW[: (data.num_frames - 1) * data.frame_stride + 1 : data.frame_stride]
        height, width = data.crop_size or frames.shape[2:]
        top, left = (frames.shape[2] - height) // 2, (frames.shape[3] - width) // 2
        return frames[:, :, top : top + height, left : left + width].astype(np.float32)


class ArrayCases(Cases):
    """Histories from a file of one's own, without truth: case n is the n-th of them.

    A ``.npy`` holds (N, S_h, C, H, W), or (S_h, C, H, W) for one case. A ``.npz`` holds ``history`` like that, and
    where they are needed ``actions`` (N, S, A) and ``key`` (N,). Values are in the units of the model's shards.
    """

    def __init__(self, path: str | Path, data: DataConfig, model_schema: dict[str, Any]):
        """
        Args:
            path: the file.
            data: the model's, for the number of history frames.
            model_schema: what the model's shards held, as its config.json says.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no such array in it, or one of another shape.
        """
        self.path, self.source = Path(path), str(path)
        self._history, self._actions, self._keys = _read_arrays(self.path)
        shape, wanted = self._history.shape, (data.num_history_frames, model_schema["shape"][0])
        if self._history.dtype.kind not in "biuf":
            raise ValueError(f"history in {path} is of type {self._history.dtype}; give real numbers")
        if len(shape) != 5 or shape[1:3] != wanted:
            raise ValueError(
                f"history in {path} has shape {shape}, the model takes (N, {wanted[0]}, {wanted[1]}, H, W)"
            )
        if 0 in shape:
            raise ValueError(f"{path} holds no case: history has shape {shape}; give at least one")
        for name, values, axes in (("actions", self._actions, 3), ("key", self._keys, 1)):
            if values is not None and values.ndim != axes:
                raise ValueError(
                    f"{path} has {name} of shape {values.shape}; give {axes} axes, the first over histories"
                )
            if values is not None and len(values) != len(self):
                raise ValueError(f"{path} has {len(values)} of {name} and {len(self)} histories; give one for each")
        self.sha256 = file_sha256(self.path)
        self.data = data.model_copy(update={"crop_size": None, "augmentation": AugmentationConfig()})
        known = {name: model_schema[name] for name in FrameSchema.model_fields if name in model_schema}
        num_actions = 0 if self._actions is None else self._actions.shape[-1]
        own = {"num_frames": data.num_history_frames, "shape": shape[2:], "num_actions": num_actions}
        try:
            self.schema = FrameSchema.model_validate_json(json.dumps(known | own))
        except ValidationError as error:
            raise ValueError(f"{path}: {describe_error(error, FrameSchema)}") from None

    def __len__(self) -> int:
        return len(self._history)

    def read(self, number: int) -> Case:
        """A case by number; its truth has no frames."""
        history = self._history[number].astype(np.float32)
        actions = None if self._actions is None else self._actions[number].astype(np.float32)
        key = f"{self.path.stem}_{number:06d}" if self._keys is None else str(self._keys[number])
        return Case(number, key, history, history[:0], actions)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(history (N, S_h, C, H, W), actions or None, keys or None); no pickled objects."""
    if not path.is_file():
        raise FileNotFoundError(f"array {path} does not exist")
    actions = keys = None
    try:
        if path.suffix == ".npy":
            history = parse_npy(path.read_bytes())
        else:
            archive = read_npz(path)
            if "history" not in archive:
                raise ValueError(f"it holds {shortened(', '.join(archive)) or 'nothing'}, no array called history")
            history, actions, keys = archive["history"], archive.get("actions"), archive.get("key")
    except ValueError as error:
        raise ValueError(f"{path} can't be used: {error}") from None
    return history[None] if history.ndim == 4 else history, actions, keys


def open_cases(source: str | Path, data: DataConfig, model_schema: dict[str, Any], num_frames: int) -> Cases:
    """The cases for a model, with a truth for as many of ``num_frames`` as the shards have.

    Args:
        source: a folder of shards, or a ``.npy`` or ``.npz`` file of histories.
        data: how the model takes cases.
        model_schema: what the model's shards held, as its config.json says.
        num_frames: to forecast.

    Raises:
        FileNotFoundError, ValueError: none there, or data of another kind than the model was trained on.
    """
    cases: Cases
    if is_array(source):
        cases = ArrayCases(source, data, model_schema)
    else:
        shards = ShardSet.open(source, remote=data.remote, use_actions=data.use_actions)
        known = (shards.schema.num_frames - 1) // data.frame_stride + 1 - data.num_history_frames
        # without a single frame of truth the reader says what the samples lack
        num_future = max(1, min(num_frames, known))
        cases = CaseReader(shards, data.model_copy(update={"num_future_frames": num_future}))
    here = (cases.schema.shape[0], cases.schema.num_actions)
    there = (model_schema["shape"][0], model_schema["num_actions"])
    if here != there:
        raise ValueError(
            f"{source} has {here[0]} channels and {here[1]} actions, the model was trained on {there[0]} and "
            f"{there[1]}; give data of the same kind"
        )
    return cases


def is_array(source: str | Path) -> bool:
    """Whether cases come from an array of one's own rather than from shards."""
    return Path(source).suffix in (".npy", ".npz")


def stack_cases(
    cases: Sequence[Case], num_future_frames: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """A batch of cases as the forecaster takes it.

    Args:
        cases: of one source.
        num_future_frames: to forecast, which actions are cut to; None is as many as have a truth.

    Returns:
        history (B, S_h, C, H, W), actions (B, S, A) or None, case_index (B,) int64.

    Examples:
        >>> cases = [Case(n, f"k{n}", np.zeros((2, 1, 8, 8)), np.zeros((3, 1, 8, 8)), None) for n in (4, 7)]
        >>> history, actions, case_index = stack_cases(cases)
        >>> tuple(history.shape), case_index.tolist()
        ((2, 2, 1, 8, 8), [4, 7])
    """
    history = torch.from_numpy(np.stack([case.history for case in cases]))
    num_frames = len(cases[0].history) + (num_future_frames or len(cases[0].truth))
    given = [case.actions[:num_frames] for case in cases if case.actions is not None]
    actions = torch.from_numpy(np.stack(given)) if given else None
    return history, actions, torch.tensor([case.number for case in cases])


def forecast_case(forecaster: Forecaster, case: Case, *, num_members: int = 8, seed: int = 0) -> ForecastCase:
    """An ensemble forecast of one case beside its truth: for scores, pictures and animations.

    It is the same ensemble that ``tools/forecast.py`` writes for this case, seed and number of frames. A case without
    truth is forecast as far as the model does at once.

    Args:
        forecaster: as ``load_forecaster`` gives it.
        case: as ``CaseReader.read`` gives it.
        num_members: M.
        seed: key of all noise.

    Examples:
        >>> forecaster = load_forecaster("runs/turbulence_fewstep")  # doctest: +SKIP
        >>> forecast = forecast_case(forecaster, cases.read(0), num_members=8)  # doctest: +SKIP
        >>> forecast.members.shape  # doctest: +SKIP
        (8, 11, 2, 64, 64)
    """
    num_frames = len(case.truth) or forecaster.num_future_frames
    history, actions, case_index = stack_cases([case], num_frames)
    members = forecaster.forecast(
        history, actions=actions, case_index=case_index, num_members=num_members, seed=seed, num_frames=num_frames
    )
    return case.with_members(members[0].numpy())
