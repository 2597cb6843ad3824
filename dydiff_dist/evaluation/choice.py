"""Which scores fit which data, and the named protocols of published numbers."""

from collections.abc import Sequence
from typing import Any

from dydiff_dist.evaluation.colors import looks_like_rain
from dydiff_dist.evaluation.fields import SSIM_WINDOW, flow_suite, image_suite, spectrum_suite
from dydiff_dist.evaluation.rain import RAIN_PRESETS, RainProtocol, rain_suite
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import Suite, ensemble_suite
from dydiff_dist.evaluation.video import VIDEO_PRESETS, VideoProtocol

SUITES = ("ensemble", "spectrum", "flow", "rain", "image", "series")
PRESETS: dict[str, RainProtocol | VideoProtocol] = RAIN_PRESETS | VIDEO_PRESETS


def choose_suites(
    names: Sequence[str] | None,
    *,
    preset: str,
    num_history_frames: int,
    num_members: int,
    shape_SCHW: tuple[int, int, int, int],
    schema: dict[str, Any],
    periodic: bool,
) -> list[Suite]:
    """The suites of these names.

    Args:
        names: of ``SUITES``; None takes all that fit the data.
        preset: a key of ``PRESETS``.
        num_history_frames: S_h.
        num_members: M.
        shape_SCHW: of the forecasts.
        schema: dtype, channels, units and vector_channels, as the shards' manifest says.
        periodic: whether frames wrap around.

    Raises:
        ValueError: an unknown name or preset, or a suite or preset that the data don't fit.
    """
    fits = suites_that_fit(shape_SCHW, schema)
    wanted = [name for name in SUITES if fits[name]] if names is None else names
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown scores {unknown[0]!r}; there are {', '.join(SUITES)}")
    vector = schema["vector_channels"]
    if "flow" in wanted and vector is None:
        raise ValueError("flow scores need vector_channels in the shards' manifest; leave 'flow' out")
    if "series" in wanted and not fits["series"]:
        raise ValueError(f"series scores are of frames of one pixel, these have {shape_SCHW[-2:]}; leave 'series' out")
    protocol = find_preset(preset)
    if isinstance(protocol, VideoProtocol):
        _check_images(schema, shape_SCHW, f"preset {preset!r}")
        protocol.check_data(num_history_frames, shape_SCHW, num_members)
    elif "rain" in wanted:
        protocol.check_data(num_history_frames, shape_SCHW)
    elif preset != "default":
        raise ValueError(f"preset {preset!r} is of rain scores, these data have none; take the preset 'default'")
    make = {
        "ensemble": ensemble_suite,
        "spectrum": lambda: spectrum_suite(periodic),
        "flow": lambda: flow_suite(*vector, periodic),
        "rain": lambda: rain_suite(protocol if isinstance(protocol, RainProtocol) else RAIN_PRESETS["default"]),
        "image": lambda: image_suite(data_range(schema, shape_SCHW)),
        "series": series_suite,
    }
    return [make[name]() for name in wanted]


def suites_that_fit(shape_SCHW: tuple[int, ...], schema: dict[str, Any]) -> dict[str, bool]:
    """By name of suite, whether these data have what it scores."""
    num_channels, vector = shape_SCHW[1], schema["vector_channels"]
    is_series = tuple(shape_SCHW[-2:]) == (1, 1)
    return {
        "ensemble": True,
        "spectrum": not is_series,
        "flow": vector is not None,
        "rain": num_channels == 1 and looks_like_rain(tuple(schema["channels"]), schema["units"]),
        "image": is_image(schema, shape_SCHW) and min(shape_SCHW[-2:]) >= SSIM_WINDOW,
        "series": is_series,
    }


def is_image(schema: dict[str, Any], shape_SCHW: tuple[int, ...]) -> bool:
    """Whether frames are pictures: 8-bit, grey or in three colours."""
    return schema["dtype"] == "uint8" and shape_SCHW[1] in (1, 3)


def data_range(schema: dict[str, Any], shape_SCHW: tuple[int, ...], what: str = "image scores") -> float:
    """Largest value of pictures, whose least is 0.

    Raises:
        ValueError: frames that are no pictures; ``what`` needs them.
    """
    _check_images(schema, shape_SCHW, what)
    return 255.0


def find_preset(name: str) -> RainProtocol | VideoProtocol:
    """A preset by name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _check_images(schema: dict[str, Any], shape_SCHW: tuple[int, ...], what: str) -> None:
    if not is_image(schema, shape_SCHW):
        raise ValueError(
            f"{what}: needs 8-bit frames of 1 or 3 channels, these are {schema['dtype']} of {shape_SCHW[1]}; "
            "leave it out"
        )
