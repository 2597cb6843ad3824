"""SEVIR's HDF5 files: what an event's frames are, held against what the catalogue says of them.

Letters: S frames, H W height and width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from dydiff_dist.data.hdf5 import dataset, open_hdf5
from dydiff_dist.data.sources.sevir_catalogue import plain_id
from dydiff_dist.data.sources.sevir_values import VIL_MISSING, flashes_to_frames

Layout = Literal["time_last", "time_first"]


@dataclass(frozen=True)
class StoredEvent:
    """What a file should hold of an event."""

    event: str
    file: str
    """Relative to data/."""
    row: int
    """Index within the HDF5 dataset."""
    num_frames: int
    height: int | None
    """Pixels; None where the catalogue does not say."""
    width: int | None


def read_event(data_folder: Path, event: StoredEvent, image_type: str, layout: Layout | None) -> np.ndarray:
    """All frames of an event, (S, H, W) as stored.

    Args:
        data_folder: that the catalogue's file names are relative to.
        event: where it is, and what is expected there.
        image_type: name of the array.
        layout: whether frames are the last axis, as in SEVIR's files, or the one after the events; None lets the shape
            tell.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not as the catalogue says.
    """
    with open_hdf5(data_folder / event.file) as file:
        if image_type == "lght":
            flashes = dataset(file, event.event)
            if flashes.ndim != 2 or flashes.shape[1] != 5:
                raise ValueError(f"its flashes have shape {flashes.shape}; (flashes, 5) is expected")
            return flashes_to_frames(flashes[()])
        images = dataset(file, image_type)
        if not images.shape or event.row >= images.shape[0]:
            held = images.shape[0] if images.shape else 0
            raise ValueError(f"the catalogue says event {event.row} of the file, which holds {held}")
        stored = stored_id(file, event.row)
        if stored is not None and not _is_same(stored, event.event):
            raise ValueError(f"row {event.row} holds event {stored}, the catalogue says {event.event}")
        found = find_layout(images.shape, event, layout)
        frames = images[event.row]
    _check_values(frames, image_type)
    return frames if found == "time_first" else np.moveaxis(frames, -1, 0)


def _check_values(frames: np.ndarray, image_type: str) -> None:
    """Refuses what would be taken for SEVIR's values: rescaled ones, and other marks of missing pixels."""
    if frames.dtype.kind == "f" and not (frames == np.round(frames)).all():
        raise ValueError(
            f"its {image_type} are fractions, SEVIR stores whole numbers; rescaled values must be scaled back"
        )
    if image_type == "vil" and (frames.min() < 0 or frames.max() > VIL_MISSING):
        raise ValueError(
            f"its vil run from {frames.min()} to {frames.max()}, SEVIR's from 0 to 254, and {VIL_MISSING} stands for a "
            "missing pixel"
        )


def stored_id(file: h5py.File, row: int) -> str | None:
    """The name of the event in a row of a file; None where files have no names, as PreDiff's SEVIR-LR."""
    if not isinstance(file.get("id"), h5py.Dataset):
        return None
    if row >= len(file["id"]):
        raise ValueError(f"its 'id' names {len(file['id'])} events, row {row} is asked for")
    stored = file["id"][row]
    return stored.decode(errors="replace") if isinstance(stored, bytes) else str(stored)


def files_without_ids(data_folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that can be opened and do not name their events."""
    found = []
    for name in names:
        try:
            with open_hdf5(data_folder / name) as file:
                if stored_id(file, 0) is None:
                    found.append(name)
        except Exception:  # damaged files raise anything (``source.reading``); it is rejected when it is read
            continue
    return found


def _is_same(stored: str, listed: str) -> bool:
    """Whether two names are one: whole numbers may have lost leading zeros."""
    stored, listed = plain_id(stored.strip()), plain_id(listed)
    return stored == listed or (stored.isdecimal() and listed.isdecimal() and int(stored) == int(listed))


def find_layout(shape: tuple[int, ...], event: StoredEvent, layout: Layout | None) -> Layout:
    """Where the frames stand in an array of events, of the number and size that the catalogue says.

    Raises:
        ValueError: no layout fits them, or both do.
    """
    if len(shape) != 4:
        raise ValueError(f"its frames have shape {shape}; four axes are expected: events, height, width, frames")
    num_frames, sides = event.num_frames, (event.height, event.width)
    orders: dict[Layout, tuple[int, int, int]] = {"time_last": shape[3:] + shape[1:3], "time_first": shape[1:]}
    fitting = [name for name, order in orders.items() if order[0] == num_frames and _fits(order[1:], sides)]
    if layout is not None and layout in fitting:
        return layout
    if layout is None and len(fitting) == 1:
        return fitting[0]
    if layout is None and fitting:
        raise ValueError(
            f"its frames have shape {shape}, which may have the time first or last; give --layout time_last (as "
            "SEVIR) or time_first"
        )
    likely: Layout = layout or ("time_first" if shape[2] == shape[3] != shape[1] else "time_last")
    held = orders[likely]
    raise ValueError(
        f"it holds {held[0]} frames of {_size(held[1:])}, the catalogue says {num_frames} of {_size(sides)}"
        f"{_remedy(held, num_frames, sides)}"
    )


def _fits(found: tuple[int, ...], sides: tuple[int | None, int | None]) -> bool:
    return all(side is None or side == length for side, length in zip(sides, found, strict=True))


def _size(sides: tuple[int | None, ...]) -> str:
    return "×".join("?" if side is None else str(side) for side in sides)


def _remedy(held: tuple[int, ...], num_frames: int, sides: tuple[int | None, int | None]) -> str:
    """The options for files that were thinned and shrunk, where the numbers say so."""
    stride = -(-num_frames // held[0]) if held[0] else 0
    factor = (sides[0] or held[1]) // held[1] if held[1] else 0
    if min(stride, factor) < 1 or -(-num_frames // stride) != held[0]:
        return ""
    if any(side is not None and side != length * factor for side, length in zip(sides, held[1:], strict=True)):
        return ""
    kept = f"every {_ordinal(stride)} frame was kept and {factor}×{factor} pixels were made one"
    return f"; if {kept} (in PreDiff's SEVIR-LR, 2 and 3), give --stored-stride {stride} --stored-downsample {factor}"


def _ordinal(number: int) -> str:
    return {1: "single", 2: "second", 3: "third"}.get(number, f"{number}th")
