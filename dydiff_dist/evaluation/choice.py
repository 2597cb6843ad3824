"""Which scores fit which data."""

from collections.abc import Sequence
from typing import Any

from dydiff_dist.evaluation.colors import looks_like_rain
from dydiff_dist.evaluation.fields import flow_suite, image_suite, spectrum_suite
from dydiff_dist.evaluation.rain import PRESETS, rain_suite
from dydiff_dist.evaluation.series import series_suite
from dydiff_dist.evaluation.suites import Suite, ensemble_suite

SUITES = ("ensemble", "spectrum", "flow", "rain", "image", "series")


def choose_suites(
    names: Sequence[str] | None,
    *,
    preset: str,
    num_history_frames: int,
    shape_SCHW: tuple[int, int, int, int],
    schema: dict[str, Any],
    periodic: bool,
) -> list[Suite]:
    """The suites of these names.

    Args:
        names: of ``SUITES``; None takes all that fit the data.
        preset: of the rain scores, a key of ``PRESETS``.
        num_history_frames: S_h.
        shape_SCHW: of the forecasts.
        schema: dtype, channels, units and vector_channels, as the shards' manifest says.
        periodic: whether frames wrap around.

    Raises:
        ValueError: an unknown name or preset, or a suite that the data don't fit.
    """
    num_channels, vector = shape_SCHW[1], schema["vector_channels"]
    is_image = schema["dtype"] == "uint8" and num_channels in (1, 3)
    is_series = tuple(shape_SCHW[-2:]) == (1, 1)
    fits = {
        "ensemble": True,
        "spectrum": not is_series,
        "flow": vector is not None,
        "rain": num_channels == 1 and looks_like_rain(tuple(schema["channels"]), schema["units"]),
        "image": is_image and min(shape_SCHW[-2:]) >= 11,
        "series": is_series,
    }
    wanted = [name for name in SUITES if fits[name]] if names is None else names
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown scores {unknown[0]!r}; there are {', '.join(SUITES)}")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    if "flow" in wanted and vector is None:
        raise ValueError("flow scores need vector_channels in the shards' manifest; leave 'flow' out")
    if "series" in wanted and not is_series:
        raise ValueError(f"series scores are of frames of one pixel, these have {shape_SCHW[-2:]}; leave 'series' out")
    if "rain" in wanted:
        PRESETS[preset].check_data(num_history_frames, shape_SCHW)
    make = {
        "ensemble": ensemble_suite,
        "spectrum": lambda: spectrum_suite(periodic),
        "flow": lambda: flow_suite(*vector, periodic),
        "rain": lambda: rain_suite(PRESETS[preset]),
        "image": lambda: image_suite(255.0),
        "series": series_suite,
    }
    return [make[name]() for name in wanted]
