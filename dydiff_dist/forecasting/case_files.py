"""How forecasts lie on disk: a file per case (npz), or one zarr array of all cases that xarray opens.

Either way a case appears only when it is complete, so a stopped run can go on and several processes may write side by
side. Letters: M members, S lead times, C channels, H W height and width.
"""

import re
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from dydiff_dist.files import atomic_file

_NPZ_NAME = re.compile(r"case_(\d{6,})\.npz")
ZARR_NAME = "forecasts.zarr"


class CaseFiles(Protocol):
    """Reads and writes the ensembles of cases by number."""

    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""

    def path(self, case: int) -> Path:
        """Where a case lies, for messages."""

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        """Writes a case: ``members`` (M, S, C, H, W) float32 in stored units."""

    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members (M, S, C, H, W) float32) of a case.

        Raises:
            FileNotFoundError: it was not forecast.
            ValueError: it is damaged.
        """


class NpzFiles:
    """``case_000017.npz`` holds ``members`` (M, S, C, H, W) float32, ``lead_frames`` (S,) int64 and ``key``."""

    def __init__(self, folder: Path, frame_stride: int):
        self.folder, self.frame_stride = folder, frame_stride

    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""
        names = (_NPZ_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, case: int) -> Path:
        """The case's file."""
        return self.folder / f"case_{case:06d}.npz"

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        """Writes the case's file, which appears complete."""
        with atomic_file(self.path(case)) as partial, open(partial, "wb") as file:
            np.savez(
                file,
                members=members.astype(np.float32),
                lead_frames=_lead_frames(members.shape[1], self.frame_stride),
                key=np.array(key),
            )

    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members) of a case."""
        path = self.path(case)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return str(archive["key"]), archive["members"]
        except FileNotFoundError:
            raise _missing(path) from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run tools/forecast.py again") from None


class ZarrFiles:
    """``forecasts.zarr``: ``members`` (case, member, lead, channel, y, x) float32, ``lead_frames`` (lead), ``key`` and
    ``complete`` (case). A chunk holds one case, so processes never write to the same file; cases that were not forecast
    are NaN and not complete."""

    def __init__(self, folder: Path, frame_stride: int, shape_MSCHW: tuple[int, ...], num_cases: int):
        """
        Args:
            folder: that the array lies in.
            frame_stride: between lead times, in stored frames.
            shape_MSCHW: of one case.
            num_cases: room for so many; an array that has less is made longer, 0 leaves it.

        Raises:
            ValueError: zarr is not installed, or the array is of another shape.
        """
        self._folder = folder / ZARR_NAME
        self._group = _open_group(self._folder)
        # write_empty_chunks: a forecast that is nothing but NaN is there all the same, to be named
        members = {"dtype": "float32", "fill_value": np.nan, "config": {"write_empty_chunks": True}}
        axes = ("case", "member", "lead", "channel", "y", "x")
        self._members = self._array("members", (num_cases, *shape_MSCHW), (1, *shape_MSCHW), axes, **members)
        self._key = self._array("key", (num_cases,), (1,), axes[:1], dtype=str, fill_value="")
        self._complete = self._array("complete", (num_cases,), (1,), axes[:1], dtype="bool", fill_value=False)
        leads = self._array("lead_frames", shape_MSCHW[1:2], shape_MSCHW[1:2], axes[2:3], dtype="int64", fill_value=0)
        leads[:] = _lead_frames(shape_MSCHW[1], frame_stride)
        if self._members.shape[1:] != tuple(shape_MSCHW):
            raise ValueError(f"{self._folder} holds cases of shape {self._members.shape[1:]}, expected {shape_MSCHW}")

    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""
        return np.flatnonzero(self._complete[:]).tolist()

    def path(self, case: int) -> Path:
        """The chunk of the case."""
        return self._folder / "members" / "c" / str(case)

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        """The case's chunk, then the word that it is complete."""
        self._members[case] = members.astype(np.float32)
        self._key[case] = key
        self._complete[case] = True

    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members) of a case."""
        if case >= self._complete.shape[0] or not self._complete[case]:
            raise _missing(self.path(case))
        try:
            return str(self._key[case]), np.asarray(self._members[case])
        except Exception as error:  # zarr's codecs have no common error; whatever it is, the case can't be read
            raise ValueError(
                f"{self.path(case)} is damaged ({type(error).__name__}: {error}); forecast into a new folder"
            ) from None

    def _array(self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[str, ...], **options):
        """The array of this name, made where it isn't there, longer along cases where it is too short."""
        import zarr

        if name not in self._group:
            try:
                return self._group.create_array(name, shape=shape, chunks=chunks, dimension_names=axes, **options)
            except zarr.errors.ContainsArrayError:  # another process was faster, with the same array
                pass
        array = self._group[name]
        if axes[0] == "case" and array.shape[0] < shape[0]:
            array.resize((shape[0], *array.shape[1:]))
        return array


def _open_group(path: Path):
    try:
        import zarr
    except ImportError:
        raise ValueError("zarr is not installed; pip install 'dydiff_dist[zarr]', or write with --format npz") from None
    return zarr.open_group(path, mode="a")


def _lead_frames(num_leads: int, frame_stride: int) -> np.ndarray:
    return np.arange(1, num_leads + 1, dtype=np.int64) * frame_stride


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path} does not exist; run tools/forecast.py with more cases")
