"""Cases: what a forecast is given and what happened, in stored units, straight from shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dydiff_dist.data.augment import check_against_schema
from dydiff_dist.data.config import AugmentationConfig, DataConfig
from dydiff_dist.data.manifest import manifest_identity
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import FieldStyle, field_style
from dydiff_dist.forecasting.exported import read_description
from dydiff_dist.forecasting.forecaster import Forecaster


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
    """(S_h + S_f, A) float32."""


class CaseReader:
    """Reads cases by number: the first frames and the centre crop of a sample, nothing random, nothing rounded."""

    def __init__(self, shards: ShardSet, data: DataConfig):
        """
        Raises:
            ValueError: the samples are too short or too small for ``data``.
        """
        self.shards = shards
        self.data = data.model_copy(update={"augmentation": AugmentationConfig()})
        check_against_schema(self.data, shards.schema, str(shards.folder))

    @classmethod
    def open(cls, folder: str | Path, data: DataConfig) -> "CaseReader":
        """The reader of the shards in ``folder``."""
        return cls(ShardSet.open(folder, remote=data.remote, use_actions=data.use_actions), data)

    @classmethod
    def for_model(cls, model: str | Path, folder: str | Path) -> "CaseReader":
        """The reader of the shards in ``folder``, cut as the model (a run's or a model's folder) takes them."""
        return cls.open(folder, read_description(model)[0].data)

    def __len__(self) -> int:
        """Cases in the shards."""
        return len(self.shards)

    @property
    def sha256(self) -> str:
        """Of the shards' manifest, which holds the checksums of all else."""
        return manifest_identity(self.shards.manifest)

    def style(self) -> FieldStyle:
        """How these frames are shown."""
        schema = self.shards.schema
        return field_style(
            schema.shape[0],
            channels=schema.channels,
            units=schema.units,
            dtype=schema.dtype,
            vector_channels=schema.vector_channels,
            periodic="periodic_shift" in schema.allowed_augmentations and self.data.crop_size is None,
        )

    def frames(self, number: int) -> np.ndarray:
        """All frames of a case, (S_h + S_f, C, H, W) float32."""
        sample = self.shards.read(self.shards.address(number))
        return self._cut(sample.frames)

    def read(self, number: int) -> Case:
        """A case by its number in the shards.

        Raises:
            DamagedSampleError: naming shard and key.
        """
        sample = self.shards.read(self.shards.address(number))
        frames, num_history = self._cut(sample.frames), self.data.num_history_frames
        actions = None
        if sample.actions is not None:
            actions = sample.actions[: self.data.num_frames].astype(np.float32)
            actions[0] = 0  # it leads from a frame that is not there
        return Case(number, sample.key, frames[:num_history], frames[num_history:], actions)

    def _cut(self, frames_SCHW: np.ndarray) -> np.ndarray:
        """First frames, centre crop, float32 but not normalised: integers stay exact, and so do thresholds on them."""
        data = self.data
        frames = frames_SCHW[: (data.num_frames - 1) * data.frame_stride + 1 : data.frame_stride]
        height, width = data.crop_size or frames.shape[2:]
        top, left = (frames.shape[2] - height) // 2, (frames.shape[3] - width) // 2
        return frames[:, :, top : top + height, left : left + width].astype(np.float32)


def stack_cases(cases: list[Case]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(history (B, S_h, C, H, W), actions (B, S, A) or None, case_index (B,)) of a batch of cases."""
    history = torch.from_numpy(np.stack([case.history for case in cases]))
    actions = None
    if cases[0].actions is not None:
        actions = torch.from_numpy(np.stack([case.actions for case in cases]))
    return history, actions, torch.tensor([case.number for case in cases])


def forecast_case(forecaster: Forecaster, case: Case, *, num_members: int = 8, seed: int = 0) -> ForecastCase:
    """An ensemble forecast of one case beside its truth: for scores, pictures and animations.

    It is the same ensemble that ``tools/forecast.py`` writes for this case, seed and number of frames.
    """
    history, actions, case_index = stack_cases([case])
    members = forecaster.forecast(
        history,
        actions=actions,
        case_index=case_index,
        num_members=num_members,
        seed=seed,
        num_frames=len(case.truth),
    )
    return ForecastCase(case.number, case.key, case.history, case.truth, members[0].numpy())
