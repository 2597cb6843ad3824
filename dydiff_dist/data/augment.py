"""Cutting and augmenting one sample, with random choices from the sample's own counter.

Letters: S frames, C channels, H W height and width, A actions. The draws of one sample are uniforms in (0, 1]; their
number and order are fixed, so that turning one augmentation off leaves the others' draws unchanged.
"""

import enum
from dataclasses import dataclass

import numpy as np
import torch

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.scaling import history_scale
from dydiff_kernels import NoiseCounter, Stream, uniform


class Draw(enum.IntEnum):
    """What each uniform of a sample decides."""

    START_FRAME = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    SHIFT_H = 3
    SHIFT_W = 4
    FLIP_H = 5
    FLIP_W = 6
    SWAP_HW = 7


def check_against_schema(config: DataConfig, schema: FrameSchema, where: str) -> None:
    """One-line ``ValueError`` when the config asks for what these data do not hold or do not allow."""
    needed = _span(config)
    if needed > schema.num_frames:
        raise ValueError(
            f"data.num_history_frames + data.num_future_frames = {config.num_frames} at stride {config.frame_stride} "
            f"needs {needed} frames, samples of {where} have {schema.num_frames}; lower one of them"
        )
    if config.frame_stride > 1 and schema.num_actions:
        raise ValueError(
            f"data.frame_stride is {config.frame_stride}, but {where} has actions, which lead from one frame to the "
            "next; set it to 1"
        )
    if schema.has_logvar and config.crop_size is not None:
        raise ValueError(f"data.crop_size cannot cut latents, which {where} holds; encode cropped frames instead")
    _, height, width = schema.shape
    crop_height, crop_width = config.crop_size or (height, width)
    if not (1 <= crop_height <= height and 1 <= crop_width <= width):
        raise ValueError(f"data.crop_size is {config.crop_size}, frames of {where} are {height}x{width}; choose less")
    for name, wanted in config.augmentation.model_dump().items():
        if wanted and name not in schema.allowed_augmentations:
            allowed = ", ".join(schema.allowed_augmentations) or "none"
            raise ValueError(f"data.augmentation.{name} is on, but {where} does not allow it (allowed: {allowed})")
    if config.augmentation.periodic_shift and config.crop_size is not None:
        raise ValueError("data.augmentation.periodic_shift wraps whole frames around; leave data.crop_size out")
    if config.augmentation.periodic_shift_w and crop_width != width:
        raise ValueError(
            f"data.augmentation.periodic_shift_w wraps whole rows around; let data.crop_size keep their {width} pixels"
        )
    if config.augmentation.rotate and crop_height != crop_width:
        raise ValueError(
            f"data.augmentation.rotate needs square frames, they are {crop_height}x{crop_width}; turn it off"
        )


