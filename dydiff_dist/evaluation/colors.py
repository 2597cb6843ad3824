"""Which quantity of a frame is shown, and in which colours.

Letters: C channels, H W height and width.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap

from dydiff_dist.data.manifest import RGB, Bounds, FrameSchema

BACKGROUND, INK, FAINT_INK = "#0d1117", "#e6edf3", "#8b949e"
"""Of every picture: dark, so that one picture reads well on light and dark pages."""
OURS = "#ff9d4d"
CURVE_COLORS = (OURS, "#58c95a", "#d277ff", "#5cc4f2", "#f4e04d", "#ff6b81", "#7ee3c4", "#b0b8c4")
"""Of what stands side by side and has no colour of its own: arms of a study, samplers."""


class ForecasterStyle(NamedTuple):
    """How a forecaster appears in tables and curves."""

    label: str
    short: str
    """In narrow columns."""
    color: str
    line: str
    width: float


_OTHER_COLORS = ("#c9a26d", "#7ee3c4", "#f08adf", "#e3c341")


class _ForecasterStyles(dict[str, ForecasterStyle]):
    """Styles by name; a baseline of one's own goes by its name, always in the same colour."""

    def __missing__(self, name: str) -> ForecasterStyle:
        label = name.replace("_", " ")
        return ForecasterStyle(label, label, _OTHER_COLORS[zlib.crc32(name.encode()) % len(_OTHER_COLORS)], "-.", 1.6)


FORECASTERS = _ForecasterStyles()
FORECASTERS |= {
    "forecast": ForecasterStyle("this model", "ours", OURS, "-", 2.4),
    "persistence": ForecasterStyle("persistence", "persist", "#8b949e", "--", 1.6),
    "climatology": ForecasterStyle("climatology", "climat", "#58a6ff", ":", 2.0),
    "optical_flow": ForecasterStyle("optical flow", "flow", "#d2a8ff", "-.", 1.6),
    "seasonal_naive": ForecasterStyle("seasonal naive", "season", "#d2a8ff", "-.", 1.6),
    "random_walk": ForecasterStyle("random walk", "walk", "#c9a26d", "-.", 1.6),
}
"""By name in the tables; the page's style sheet has the same colours for light and dark. Optical flow and the seasonal
naive forecast share one: no data have both. Any other name has a style too."""

_SPIN = LinearSegmentedColormap.from_list(
    "spin", ["#d8f6ff", "#5cc4f2", "#2273c4", "#173a75", "#0f1424", "#7a2320", "#d0502a", "#fda55d", "#fff2d4"], N=512
)
_RAIN_STOPS = (0.00, 0.05, 0.20, 0.35, 0.50, 0.65, 0.80, 0.92, 1.00)
_RAIN_COLORS = ("#11161f", "#16304d", "#1f6fb4", "#2bb3c0", "#58c95a", "#f4e04d", "#f28c28", "#d7263d", "#f5a6ff")
_RAIN = LinearSegmentedColormap.from_list("rain", list(zip(_RAIN_STOPS, _RAIN_COLORS, strict=True)), N=512)
ERROR_COLORMAP = LinearSegmentedColormap.from_list(
    "error", ["#7ee3c4", "#2a9d8f", "#17494d", "#0f1424", "#4d2a57", "#b04a9c", "#ffb3ec"], N=512
)
"""Of signed errors, unlike those of the fields."""
_RAIN_WORDS = ("vil", "rain", "precip", "radar", "reflectivity", "dbz")


