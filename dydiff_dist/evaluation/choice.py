"""Which scores fit which data, and the named protocols of published numbers.

Letters: M members, S_h given and S forecast frames, C channels, H W height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation.calibration import Climate, calibration_suite
from dydiff_dist.evaluation.colors import looks_like_rain
from dydiff_dist.evaluation.fields import SSIM_WINDOW, blockiness_suite, flow_suite, image_suite, spectrum_suite
from dydiff_dist.evaluation.rain import RAIN_PRESETS, RainProtocol, rain_suite
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import Suite, ensemble_suite, latitude_suite
from dydiff_dist.evaluation.vrmse import vrmse_suite
from dydiff_dist.strict_config import StrictConfig


class VideoProtocol(StrictConfig):
    """What published numbers of video prediction ask for."""

    name: str
    frames: tuple[int, int] | None = None
    """(history, future); None takes any."""
    size: tuple[int, int] | None = None
    """(H, W); None takes any."""
    num_members: int | None = None
    """Samples per context; None takes any."""
    lpips_network: Literal["alex", "vgg"] | None = None
    """Backbone of LPIPS; None takes either."""


VIDEO_PRESETS = {
    name: VideoProtocol(name=name, frames=frames, size=size, num_members=100, lpips_network="vgg")
    for name, frames, size in (
        ("bair", (1, 15), (64, 64)),
        ("robonet-64", (2, 10), (64, 64)),
        ("robonet-256", (2, 10), (256, 256)),
    )
}
"""Protocols of published numbers; docs/evaluation.md says where they come from and what of them is certain."""

SUITES = (
    "ensemble",
    "calibration",
    "spectrum",
    "blockiness",
    "flow",
    "rain",
    "image",
    "series",
    "vrmse",
    "latitude",
)
PRESETS: dict[str, RainProtocol | VideoProtocol] = RAIN_PRESETS | VIDEO_PRESETS
IMAGE_RANGE = 255.0
"""Largest value of pictures, whose least is 0."""


@dataclass(frozen=True, kw_only=True)
class ForecastKind:
    """What scores must know of the forecasts."""

    schema: FrameSchema
    """Of the stored frames, for type, channels, units, vector_channels and latitudes."""
    shape: tuple[int, int, int, int]
    """(S, C, H, W)."""
    num_history_frames: int
    """S_h."""
    num_members: int
    """M."""
    periodic: bool
    """Whether frames wrap around."""
    climate: Climate | None = None
    """Mean and deviation of the data, where they have the forecasts' units."""
    patch_pixels: int | None = None
    """Along the edge of the patches that the model cuts frames into; None where that is not known."""

    @property
    def is_series(self) -> bool:
        """Whether these are time series: frames of one pixel."""
        return self.shape[2:] == (1, 1)

    @property
    def has_patches(self) -> bool:
        """Whether patches are known to be of several pixels and to meet within the frame."""
        return self.patch_pixels is not None and 1 < self.patch_pixels < max(self.shape[2:])

    @property
    def is_image(self) -> bool:
        """Whether frames are pictures: 8-bit, grey or in three colours."""
        return self.schema.dtype == "uint8" and self.shape[1] in (1, 3)

    @property
    def is_field(self) -> bool:
        """Whether these are physical fields: neither series, pictures nor rain."""
        is_rain = looks_like_rain(self.schema.channels, self.schema.units)
        return not (self.is_series or self.schema.is_rgb or is_rain) and self.schema.dtype.startswith("float")

    @property
    def latitudes(self) -> tuple[float, ...]:
        """Of the rows that are forecast, which are cut from the centre of the stored ones; empty where none are
        known."""
        first = (self.schema.shape[1] - self.shape[2]) // 2
        return self.schema.latitudes[first : first + self.shape[2]]

    def fitting_suites(self) -> list[str]:
        """Names of the suites whose scores these data have."""
        num_channels, size = self.shape[1], min(self.shape[2:])
        fits = {
            "ensemble": True,
            "calibration": self.num_members > 1,
            "spectrum": not self.is_series,
            "blockiness": self.has_patches,
            "flow": self.schema.vector_channels is not None,
            "rain": num_channels == 1 and looks_like_rain(self.schema.channels, self.schema.units),
            "image": self.is_image and size >= SSIM_WINDOW,
            "series": self.is_series,
            "vrmse": self.is_field,
            "latitude": bool(self.schema.latitudes),
        }
        return [name for name in SUITES if fits[name]]

    def check_images(self, what: str) -> None:
        """Raises a one-line ``ValueError`` if frames are no pictures, which ``what`` needs."""
        if not self.is_image:
            raise ValueError(
                f"{what} needs 8-bit frames of 1 or 3 channels, these are {self.schema.dtype} of "
                f"{self.shape[1]}; leave it out"
            )


