"""Frames to latents and back, in the units of data and of a diffusion model.

Letters: B clips, S frames, s latent frames, C pixel channels, c latent channels, H W frame size, h w latent size.
*Pixels* are frames in the autoencoder's units, (stored - pixel_shift) / pixel_scale; *latents* are in the diffusion
model's units, (raw - latent_shift) / latent_scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dydiff_dist.autoencoders.description import AutoencoderDescription
from dydiff_dist.autoencoders.networks import DiffusersNetwork


class LatentGaussian(NamedTuple):
    """A posterior: independent Gaussians, each tensor (B, s, c, h, w) float32."""

    mean: Tensor
    logvar: Tensor
    """Natural logarithm of the variance."""


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A trained autoencoder, ready to encode and decode. Nothing here keeps gradients."""

    network: DiffusersNetwork
    """In evaluation mode on ``device``."""
    description: AutoencoderDescription
    device: torch.device
    dtype: torch.dtype = torch.float32
    """Storage of the network's weights and activations."""
    max_frames: int = 64
    """Frames that pass through the network together."""

    def to_pixels(self, stored_BSCHW: Tensor) -> Tensor:
        """Frames in stored units to the autoencoder's, float32."""
        shift, scale = _units(self.description.pixel_shift, self.description.pixel_scale, stored_BSCHW.device)
        return (stored_BSCHW.float() - shift) / scale

    def to_stored(self, pixels_BSCHW: Tensor) -> Tensor:
        """The inverse of ``to_pixels``, float32."""
        shift, scale = _units(self.description.pixel_shift, self.description.pixel_scale, pixels_BSCHW.device)
        return pixels_BSCHW.float() * scale + shift

    @torch.no_grad()
    def encode_raw(self, pixels_BSCHW: Tensor) -> LatentGaussian:
        """The posterior in the network's own units, (B, s, c, h, w) float32, on the autoencoder's device.

        Raises:
            ValueError: a shape that does not fit.
        """
        channels, height, width = pixels_BSCHW.shape[2:]
        self.description.latent_shape((channels, height, width))
        num_latent_frames = self.description.latent_frames(pixels_BSCHW.shape[1])
        pixels = pixels_BSCHW.to(self.device, self.dtype, non_blocking=True)
        posteriors = [self.network.encode(part).latent_dist for part in self._parts(pixels)]
        return LatentGaussian(
            *(
                self._joined([getattr(posterior, name) for posterior in posteriors], num_latent_frames)
                for name in LatentGaussian._fields
            )
        )

    def encode(self, pixels_BSCHW: Tensor) -> LatentGaussian:
        """The posterior in the diffusion model's units; see ``encode_raw``."""
        raw = self.encode_raw(pixels_BSCHW)
        shift, scale = _units(self.description.latent_shift, self.description.latent_scale, self.device)
        return LatentGaussian((raw.mean - shift) / scale, raw.logvar - 2 * scale.abs().log())

    @torch.no_grad()
    def decode(self, latents_BSCHW: Tensor) -> Tensor:
        """Pixels (B, S, C, H, W) float32 of latents (B, s, c, h, w), on the autoencoder's device."""
        shift, scale = _units(self.description.latent_shift, self.description.latent_scale, self.device)
        raw = (latents_BSCHW.to(self.device, torch.float32) * scale + shift).to(self.dtype)
        parts = [self.network.decode(part).sample for part in self._parts(raw)]
        return self._joined(parts, self.description.pixel_frames(latents_BSCHW.shape[1]))

    def history_latents(self, stored_BSCHW: Tensor) -> Tensor:
        """Latents of frames in stored units: the posterior's mean. What a forecast starts from."""
        return self.encode(self.to_pixels(stored_BSCHW)).mean

    def to_frames(self, latents_BSCHW: Tensor) -> Tensor:
        """Frames in stored units, float32 on the CPU, of latents."""
        return self.to_stored(self.decode(latents_BSCHW).cpu())

    def to_future_frames(self, future_BSCHW: Tensor, history_BSCHW: Tensor) -> Tensor:
        """Frames in stored units of latents that follow on ``history``'s, without the history's own frames.

        Where time is compressed, the decoder needs what came before.
        """
        if self.is_framewise:
            return self.to_frames(future_BSCHW)
        decoded = self.to_frames(torch.cat([history_BSCHW, future_BSCHW], dim=1))
        return decoded[:, self.description.pixel_frames(history_BSCHW.shape[1]) :]

    @property
    def is_framewise(self) -> bool:
        """Whether each frame is encoded on its own."""
        return self.description.temporal_ratio == 1

    def _parts(self, x_BSCHW: Tensor) -> Sequence[Tensor]:
        """What passes through the network at once: frames (n, C, H, W), or clips (n, C, S, H, W)."""
        if self.is_framewise:
            return x_BSCHW.flatten(0, 1).split(self.max_frames)
        clips_at_once = max(1, self.max_frames // x_BSCHW.shape[1])
        return x_BSCHW.transpose(1, 2).split(clips_at_once)

    def _joined(self, parts: list[Tensor], num_frames: int) -> Tensor:
        """The inverse of ``_parts``, float32."""
        joined = torch.cat([part.float() for part in parts]) if len(parts) > 1 else parts[0].float()
        return joined.unflatten(0, (-1, num_frames)) if self.is_framewise else joined.transpose(1, 2)


def _units(shift: Sequence[float], scale: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale per channel, (C, 1, 1) float32 each."""
    units = torch.tensor([shift, scale], dtype=torch.float32, device=device)[:, :, None, None]
    return units[0], units[1]
