"""Cases: what a forecast is given and what happened, in stored units, straight from shards."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dydiff_dist.data.augment import SampleTransform, check_against_schema
from dydiff_dist.data.config import AugmentationConfig, DataConfig
from dydiff_dist.data.manifest import MANIFEST_NAME
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.evaluation.colors import FieldStyle, field_style


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
        # shift 0 and scale 1 leave stored units: integers come back as they were, so thresholds on them are exact
        channels = shards.schema.shape[0]
        self._cut = SampleTransform(self.data, shards.schema, (0.0,) * channels, (1.0,) * channels, training=False)

    @classmethod
    def open(cls, folder: str | Path, data: DataConfig) -> "CaseReader":
        """The reader of the shards in ``folder``."""
        return cls(ShardSet.open(folder), data)

    def __len__(self) -> int:
        """Cases in the shards."""
        return len(self.shards)

    @property
    def sha256(self) -> str:
        """Of the shards' manifest, which holds the checksums of all else."""
        return hashlib.sha256((self.shards.folder / MANIFEST_NAME).read_bytes()).hexdigest()

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
        return self._cut(sample.frames, None, 0, number)[0].numpy()

    def read(self, number: int) -> Case:
        """A case by its number in the shards.

        Raises:
            DamagedSampleError: naming shard and key.
        """
        sample = self.shards.read(self.shards.address(number))
        frames, actions = self._cut(sample.frames, sample.actions, 0, number)
        num_history = self.data.num_history_frames
        return Case(
            number=number,
            key=sample.key,
            history=frames[:num_history].numpy(),
            truth=frames[num_history:].numpy(),
            actions=None if actions is None else actions.numpy(),
        )


def stack_cases(cases: list[Case]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(history (B, S_h, C, H, W), actions (B, S, A) or None, case_index (B,)) of a batch of cases."""
    history = torch.from_numpy(np.stack([case.history for case in cases]))
    actions = None
    if cases[0].actions is not None:
        actions = torch.from_numpy(np.stack([case.actions for case in cases]))
    return history, actions, torch.tensor([case.number for case in cases])
