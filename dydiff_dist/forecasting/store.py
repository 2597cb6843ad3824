"""A folder of forecasts: ``forecast.json`` says what was asked for, beside it lie the ensembles, case by case.

A folder never mixes two requests. Ensembles lie in a file per case (npz) or in one zarr array of all cases that xarray
opens; either way a case appears only when it is complete, so a stopped run can go on and several processes may write
side by side. Letters: M members, S lead times, C channels, H W height and width.
"""

import json
import logging
import re
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt, ValidationError

from dydiff_dist.arrays import read_npz
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.remote import from_elsewhere
from dydiff_dist.errors import naming
from dydiff_dist.files import atomic_file, parse_sealed, read_document_bytes, seal, write_json
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.quoting import first_line
from dydiff_dist.strict_config import StrictConfig, describe_error

logger = logging.getLogger(__name__)

REQUEST_NAME = "forecast.json"
ZARR_NAME = "forecasts.zarr"
FileFormat = Literal["npz", "zarr"]
Precision = Literal["fp32", "bf16"]
_NPZ_NAME = re.compile(r"case_(\d{6,})\.npz")
_NOT_COMPARED = ("model", "shards", "data.train", "data.valid", "num_cases", "patch_pixels")
"""Where things lie is no part of what they are: checksums say that, of the weights also what patches they take. More
cases of a request are the same request."""


class ForecastRequest(StrictConfig):
    """What a folder of forecasts is: everything that its numbers follow from."""

    format_version: Literal[1] = 1
    model: str
    """Folder of the model as it was given."""
    weights_sha256: str
    """Of the model's weights."""
    autoencoder_sha256: str | None = None
    """Identity of the autoencoder through which latents were forecast."""
    patch_pixels: PositiveInt | None = None
    """Pixels of the stored frames along the edge of the model's patches; None where their place changes from pass to
    pass (``sampling.random_shifts``), and where an earlier version wrote it."""
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
            write_json(path, seal(request.model_dump(mode="json")))
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
            arrays = read_npz(path)
            key, members, leads = arrays["key"], arrays["members"], arrays["lead_frames"]
            if key.dtype.kind != "U" or key.shape or members.dtype != np.float32 or leads.dtype != np.int64:
                raise ValueError("its arrays are of other types")
        except FileNotFoundError:
            raise _missing(path) from None
        except (KeyError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is damaged ({reason}); delete it and run tools/forecast.py again") from None
        return str(key), members


class ZarrStore(ForecastStore):
    """``forecasts.zarr``: ``members`` (case, member, lead, channel, y, x) float32, ``lead_frames`` (lead), ``key``,
    ``crc32`` of key and members, and ``complete`` (case). A chunk holds one case, so processes never write to the same
    file; cases that were not forecast are NaN and not complete."""

    def __init__(self, folder: Path, request: ForecastRequest, num_cases: int = 0):
        """
        Args:
            folder: that the array lies in.
            request: says the shape of one case.
            num_cases: so many cases fit, a shorter array is made longer; 0 only reads what is there.

        Raises:
            ValueError: zarr is not installed, or the arrays are damaged or of another shape.
        """
        super().__init__(folder, request, num_cases)
        self._array_folder = folder / ZARR_NAME
        zarr = _import_zarr()
        with naming(self._array_folder):
            try:
                self._open_arrays(zarr.open_group(self._array_folder, mode="a" if num_cases else "r"), num_cases)
            except Exception as error:  # zarr has no common error
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the system's
                raise self._damage(self._array_folder, error) from None

    def _open_arrays(self, group: Any, num_cases: int) -> None:
        """Opens the arrays, or makes them for so many cases."""
        shape = self.request.shape_MSCHW
        axes = ("case", "member", "lead", "channel", "y", "x")

        def case_array(name: str, dtype: Any, fill_value: Any) -> Any:
            return _array(group, name, (num_cases,), (1,), axes[:1], dtype=dtype, fill_value=fill_value)

        # write_empty_chunks: a forecast that is nothing but NaN is there all the same, to be named
        members = {"dtype": "float32", "fill_value": np.nan, "config": {"write_empty_chunks": True}}
        self._members = _array(group, "members", (num_cases, *shape), (1, *shape), axes, **members)
        self._key, self._complete = case_array("key", str, ""), case_array("complete", "bool", False)
        if num_cases:
            leads = _array(group, "lead_frames", shape[1:2], shape[1:2], axes[2:3], dtype="int64", fill_value=0)
            leads[:] = self.request.lead_frames
        self._crc32 = None
        if num_cases or "crc32" in group:
            self._crc32 = case_array("crc32", "int64", _NO_CRC32)
        else:
            logger.warning("%s has no checksums, so a changed value goes unnoticed", self._array_folder)
        arrays = [self._members, self._key, self._complete, *([] if self._crc32 is None else [self._crc32])]
        lengths = {array.shape[0] for array in arrays}
        if not num_cases and len(lengths) > 1:
            raise ValueError(f"its arrays hold different numbers of cases, {sorted(lengths)}")
        if self._members.shape[1:] != shape:
            raise ValueError(f"it holds cases of shape {self._members.shape[1:]}, expected {shape}")

    def cases(self) -> list[int]:
        try:
            return np.flatnonzero(self._complete[:]).tolist()
        except Exception as error:  # as in ``read``
            raise self._damage(self._array_folder / "complete", error) from None

    def path(self, case: int) -> Path:
        return self._array_folder / "members" / "c" / str(case)

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        stored = np.ascontiguousarray(members, np.float32)
        assert self._crc32 is not None, "opened for reading"
        with naming(self._array_folder):
            self._members[case] = stored
            self._key[case] = key
            self._crc32[case] = _case_crc32(key, stored)
            self._complete[case] = True  # last, so that what is complete is whole

    def read(self, case: int) -> tuple[str, np.ndarray]:
        try:
            if case >= self._complete.shape[0] or not self._complete[case]:
                raise _missing(self.path(case))
            key, members = str(self._key[case]), np.ascontiguousarray(self._members[case], np.float32)
            stated = _NO_CRC32 if self._crc32 is None else int(self._crc32[case])
            if stated not in (_NO_CRC32, _case_crc32(key, members)):
                raise ValueError("it differs from its CRC-32")
        except FileNotFoundError:
            raise
        except Exception as error:  # zarr's codecs have no common error; whatever it is, the case can't be read
            raise self._damage(self.path(case), error) from None
        return key, members

    @staticmethod
    def _damage(path: Path, error: Exception) -> ValueError:
        return ValueError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}); forecast into a new folder"
        )


