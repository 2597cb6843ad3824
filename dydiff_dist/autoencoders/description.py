"""What an autoencoder is: autoencoder.json beside its weights, and the hash that names it.

Letters: C pixel channels, c latent channels. *Stored units* are those of pixel shards; the network sees
(stored - pixel_shift) / pixel_scale, and a diffusion model sees (latent - latent_shift) / latent_scale.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema, SealedDocument, read_document

DESCRIPTION_NAME = "autoencoder.json"


class AutoencoderDescription(SealedDocument):
    """Everything about an autoencoder but its weights."""

    remedy: ClassVar[str] = "copy the autoencoder again, or train it again with tools/train_vae.py"

    format_version: Literal[1] = 1
    network: str
    """Class of diffusers, e.g. AutoencoderKL."""
    weights_sha256: str
    """Of the safetensors file."""
    config_sha256: str
    """Of diffusers' config.json."""
    periodic: bool = False
    """Whether convolutions wrap around the edges."""
    frames: FrameSchema
    """The frames it was made for; others may have another length, and heights and widths that are multiples of
    ``spatial_ratio``."""
    pixel_shift: tuple[float, ...]
    """Per pixel channel, stored units."""
    pixel_scale: tuple[float, ...]
    """Per pixel channel, stored units."""
    latent_channels: PositiveInt
    spatial_ratio: PositiveInt
    """Pixels per latent pixel along each axis."""
    temporal_ratio: PositiveInt = 1
    """Frames per latent frame after the first one; 1 encodes frame by frame."""
    latent_shift: tuple[float, ...]
    """Per latent channel: mean of the latents of the training data."""
    latent_scale: tuple[float, ...]
    """Per latent channel: standard deviation of the latents of the training data."""
    facts: dict[str, Any] = {}
    """How it was trained and what it scores, for the record; no part of its identity."""

    @property
    def sha256(self) -> str:
        """Names the autoencoder: equal hashes mean the same latents in the same units."""
        identity = self.model_dump(mode="json", exclude={"facts", "frames"})
        identity["pixel_channels"] = self.frames.shape[0]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def latent_shape(self, frame_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of frames (C, H, W).

        Raises:
            ValueError: other channels, or a size that the ratio does not divide.
        """
        channels, height, width = frame_shape
        if channels != self.frames.shape[0]:
            raise ValueError(
                f"frames have {channels} channels, the autoencoder takes {self.frames.shape[0]}; use one that was "
                "trained on such frames"
            )
        ratio = self.spatial_ratio
        if height % ratio or width % ratio:
            raise ValueError(
                f"frames of {height}x{width} are no multiple of {ratio}, the autoencoder's reduction; crop or pad them"
            )
        return self.latent_channels, height // ratio, width // ratio

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of ``num_frames`` frames: the first frame alone, then groups of ``temporal_ratio``.

        Raises:
            ValueError: the frames do not come out even.
        """
        groups, rest = divmod(num_frames - 1, self.temporal_ratio)
        if rest:
            ratio = self.temporal_ratio
            raise ValueError(
                f"{num_frames} frames do not fit an autoencoder of {ratio} frames per latent frame; take 1 + k*{ratio}"
            )
        return groups + 1

    def latent_actions(self, actions: Tensor) -> Tensor:
        """The actions that lead to each latent frame: those to each of its frames side by side.

        (..., S, A) -> (..., s, temporal_ratio * A); the first latent frame holds one frame, and zeros in place of those
        before it.
        """
        ratio = self.temporal_ratio
        if ratio == 1:
            return actions
        padded = torch.cat([torch.zeros_like(actions[..., : ratio - 1, :]), actions], dim=-2)
        return padded.unflatten(-2, (-1, ratio)).flatten(-2)

    def pixel_frames(self, num_latent_frames: int) -> int:
        """The inverse of ``latent_frames``."""
        return (num_latent_frames - 1) * self.temporal_ratio + 1


def pixel_data(data: DataConfig, temporal_ratio: int) -> DataConfig:
    """How frames are cut for a run that counts latent frames of ``temporal_ratio`` frames each."""
    history = (data.num_history_frames - 1) * temporal_ratio + 1
    return data.model_copy(
        update={"num_history_frames": history, "num_future_frames": data.num_future_frames * temporal_ratio}
    )


def find_autoencoder(path: str | Path) -> Path:
    """The autoencoder folder that ``path`` means: itself, or ``model/`` in a run of tools/train_vae.py.

    Raises:
        FileNotFoundError: neither holds autoencoder.json.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / DESCRIPTION_NAME).is_file():
            return folder
    raise FileNotFoundError(
        f"no autoencoder in {str(path)!r}: expected {DESCRIPTION_NAME} there or in its model/; train one with "
        "tools/train_vae.py"
    )


def read_description(path: str | Path) -> AutoencoderDescription:
    """The description of the autoencoder in folder ``path``, or in its ``model/``.

    Raises:
        FileNotFoundError: none there.
        ValueError: the file is damaged.
    """
    return read_document(find_autoencoder(path) / DESCRIPTION_NAME, AutoencoderDescription)
