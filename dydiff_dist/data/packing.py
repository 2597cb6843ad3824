"""Values of packed arrays, as their attributes say (climate and forecast conventions, CF 1.11, sections 2.5.1 and 8.1).

The value is stored * scale_factor + add_offset. It is missing where _FillValue or missing_value is stored, or what lies
beyond valid_min, valid_max or valid_range. _Unsigned reads signed integers as unsigned ones.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CF_ATTRIBUTES = (
    *("scale_factor", "add_offset", "_FillValue", "missing_value"),
    *("valid_min", "valid_max", "valid_range", "_Unsigned"),
)
UNKNOWN_ATTRIBUTES = (
    *("scale", "offset", "slope", "intercept", "gain", "bias", "scaling_factor", "scalefactor", "addoffset"),
    *("fillvalue", "fill_value", "nodata", "no_data", "nodata_value", "no_data_value"),
)
"""Names, in small letters, by which other conventions change values: not applied, as each means them in its own way,
and not passed over."""


def value_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an array's attributes that change its values, or may."""
    wanted = (*CF_ATTRIBUTES, *UNKNOWN_ATTRIBUTES)
    return {key: given[key] for key in given if key in wanted or key.lower() in wanted}


@dataclass(frozen=True)
class Unpacked:
    """Values and where there are none."""

    values: np.ndarray
    """float32 where they were scaled, else of the stored type."""
    is_missing: np.ndarray | None
    """Of the same shape; None where no value is missing."""


def unpack(stored: np.ndarray, attributes: Mapping[str, Any]) -> Unpacked:
    """The values of an array.

    Args:
        stored: numbers as they lie in the file, any shape.
        attributes: of the array; others than ``CF_ATTRIBUTES`` are not looked at, but for ``UNKNOWN_ATTRIBUTES``.

    Raises:
        ValueError: an attribute that changes values in a way not known here, or one that is no number.

    Examples:
        >>> found = unpack(np.array([-32768, 100], np.int16), {"scale_factor": 0.5, "_FillValue": -32768})
        >>> found.values.tolist(), found.is_missing.tolist()
        ([-16384.0, 50.0], [True, False])
    """
    unknown = [name for name in attributes if name.lower() in UNKNOWN_ATTRIBUTES]
    if unknown:
        raise ValueError(
            f"an attribute {unknown[0]!r} may change its values and is not of the CF conventions (scale_factor, "
            "add_offset, _FillValue …); rename it to the one it means, or take the stored values with --packing stored"
        )
    known = {name: attributes[name] for name in CF_ATTRIBUTES if name in attributes}
    unsigned = str(_text(known.pop("_Unsigned", ""))).lower()
    if (unsigned, stored.dtype.kind) in (("true", "i"), ("false", "u")):
        stored = stored.view(stored.dtype.str.replace(*("iu" if unsigned == "true" else "ui")))
    scale, offset = (_numbers(known, name, stored.dtype) for name in ("scale_factor", "add_offset"))
    for name, found in (("scale_factor", scale), ("add_offset", offset)):
        if found.size > 1:
            raise ValueError(f"its {name} holds {found.size} numbers; one for the whole array is read")
    values = stored
    if scale.size or offset.size:
        values = stored.astype(np.float64) * (scale.item() if scale.size else 1) + (offset.item() if offset.size else 0)
    missing = _is_missing(stored, values, known)
    values = values.astype(np.float32) if values is not stored else stored
    return Unpacked(values, missing if missing.any() else None)


def fill_masks(values: np.ndarray, missing: np.ndarray, fill: Sequence[float]) -> None:
    """Fills, in place, what a channel of a window lacks in every frame, as a sea temperature does over land. What only
    some frames lack, and a channel that is not there at all, stays missing.

    Args:
        values: frames (S, C, H, W) of one window.
        missing: of the same shape, bool; False afterwards where a value was filled in.
        fill: one value for all channels or one for each, in the units of ``values``; empty fills nothing.

    Raises:
        ValueError: another number of values, or one that the frames' type does not hold.
    """
    if len(fill) not in (0, 1, values.shape[1]):
        raise ValueError(f"--fill has {len(fill)} values for {values.shape[1]} channels; give one, or one for each")
    masks = _masks(missing)
    for channel, value in enumerate(fill if len(fill) == values.shape[1] else fill * values.shape[1]):
        kind = np.iinfo(values.dtype) if values.dtype.kind in "iu" else np.finfo(values.dtype)
        in_range = float(kind.min) <= value <= float(kind.max)
        if not in_range or (values.dtype.kind in "iu" and value != int(value)):
            raise ValueError(f"--fill {value:g} is no value of frames of type {values.dtype}; give another")
        values[:, channel, masks[channel]] = value
        missing[:, channel, masks[channel]] = False


def describe_missing(missing: np.ndarray) -> str:
    """In words, how many values of a window (S, C, H, W) are missing, and the option where it is for want of a mask."""
    text = f"{int(missing.sum())} of {missing.size} values are missing, NaN or infinite"
    masked = int(_masks(missing).sum())
    if not masked:
        return text
    return (
        f"{text}, {masked} pixels in all of the window's frames, as of a field that is there over sea or land alone "
        "(then --fill VALUE takes a value there)"
    )


def _masks(missing: np.ndarray) -> np.ndarray:
    """(C, H, W): what is missing in every frame, of channels that are there somewhere."""
    always = np.logical_and.reduce(missing, axis=0)
    return always & ~always.all(axis=(1, 2), keepdims=True)


def _is_missing(stored: np.ndarray, values: np.ndarray, known: Mapping[str, Any]) -> np.ndarray:
    """Where there is no value."""
    missing = ~np.isfinite(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
    for name in ("_FillValue", "missing_value"):
        for number in _numbers(known, name, stored.dtype):
            missing |= stored == number
    low, high = (_numbers(known, name, stored.dtype) for name in ("valid_min", "valid_max"))
    both = _numbers(known, "valid_range", stored.dtype)
    if both.size not in (0, 2):
        raise ValueError(f"its valid_range holds {both.size} numbers, not 2")
    # limits of real numbers beside packed integers are limits of the values themselves
    judged = (
        values
        if stored.dtype.kind in "iu" and any(x.size and x.dtype.kind == "f" for x in (low, high, both))
        else stored
    )
    for least in (*low, *both[:1]):
        missing |= judged < least
    for most in (*high, *both[1:]):
        missing |= judged > most
    return missing


def _numbers(known: Mapping[str, Any], name: str, dtype: np.dtype) -> np.ndarray:
    """An attribute's numbers, (n,), in the stored type where they are of its kind; empty where it is absent."""
    if name not in known:
        return np.zeros(0)
    given = _text(known[name])
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            given = _from_base64(given, name)
    try:
        numbers = np.asarray(given).reshape(-1)
        numbers = numbers if numbers.dtype.kind in "iuf" else numbers.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"its attribute {name} is {given!r}, no number") from None
    if name in ("scale_factor", "add_offset"):
        return numbers
    negative = dtype.kind == "u" and numbers.dtype.kind == "i" and (numbers < 0).any()  # meant as _Unsigned
    return numbers.astype(dtype) if dtype.kind == "f" or negative else numbers


def _from_base64(text: str, name: str) -> float:
    """A fill value as xarray writes it into zarr 3: the bytes of a little-endian double."""
    try:
        return float(struct.unpack("<d", base64.standard_b64decode(text))[0])
    except (ValueError, struct.error):
        raise ValueError(f"its attribute {name} is {text!r}, no number") from None


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