_NO_CRC32 = -1
"""Where a case was written before there were checksums."""


def _case_crc32(key: str, members: np.ndarray) -> int:
    return zlib.crc32(members.astype("<f4", copy=False).data, zlib.crc32(key.encode()))


def _array(
    group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[str, ...], **options: Any
) -> Any:
    """The array of this name; for writing, made where it isn't there, longer along cases where it is too short."""
    import zarr
    from zarr.codecs import ZstdCodec

    if name not in group and not group.read_only:
        options["compressors"] = ZstdCodec(checksum=True)
        try:
            return group.create_array(name, shape=shape, chunks=chunks, dimension_names=axes, **options)
        except zarr.errors.ContainsArrayError:  # another process was faster, with the same array
            pass
    array = group[name]
    if axes[0] == "case" and array.shape[0] < shape[0]:
        array.resize((shape[0], *array.shape[1:]))
    return array


_STORES: dict[str, type[ForecastStore]] = {"npz": NpzStore, "zarr": ZarrStore}


def _import_zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise ValueError("zarr is not installed; pip install 'dydiff_dist[zarr]', or write with --format npz") from None
    return zarr


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path} does not exist; run tools/forecast.py with more cases")


def _read_request(path: Path) -> ForecastRequest:
    tree = parse_sealed(read_document_bytes(path), str(path), "forecast into a new folder")
    try:
        request = ForecastRequest.model_validate_json(json.dumps(tree))
        data = request.data.model_copy(update={"remote": from_elsewhere(request.data.remote)})
        return request.model_copy(update={"data": data})
    except ValidationError as error:
        # the file is what was written, unless an earlier version wrote it: this program lacks what it names
        remedy = "import the module that registers it with --import, or use the version that made the forecasts"
        raise ValueError(f"{path}: {describe_error(error, ForecastRequest)}; {remedy}") from None


def _first_difference(old: dict, new: dict, prefix: str = "") -> tuple[str, object, object] | None:
    """(dotted key, old value, new value) where two trees of the same keys first differ; paths as given, and how remote
    data are fetched, don't count."""
    for name, value in old.items():
        other = new[name]
        if isinstance(value, dict):
            difference = _first_difference(value, other, f"{prefix}{name}.")
            if difference:
                return difference
        elif value != other and prefix + name not in _NOT_COMPARED and prefix != "data.remote.":
            return prefix + name, value, other
    return None
