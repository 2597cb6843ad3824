"""What the network's frames are: the data's own in network units, or an autoencoder's latents.

Letters: B cases, M members, S frames, C H W stored frames (as in shards), s frames and c h w of the network. *Stored
units* are those of the shards, *network units* (stored - shift) / scale, of series (stored / sample scale - shift) /
scale (``data/scaling.py``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dydiff_dist.autoencoders import Autoencoder
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import Bounds
from dydiff_dist.data.scaling import history_scale
from dydiff_dist.models import InputSizes


class FrameSpace(ABC):
    """The way from stored frames to the network's and back.

    Time may be compressed: the first frame is a network frame alone, then ``temporal_ratio`` frames are one.
    """

    stored_channels: int
    """C."""
    network_channels: int
    """c."""
    temporal_ratio: int = 1
    """Stored frames per network frame after the first one."""
    follows_shifts: bool = True
    """Whether frames shifted around their edges are shifted frames to the network too."""
    bounds: Sequence[Bounds] = ()
    """Least and largest value of each stored channel; empty where nothing is known."""

    def within_bounds(self, frames: Tensor) -> Tensor:
        """Stored frames (..., C, H, W) clipped to ``bounds``, in place."""
        for channel, (low, high) in enumerate(self.bounds):
            frames[..., channel, :, :].clamp_(-math.inf if low is None else low, math.inf if high is None else high)
        return frames

    @abstractmethod
    def network_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of stored frames (C, H, W); one-line ``ValueError`` where they have none."""

    @abstractmethod
    def encode(self, history: Tensor, future: Tensor | None = None) -> Tensor:
        """Stored frames to the network's, (B, s, c, h, w) float32.

        Args:
            history: (B, S_h, C, H, W), any real dtype; where samples are scaled, it gives the scale.
            future: (B, S_f, C, H, W), frames that follow on it and are encoded with it.
        """

    @abstractmethod
    def decode(self, futures: Tensor, history: Tensor, encoded: Tensor) -> Tensor:
        """Forecasts to stored units, (B, M, S, C, H, W) float32 on the CPU.

        Args:
            futures: (B, M, s, c, h, w) network frames.
            history: (B, S_h, C, H, W), what they follow on.
            encoded: ``encode(history)``.
        """

    def network_actions(self, actions: Tensor, num_frames: int) -> Tensor:
        """(B, S, A) -> (B, s, temporal_ratio · A): the actions that lead to the first ``num_frames`` network frames."""
        return actions

    def stored_frames(self, num_frames: int) -> int:
        """Stored frames of the first ``num_frames`` network frames."""
        return (num_frames - 1) * self.temporal_ratio + 1

    def future_frames(self, num_stored_frames: int) -> int:
        """Network frames, after a history, that hold so many stored ones."""
        return -(-num_stored_frames // self.temporal_ratio)


class PlainFrames(FrameSpace):
    """The data's own frames in network units.

    Args:
        shift: per channel, stored units.
        scale: per channel, stored units per network unit.
        sample_scaling: of the manifest; unless "none", a case is first divided by the mean absolute value of its
            history, as in training.
        bounds: of the manifest's schema.
        empty_history_scale: of the manifest; per channel, in its place where the history is all zeros. Empty: 1.
    """

    def __init__(
        self,
        shift: Sequence[float],
        scale: Sequence[float],
        sample_scaling: str = "none",
        bounds: Sequence[Bounds] = (),
        empty_history_scale: Sequence[float] = (),
    ):
        self.bounds = bounds
        self.stored_channels = self.network_channels = len(shift)
        self._shift, self._scale = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (shift, scale))
        self._scales_samples = sample_scaling != "none"
        self._empty_history_scale = tuple(empty_history_scale)

    def network_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The stored shape itself: (C, H, W)."""
        return shape

    def encode(self, history: Tensor, future: Tensor | None = None) -> Tensor:
        """As `FrameSpace.encode`, on the CPU."""
        frames = history if future is None else torch.cat((history.float(), future.float()), dim=1)
        return (frames.cpu().float() / self._sample_scale(history) - self._shift) / self._scale

    def decode(self, futures: Tensor, history: Tensor, encoded: Tensor) -> Tensor:
        """As `FrameSpace.decode`; ``encoded`` is not needed."""
        return (futures.cpu() * self._scale + self._shift) * self._sample_scale(history)[:, None]

    def _sample_scale(self, history: Tensor) -> Tensor:
        """(B, 1, C, 1, 1), the unit of each case and channel; ones where the data are not scaled by sample."""
        if not self._scales_samples:
            return torch.ones(len(history), 1, 1, 1, 1)
        return torch.from_numpy(history_scale(history.cpu().float().numpy(), self._empty_history_scale))


class LatentFrames(FrameSpace):
    """An autoencoder's latents, the mean of the posterior; shifts are followed where its convolutions wrap around.

    Args:
        autoencoder: encodes and decodes.
        bounds: of the schema of the frames that are forecast.
    """

    def __init__(self, autoencoder: Autoencoder, bounds: Sequence[Bounds] = ()):
        self.autoencoder, description, self.bounds = autoencoder, autoencoder.description, bounds
        self.stored_channels, self.network_channels = description.frames.shape[0], description.latent_channels
        self.temporal_ratio, self.follows_shifts = description.temporal_ratio, description.periodic

    def network_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of frames (C, H, W); raises where the autoencoder can't take such frames."""
        return self.autoencoder.description.latent_shape(shape)

    def encode(self, history: Tensor, future: Tensor | None = None) -> Tensor:
        """As `FrameSpace.encode`, on the autoencoder's device."""
        frames = history if future is None else torch.cat((history.float(), future.float()), dim=1)
        return self.autoencoder.history_latents(frames)

    def decode(self, futures: Tensor, history: Tensor, encoded: Tensor) -> Tensor:
        """As `FrameSpace.decode`; where time is compressed, the decoder is given the history's latents too."""
        num_cases, num_members = futures.shape[:2]
        given = encoded.repeat_interleave(num_members, dim=0)
        frames = self.autoencoder.to_future_frames(futures.flatten(0, 1), given)
        return frames.unflatten(0, (num_cases, num_members))

    def network_actions(self, actions: Tensor, num_frames: int) -> Tensor:
        """As `FrameSpace.network_actions`: those to each frame of a latent frame side by side."""
        return self.autoencoder.description.latent_actions(actions[:, : self.stored_frames(num_frames)])


def input_sizes(data: DataConfig, frame_shape: tuple[int, int, int], num_action_channels: int) -> InputSizes:
    """What a network is given: windows as ``data`` cuts them, of network frames (c, h, w) with so many actions."""
    channels, height, width = frame_shape
    return InputSizes(
        num_frames=data.num_frames,
        num_history_frames=data.num_history_frames,
        num_channels=channels,
        height=height,
        width=width,
        num_action_channels=num_action_channels,
    )