@dataclass(frozen=True)
class SampleTransform:
    """Stored sample -> network units, cut to length and size, augmented."""

    config: DataConfig
    schema: FrameSchema
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(S, C, H, W) of what comes out."""
        height, width = self.config.crop_size or self.schema.shape[1:]
        return self.config.num_frames, self.schema.shape[0], height, width

    def draw(self, seed: int, positions: list[int]) -> np.ndarray | None:
        """Uniforms in (0, 1] of each sample, (B, len(Draw)); None where nothing is random."""
        config = self.config
        augmented = any(config.augmentation.model_dump().values())
        if not (augmented or config.crop_size or self._spare_frames()):
            return None
        counter = NoiseCounter(seed, torch.tensor(positions), 0, Stream.AUGMENTATION)
        return uniform(counter, len(Draw)).double().numpy()

    def write_frames(self, frames_SCHW: np.ndarray, draws: np.ndarray | None, out_SCHW: np.ndarray) -> None:
        """Puts a stored sample's frames into ``out_SCHW``, float32 of ``frame_shape``, in network units.

        ``draws`` are the sample's uniforms; None, where nothing is random, leaves the sample as it is.
        """
        cut = self._crop(self._in_time(frames_SCHW, draws), draws)
        if self.schema.sample_scaling == "history_mean":
            cut = cut / history_scale(cut[: self.config.num_history_frames], self.schema.empty_history_scale)
        shift = np.asarray(self.shift, np.float32)[:, None, None]
        scale = np.asarray(self.scale, np.float32)[:, None, None]
        if draws is None or not any(self.config.augmentation.model_dump().values()):
            np.subtract(cut, shift, out=out_SCHW, casting="unsafe")
            out_SCHW /= scale
        else:
            out_SCHW[...] = self._augment(np.subtract(cut, shift, dtype=np.float32, casting="unsafe") / scale, draws)

    def write_logvar(self, logvar_SCHW: np.ndarray, draws: np.ndarray | None, out_SCHW: np.ndarray) -> None:
        """Puts the same frames' log-variance into ``out_SCHW``, float32, of frames in network units."""
        log_scale = np.log(np.abs(np.asarray(self.scale)))[:, None, None].astype(np.float32)
        np.subtract(self._in_time(logvar_SCHW, draws), 2 * log_scale, out=out_SCHW, casting="unsafe")
        wanted = self.config.augmentation
        if draws is not None and (wanted.periodic_shift or wanted.periodic_shift_w):
            out_SCHW[...] = self._augment(out_SCHW, draws)  # of latents, shifts are the only augmentation there is

    def write_actions(self, actions_SA: np.ndarray, draws: np.ndarray | None, out_SA: np.ndarray) -> None:
        """Puts the actions of the same frames into ``out_SA``, (S, A) float32."""
        out_SA[...] = self._in_time(actions_SA, draws)
        # The action into the first frame leads from a frame that is not there.
        out_SA[0] = 0

    def _spare_frames(self) -> int:
        return self.schema.num_frames - _span(self.config)

    def _in_time(self, array_S: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        """The frames of a stored array that the sample takes: from a random one on, or from the first."""
        start = 0 if draws is None else _choose(draws[Draw.START_FRAME], self._spare_frames() + 1)
        return array_S[start : start + _span(self.config) : self.config.frame_stride]

    def _crop(self, frames_SCHW: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        if self.config.crop_size is None:
            return frames_SCHW
        height, width = self.config.crop_size
        spare_h, spare_w = frames_SCHW.shape[2] - height, frames_SCHW.shape[3] - width
        top, left = spare_h // 2, spare_w // 2
        if draws is not None:
            top, left = _choose(draws[Draw.CROP_TOP], spare_h + 1), _choose(draws[Draw.CROP_LEFT], spare_w + 1)
        return frames_SCHW[:, :, top : top + height, left : left + width]

    def _augment(self, frames_SCHW: np.ndarray, draws: np.ndarray) -> np.ndarray:
        wanted = self.config.augmentation
        if wanted.periodic_shift or wanted.periodic_shift_w:
            _, _, height, width = frames_SCHW.shape
            shift_h = _choose(draws[Draw.SHIFT_H], height) if wanted.periodic_shift else 0
            frames_SCHW = np.roll(frames_SCHW, (shift_h, _choose(draws[Draw.SHIFT_W], width)), (2, 3))
        along_w, along_h = self.schema.vector_channels or (None, None)
        if wanted.flip and draws[Draw.FLIP_H] <= 0.5:
            frames_SCHW = mirror(frames_SCHW, 2, along_h)
        if wanted.flip and draws[Draw.FLIP_W] <= 0.5:
            frames_SCHW = mirror(frames_SCHW, 3, along_w)
        if wanted.rotate and draws[Draw.SWAP_HW] <= 0.5:
            frames_SCHW = frames_SCHW.swapaxes(2, 3)
            if along_w is not None and along_h is not None:
                frames_SCHW = _swap_channels(frames_SCHW, along_w, along_h)
        return frames_SCHW


def _span(config: DataConfig) -> int:
    """Stored frames from a sample's first to its last, inclusive."""
    return (config.num_frames - 1) * config.frame_stride + 1


def _choose(draw: float, count: int) -> int:
    """An integer in 0..count-1 from a uniform in (0, 1]."""
    return min(int(draw * count), count - 1)


def mirror(frames_SCHW: np.ndarray, axis: int, vector_channel: int | None) -> np.ndarray:
    """Mirrors along ``axis``; the vector component along that axis changes sign, in place."""
    mirrored = np.flip(frames_SCHW, axis)
    if vector_channel is not None:
        mirrored[:, vector_channel] *= -1
    return mirrored


def _swap_channels(frames_SCHW: np.ndarray, first: int, second: int) -> np.ndarray:
    order = list(range(frames_SCHW.shape[1]))
    order[first], order[second] = order[second], order[first]
    return frames_SCHW[:, order]