@dataclass(frozen=True)
class FieldStyle:
    """How frames (..., C, H, W) become pictures."""

    quantity: str
    """What is shown, for captions."""
    scalar: Callable[[np.ndarray], np.ndarray] | None
    """(..., C, H, W) -> (..., H, W), the quantity; None shows the three channels as an RGB image."""
    colormap: Colormap
    diverging: bool = False
    """Whether colours run from -limit to limit rather than from the least to the largest value."""
    black_and_white: tuple[float, float] = (0.0, 255.0)
    """Of images: the values that are shown black and white."""

    def show(self, frames: np.ndarray) -> np.ndarray:
        """The shown quantity: (..., H, W), or (..., H, W, 3) in 0..1 for images."""
        if self.scalar is not None:
            return self.scalar(frames)
        black, white = self.black_and_white
        return np.moveaxis(np.clip((frames - black) / (white - black), 0, 1), -3, -1)

    def tracer(self, frames: np.ndarray) -> np.ndarray:
        """The scalar (..., H, W) whose motion the eye follows: the shown quantity, or the brightness of images."""
        return self.scalar(frames) if self.scalar is not None else frames.mean(axis=-3)

    def limits(self, shown: np.ndarray) -> tuple[float, float]:
        """Limits of the colours for the truth ``shown``: robust to single pixels, the same for every panel."""
        if self.scalar is None:
            return 0.0, 1.0
        if self.diverging:
            limit = float(np.quantile(np.abs(shown), 0.995)) or 1.0
            return -limit, limit
        low, high = (float(np.quantile(shown, q)) for q in (0.002, 0.998))
        return (low, high) if high > low else (low, low + 1.0)

    def rgb(self, shown: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
        """uint8 (..., H, W, 3) of a shown quantity."""
        if self.scalar is None:
            return np.round(shown * 255).astype(np.uint8)
        low, high = limits
        return np.round(self.colormap(np.clip((shown - low) / (high - low), 0, 1))[..., :3] * 255).astype(np.uint8)

    def error(self, shown: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """The signed error (..., H, W) of a shown quantity; of images, the mean over colours."""
        return shown - truth if self.scalar is not None else (shown - truth).mean(axis=-1)


def field_style(
    num_channels: int,
    *,
    channels: tuple[str, ...] = (),
    units: str = "",
    dtype: str = "float32",
    vector_channels: tuple[int, int] | None = None,
    periodic: bool = False,
    bounds: Sequence[Bounds] = (),
) -> FieldStyle:
    """The style that fits what the shards say of their frames.

    Velocities are shown as vorticity, channels called red, green and blue (and three 8-bit ones without names) as an
    image, rain and radar in a rain scale, and of anything else the first channel.

    Args:
        num_channels: C.
        channels: their names.
        units: of the stored values.
        dtype: stored type.
        vector_channels: channels that hold a vector along (W, H).
        periodic: whether the field wraps around.
        bounds: least and largest value of each channel; images are black and white there, or else at the ends of their
            integer type, floats at 0 and 1.

    Examples:
        >>> field_style(1, channels=("vil",)).quantity
        'VIL'
    """
    if vector_channels is not None:
        along_w, along_h = vector_channels
        return FieldStyle("vorticity", lambda f: vorticity(f, along_w, along_h, periodic), _SPIN, diverging=True)
    if channels == RGB or (num_channels == 3 and dtype == "uint8" and not channels):
        ends = [end for pair in bounds for end in pair if end is not None]
        if len(ends) < 2:
            ends = [0.0, float(np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else 1.0]
        return FieldStyle("colour", None, _SPIN, black_and_white=(min(ends), max(ends)))
    name = channels[0] if channels else "channel 0"

    def first_channel(frames: np.ndarray) -> np.ndarray:
        return frames[..., 0, :, :]

    if num_channels == 1 and looks_like_rain(channels, units):
        return FieldStyle(name.upper() if len(name) <= 4 else name, first_channel, _RAIN)
    return FieldStyle(name, first_channel, matplotlib.colormaps["magma"])


def style_of(schema: FrameSchema, *, is_cropped: bool) -> FieldStyle:
    """How frames of this kind are shown; a cut-out of a periodic field is not periodic."""
    return field_style(
        schema.shape[0],
        channels=schema.channels,
        units=schema.units,
        dtype=schema.dtype,
        vector_channels=schema.vector_channels,
        periodic="periodic_shift" in schema.allowed_augmentations and not is_cropped,
        bounds=schema.bounds,
    )


def looks_like_rain(channels: tuple[str, ...], units: str) -> bool:
    """Whether names or units speak of rain or radar."""
    return any(word in " ".join((*channels, units)).lower() for word in _RAIN_WORDS)


def vorticity(frames: np.ndarray, along_w: int, along_h: int, periodic: bool) -> np.ndarray:
    """∂v/∂x - ∂u/∂y by central differences, per pixel spacing.

    Args:
        frames: (..., C, H, W).
        along_w, along_h: channels of u, along x and the width, and of v, along y and the height.
        periodic: whether the field wraps around; at other edges differences are one-sided.

    Returns:
        (..., H, W).
    """
    return _slope(frames[..., along_h, :, :], -1, periodic) - _slope(frames[..., along_w, :, :], -2, periodic)


def _slope(field: np.ndarray, axis: int, periodic: bool) -> np.ndarray:
    if periodic:
        return (np.roll(field, -1, axis) - np.roll(field, 1, axis)) / 2
    return np.gradient(field, axis=axis)
