"""A folder of forecasts: ``forecast.json`` says what was asked for, beside it lie the ensembles, case by case.

A folder never mixes two requests. Ensembles lie in a file per case (npz) or in one zarr array of all cases that xarray
opens; either way a case appears only when it is complete, so a stopped run can go on and several processes may write
side by side. Letters: M members, S lead times, C channels, H W height and width.
"""

import re
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.errors import naming
from dydiff_dist.files import atomic_file, write_json
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.strict_config import StrictConfig, describe_error

REQUEST_NAME = "forecast.json"
ZARR_NAME = "forecasts.zarr"
FileFormat = Literal["npz", "zarr"]
Precision = Literal["fp32", "bf16"]
_NPZ_NAME = re.compile(r"case_(\d{6,})\.npz")
_NOT_COMPARED = ("model", "shards", "data.train", "data.valid", "num_cases")
"""Where things lie is no part of what they are: checksums say that. More cases of a request are the same request."""


class ForecastRequest(StrictConfig):
    """What a folder of forecasts is: everything that its numbers follow from."""

    format_version: Literal[1] = 1
    model: str
    """Folder of the model as it was given."""
    weights_sha256: str
    """Of the model's weights."""
    autoencoder_sha256: str | None = None
    """Identity of the autoencoder through which latents were forecast."""
    shards: str
    """Folder of the cases' shards, or file of the array, as it was given."""
    shards_sha256: str
    """Of the shards' manifest, or of the array's file."""
    data: DataConfig
    """How cases are cut: history frames, future frames that have a truth, stride, crop."""
    num_frames: int | None = None
    """Frames forecast, S; None is as many as have a truth. More go on beyond what the shards know."""
    sampling: SamplingConfig
    num_members: int
    """M."""
    seed: int
    """Key of all noise."""
    precision: Precision
    """Storage of the network."""
    frames: FrameSchema
    """Channels, units and kind of the stored frames."""
    file_format: FileFormat = "npz"
    inflation: tuple[float, ...] | None = None
    """By how much members were moved from their mean, by lead time (``inflation.py``)."""
    num_cases: int | None = None
    """The most cases that were asked for, the first ones; None where an earlier version wrote it."""

    @property
    def num_leads(self) -> int:
        """S, how many frames of each case are forecast."""
        return self.num_frames or self.data.num_future_frames

    @property
    def shape_MSCHW(self) -> tuple[int, int, int, int, int]:  # noqa: N802 - the letters are the shape
        """(M, S, C, H, W) of one case's ensemble, after the crop."""
        height, width = self.data.crop_size or self.frames.shape[1:]
        return self.num_members, self.num_leads, self.frames.shape[0], height, width

    @property
    def lead_frames(self) -> np.ndarray:
        """(S,) int64: stored frames from the last given one to each forecast one."""
        return np.arange(1, self.num_leads + 1, dtype=np.int64) * self.data.frame_stride


