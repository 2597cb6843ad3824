"""Configuration of the data a run reads."""

from typing import Annotated, Literal

from pydantic import Field

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.remote import Address, RemoteConfig
from dydiff_dist.strict_config import StrictConfig


class AugmentationConfig(StrictConfig):
    """Random changes of training samples, drawn from the sample's own counter. Each must be allowed by the manifest."""

    periodic_shift: bool = False
    """Shift by a random number of pixels along H and W with wrap-around (homogeneous periodic fields)."""
    periodic_shift_w: bool = False
    """Shift by a random number of pixels along W alone with wrap-around (the globe, which is periodic in longitude)."""
    flip: bool = False
    """Mirror along H and along W, each with probability 1/2; vectors are turned with the field."""
    rotate: bool = False
    """Swap H and W with probability 1/2; with flip this makes all 8 symmetries of the square."""


class ExpectedData(StrictConfig):
    """What the shards of a run hold, for planning it on a machine that doesn't have them."""

    frames: FrameSchema
    """As in the manifest; ``allowed_augmentations`` must name those that the run asks for."""
    num_samples: Annotated[int, Field(ge=1)]
    """Training samples, about: real shards may have another number."""


class DataConfig(StrictConfig):
    """Which shards a run reads and how."""

    train: Address
    """Folder of the training shards (with manifest.json), or its URL (http, https, s3, …)."""
    valid: Address | None = None
    """Folder of the shards for evaluation during training; None leaves it out."""
    expect: ExpectedData | None = Field(default=None, exclude=True)
    """What the training shards hold: a dry run goes by it where they are absent, a run checks them against it. It
    changes no result, so it is not stored with the run."""
    num_history_frames: Annotated[int, Field(ge=1)] = 4
    """Frames given to the forecast."""
    num_future_frames: Annotated[int, Field(ge=1)] = 11
    """Frames to forecast."""
    use_actions: bool = True
    """Whether actions are read where the data have them; false trains and forecasts from frames alone."""
    frame_stride: Annotated[int, Field(ge=1)] = 1
    """Every how many stored frames one is taken; more than 1 only for data without actions."""
    crop_size: tuple[int, int] | None = None
    """(H, W) cut out of each frame, at random in training and from the centre in evaluation; None keeps whole
    frames."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of training samples."""
    damaged_samples: Literal["error", "skip"] = "error"
    """A damaged sample stops the run, or is named in the log, counted, and replaced by another one."""
    max_damaged_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """With ``skip``: share of damaged samples above which the run stops all the same."""
    remote: RemoteConfig = RemoteConfig()
    """How shards behind a URL are read; folders of this machine need nothing of it."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """Processes per rank that read ahead; 0 reads in the trainer's own process."""
    prefetch_batches: Annotated[int, Field(ge=1, le=1024)] = 4
    """Micro-batches each worker holds ready."""
    shuffle_window_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Shards are shuffled over the whole epoch, samples within windows of shards up to this size; 0 keeps file
    order."""

    @property
    def num_frames(self) -> int:
        """S: frames of a sample as the network sees it."""
        return self.num_history_frames + self.num_future_frames

    def frame_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of stored frames (C, H, W) once they are cropped."""
        return shape if self.crop_size is None else (shape[0], *self.crop_size)
