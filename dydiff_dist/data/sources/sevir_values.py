"""What the numbers in SEVIR's files mean, by image type: physical units, published normalisations, lightning.

Sources: Veillette, Samsi, Mattioli, NeurIPS 2020, and "Decoding SEVIR data" and "Lightning Data" in the tutorial
https://nbviewer.jupyter.org/github/MIT-AI-Accelerator/eie-sevir/blob/master/examples/SEVIR_Tutorial.ipynb (factors, VIL
to kg/m², lightning as flashes in a table); the published means and spreads are those of SEVIR's own benchmarks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dydiff_dist.data.manifest import Bounds

FRAME_SEC = 300
FIRST_FRAME_SEC = -7200
NUM_FRAMES = 49
LIGHTNING_SIDE = 48
"""Pixels of 8 km."""


@dataclass(frozen=True)
class ImageType:
    """One of the five kinds of images of an event."""

    name: str
    """In words, for messages and units."""
    physical_units: str
    to_physical: Callable[[np.ndarray], np.ndarray]
    """Stored values -> physical units."""
    zscore: tuple[float, float] | None = None
    """Published mean and standard deviation of the stored values."""
    unit_range: tuple[float, float] | None = None
    """Stored values that become 0 and 1."""
    bounds: Bounds = (None, None)
    """What stored values lie between. Nothing is claimed for radiances, whose noise may carry them below 0."""


VIL_MISSING = 255
"""Stored where VIL is not known; values run from 0 to 254."""


def vil_to_kg_per_m2(stored: np.ndarray) -> np.ndarray:
    """Vertically integrated liquid X in kg/m²: 0 for X ≤ 5, (X - 2)/90.66 for X ≤ 18, exp((X - 83.9)/38.9) for X ≤ 254.

    Early versions of the tutorial print the last bracket elsewhere, exp(X - 83.9)/38.9, which would jump by thirty
    powers of ten at 18; the later ones have it as here.
    """
    stored = stored.astype(np.float64)
    linear, exponential = (stored - 2) / 90.66, np.exp((stored - 83.9) / 38.9)
    return np.where(stored <= 5, 0.0, np.where(stored <= 18, linear, exponential))


def _times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda stored: stored.astype(np.float64) * factor


IMAGE_TYPES = {
    "vil": ImageType("vertically integrated liquid", "kg/m2", vil_to_kg_per_m2, (33.44, 47.54), (0.0, 255.0), (0, 254)),
    "ir069": ImageType("6.9 µm water vapour", "degrees Celsius", _times(1e-2), (-3683.58, 1174.68)),
    "ir107": ImageType("10.7 µm window", "degrees Celsius", _times(1e-2), (-1552.80, 2562.43)),
    "vis": ImageType("0.64 µm visible", "reflectance factor", _times(1e-4), unit_range=(0.0, 1e4)),
    "lght": ImageType(
        "lightning", "flashes per pixel and 5 minutes", _times(1.0), (0.02990, 0.60517), bounds=(0, None)
    ),
}

LOG_RAIN = (0.0, 255 / float(np.log(101)))
"""Stored 255·log(1 + mm/h)/log(101) -> log(1 + mm/h)."""


def shift_and_scale(image_type: str, values: str, normalisation: str) -> tuple[float, float] | None:
    """Shift and scale of a normalisation by name; None for the training split's own mean and standard deviation.

    Raises:
        ValueError: it is not defined for this image type, or not for values that are converted.
    """
    if normalisation == "standard":
        return None
    if values != "stored":
        raise ValueError(
            f"normalisation {normalisation} is of SEVIR's stored values, --values is {values}; use standard"
        )
    kind = IMAGE_TYPES[image_type]
    if normalisation == "sevir" and kind.zscore is not None:
        return kind.zscore
    if normalisation == "unit" and kind.unit_range is not None:
        low, high = kind.unit_range
        return low, high - low
    if normalisation == "log_rain" and image_type == "vil":
        return LOG_RAIN
    raise ValueError(f"normalisation {normalisation} is not defined for {image_type} ({kind.name}); use standard")


def converted(frames: np.ndarray, image_type: str, values: str) -> np.ndarray:
    """Frames as asked for: "stored" unchanged, "physical" in physical units, "log" as log(1 + physical); float32."""
    if values == "stored":
        return frames
    physical = IMAGE_TYPES[image_type].to_physical(frames)
    return (np.log1p(physical) if values == "log" else physical).astype(np.float32)


def bounds(image_type: str, values: str) -> Bounds:
    """What the values that ``converted`` gives lie between."""
    low, high = (
        None if end is None else float(converted(np.array([end]), image_type, values)[0])
        for end in IMAGE_TYPES[image_type].bounds
    )
    return low, high


def flashes_to_frames(flashes: np.ndarray) -> np.ndarray:
    """Counts of flashes, (49, 48, 48) int16, from rows (seconds from the event's time, latitude, longitude, x, y).

    A frame counts the five minutes that begin with it; what came before the first frame counts there, and what came
    after the last one there. Flashes beside the image are dropped.
    """
    seconds, column, row = flashes[:, 0], flashes[:, 3], flashes[:, 4]
    inside = (column >= 0) & (column < LIGHTNING_SIDE) & (row >= 0) & (row < LIGHTNING_SIDE)
    frame = np.floor((seconds[inside] - FIRST_FRAME_SEC) / FRAME_SEC).clip(0, NUM_FRAMES - 1).astype(np.int64)
    counts = np.zeros((NUM_FRAMES, LIGHTNING_SIDE, LIGHTNING_SIDE), np.int64)
    np.add.at(counts, (frame, row[inside].astype(np.int64), column[inside].astype(np.int64)), 1)
    return counts.clip(max=np.iinfo(np.int16).max).astype(np.int16)