class ForecastStore(ABC):
    """Reads and writes a folder of forecasts; ``create`` and ``open`` find the class for its format."""

    def __init__(self, folder: Path, request: ForecastRequest, num_cases: int = 0):
        """``num_cases``: so many are to be written, for formats that reserve space; 0 takes what is there."""
        self.folder, self.request = folder, request

    @staticmethod
    def create(folder: str | Path, request: ForecastRequest, num_cases: int) -> "ForecastStore":
        """Opens the folder for writing ``num_cases``, and goes on with what it holds if that was asked for alike.

        Raises:
            ValueError: it holds forecasts of another request; the first difference is named.
        """
        folder = Path(folder)
        path = folder / REQUEST_NAME
        asked_before = 0
        if path.is_file():
            before = _read_request(path)
            difference = _first_difference(before.model_dump(), request.model_dump())
            if difference:
                key, old, new = difference
                raise ValueError(
                    f"{folder} holds forecasts with {key} = {old!r}, now {new!r} is asked for; write to another folder"
                )
            asked_before = before.num_cases or 0
        request = request.model_copy(update={"num_cases": max(num_cases, asked_before)})
        folder.mkdir(parents=True, exist_ok=True)
        if num_cases > asked_before:
            # several processes may do this at once, with the same content
            write_json(path, request.model_dump(mode="json"))
        return _STORES[request.file_format](folder, request, num_cases)

    @staticmethod
    def open(folder: str | Path) -> "ForecastStore":
        """Opens a folder of forecasts for reading.

        Raises:
            FileNotFoundError: no forecasts there.
            ValueError: forecast.json is damaged.
        """
        path = Path(folder) / REQUEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"no forecasts in {str(folder)!r} ({REQUEST_NAME} is missing); run tools/forecast.py"
            )
        request = _read_request(path)
        return _STORES[request.file_format](Path(folder), request)

    @abstractmethod
    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""

    @abstractmethod
    def path(self, case: int) -> Path:
        """Where a case lies, for messages."""

    @abstractmethod
    def write(self, case: int, key: str, members: np.ndarray) -> None:
        """Writes a case, whole or not at all: its sample's key, and members (M, S, C, H, W) float32, stored units."""

    @abstractmethod
    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members (M, S, C, H, W) float32) of a case.

        Raises:
            FileNotFoundError: it was not forecast.
            ValueError: it is damaged.
        """


class NpzStore(ForecastStore):
    """``case_000017.npz`` holds ``members`` (M, S, C, H, W) float32, ``lead_frames`` (S,) int64 and ``key``."""

    def cases(self) -> list[int]:
        names = (_NPZ_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, case: int) -> Path:
        return self.folder / f"case_{case:06d}.npz"

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        lead_frames = self.request.lead_frames[: members.shape[1]]
        with atomic_file(self.path(case)) as partial, open(partial, "wb") as file:
            np.savez(file, members=members.astype(np.float32), lead_frames=lead_frames, key=np.array(key))

    def read(self, case: int) -> tuple[str, np.ndarray]:
        path = self.path(case)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return str(archive["key"]), archive["members"]
        except FileNotFoundError:
            raise _missing(path) from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run tools/forecast.py again") from None


class ZarrStore(ForecastStore):
    """``forecasts.zarr``: ``members`` (case, member, lead, channel, y, x) float32, ``lead_frames`` (lead), ``key`` and
    ``complete`` (case). A chunk holds one case, so processes never write to the same file; cases that were not forecast
    are NaN and not complete."""

    def __init__(self, folder: Path, request: ForecastRequest, num_cases: int = 0):
        """
        Args:
            folder: that the array lies in.
            request: says the shape of one case.
            num_cases: so many cases fit; a shorter array is made longer, 0 leaves it.

        Raises:
            ValueError: zarr is not installed, or the array is of another shape.
        """
        super().__init__(folder, request, num_cases)
        self._array_folder = folder / ZARR_NAME
        with naming(self._array_folder):
            self._open_arrays(request, num_cases)

    def _open_arrays(self, request: ForecastRequest, num_cases: int) -> None:
        """Opens the arrays, or makes them for so many cases."""
        self._group = _open_group(self._array_folder)
        shape = request.shape_MSCHW
        # write_empty_chunks: a forecast that is nothing but NaN is there all the same, to be named
        members = {"dtype": "float32", "fill_value": np.nan, "config": {"write_empty_chunks": True}}
        axes = ("case", "member", "lead", "channel", "y", "x")
        self._members = self._array("members", (num_cases, *shape), (1, *shape), axes, **members)
        self._key = self._array("key", (num_cases,), (1,), axes[:1], dtype=str, fill_value="")
        self._complete = self._array("complete", (num_cases,), (1,), axes[:1], dtype="bool", fill_value=False)
        leads = self._array("lead_frames", shape[1:2], shape[1:2], axes[2:3], dtype="int64", fill_value=0)
        leads[:] = request.lead_frames
        if self._members.shape[1:] != shape:
            raise ValueError(f"{self._array_folder} holds cases of shape {self._members.shape[1:]}, expected {shape}")

    def cases(self) -> list[int]:
        return np.flatnonzero(self._complete[:]).tolist()

    def path(self, case: int) -> Path:
        return self._array_folder / "members" / "c" / str(case)

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        with naming(self._array_folder):
            self._members[case] = members.astype(np.float32)
            self._key[case] = key
            self._complete[case] = True  # last, so that what is complete is whole

    def read(self, case: int) -> tuple[str, np.ndarray]:
        if case >= self._complete.shape[0] or not self._complete[case]:
            raise _missing(self.path(case))
        try:
            return str(self._key[case]), np.asarray(self._members[case])
        except Exception as error:  # zarr's codecs have no common error; whatever it is, the case can't be read
            raise ValueError(
                f"{self.path(case)} is damaged ({type(error).__name__}: {error}); forecast into a new folder"
            ) from None

    def _array(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[str, ...], **options
    ) -> Any:
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


_STORES: dict[str, type[ForecastStore]] = {"npz": NpzStore, "zarr": ZarrStore}


def _open_group(path: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise ValueError("zarr is not installed; pip install 'dydiff_dist[zarr]', or write with --format npz") from None
    return zarr.open_group(path, mode="a")


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path} does not exist; run tools/forecast.py with more cases")


def _read_request(path: Path) -> ForecastRequest:
    try:
        return ForecastRequest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error, ForecastRequest)}; forecast into a new folder") from None


def _first_difference(old: dict, new: dict, prefix: str = "") -> tuple[str, object, object] | None:
    """(dotted key, old value, new value) where two trees of the same keys first differ; paths as given don't count."""
    for name, value in old.items():
        other = new[name]
        if isinstance(value, dict):
            difference = _first_difference(value, other, f"{prefix}{name}.")
            if difference:
                return difference
        elif value != other and prefix + name not in _NOT_COMPARED:
            return prefix + name, value, other
    return None