def choose_suites(names: Sequence[str] | None, preset: str, kind: ForecastKind) -> list[Suite]:
    """The suites of these names.

    Args:
        names: of ``SUITES``; None takes all that fit the data.
        preset: a key of ``PRESETS``.
        kind: of the forecasts.

    Raises:
        ValueError: an unknown name or preset, or a suite or preset that the data don't fit.
    """
    wanted = kind.fitting_suites() if names is None else names
    protocol = find_preset(preset)
    if isinstance(protocol, VideoProtocol):
        kind.check_images(f"preset {preset!r}")
    elif "rain" not in wanted and preset != "default":
        raise ValueError(f"preset {preset!r} is of rain scores, these data have none; take the preset 'default'")
    check_preset(protocol, kind)
    vector, num_channels, refused = kind.schema.vector_channels, kind.shape[1], _refusals(kind)
    rain = protocol if isinstance(protocol, RainProtocol) else RAIN_PRESETS["default"]
    events = rain.thresholds if "rain" in wanted else ()
    make: dict[str, Callable[[], Suite]] = {
        "ensemble": ensemble_suite,
        "calibration": lambda: calibration_suite(kind.climate, events, rain.rule),
        "spectrum": lambda: spectrum_suite(kind.periodic),
        "blockiness": lambda: blockiness_suite(kind.patch_pixels or 1),
        "flow": lambda: flow_suite(*(vector or (0, 1)), kind.periodic),
        "rain": lambda: rain_suite(rain),
        "image": lambda: image_suite(IMAGE_RANGE),
        "series": series_suite,
        "vrmse": lambda: vrmse_suite(kind.schema.channels, num_channels),
        "latitude": lambda: latitude_suite(kind.latitudes, num_channels, kind.schema.channels),
    }
    for name in wanted:
        if name not in make:
            raise ValueError(f"unknown scores {name!r}; there are {', '.join(SUITES)}")
        if refused.get(name):
            raise ValueError(f"{refused[name]}; leave {name!r} out")
    if "image" in wanted:
        kind.check_images("image scores")
    return [make[name]() for name in wanted]


def _refusals(kind: ForecastKind) -> dict[str, str | Literal[False]]:
    """Why suites can't be made for these data, by name; False where they can."""
    num_channels, size = kind.shape[1], kind.shape[2:]
    return {
        "blockiness": not kind.has_patches
        and "blockiness needs forecasts without random shifts that say of which model patches they are, of 2 pixels or "
        f"more and smaller than the frame; these have frames of {size}, patches of "
        f"{kind.patch_pixels or 'a size that is not known'}",
        "flow": kind.schema.vector_channels is None and "flow scores need vector_channels in the shards' manifest",
        "rain": num_channels != 1 and f"rain scores are of one channel, the forecasts have {num_channels}",
        "series": not kind.is_series and f"series scores are of frames of one pixel, these have {size}",
        "vrmse": kind.is_series and "VRMSE is in units of the spread over pixels, series have one pixel",
        "latitude": not kind.latitudes and "scores by latitude need latitudes in the shards' manifest",
    }


def find_preset(name: str) -> RainProtocol | VideoProtocol:
    """A preset by name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def check_preset(protocol: RainProtocol | VideoProtocol, kind: ForecastKind) -> None:
    """Raises a one-line ``ValueError`` that names the first thing which the forecasts have unlike what is asked for."""
    asked = (
        ("frames", protocol.frames, (kind.num_history_frames, kind.shape[0])),
        ("size", protocol.size, kind.shape[2:]),
        ("samples per context", getattr(protocol, "num_members", None), kind.num_members),
    )
    for what, wanted, have in asked:
        if wanted is not None and wanted != have:
            raise ValueError(
                f"preset {protocol.name!r} asks for {what} {_text(wanted)}, these forecasts have {_text(have)}; "
                "take the preset 'default', whose numbers don't compare with published ones"
            )


def _text(value: tuple[int, int] | int) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
