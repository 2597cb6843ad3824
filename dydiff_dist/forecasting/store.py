"""A folder of forecasts: ``forecast.json`` says what was asked for, beside it lie the ensembles, case by case.

A folder never mixes two requests. Letters: M members, S lead times, C channels, H W height and width.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.files import write_json
from dydiff_dist.forecasting.case_files import CaseFiles, NpzFiles, ZarrFiles
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.strict_config import StrictConfig, describe_error

REQUEST_NAME = "forecast.json"
FileFormat = Literal["npz", "zarr"]


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
    precision: Literal["fp32", "bf16"]
    """Storage of the network."""
    frames: FrameSchema
    """Channels, units and kind of the stored frames."""
    file_format: FileFormat = "npz"

    @property
    def num_leads(self) -> int:
        """Frames forecast, S."""
        return self.num_frames or self.data.num_future_frames

    @property
    def shape_MSCHW(self) -> tuple[int, int, int, int, int]:  # noqa: N802 - the letters are the shape
        """Of one case."""
        height, width = self.data.crop_size or self.frames.shape[1:]
        return self.num_members, self.num_leads, self.frames.shape[0], height, width


class ForecastStore:
    """Reads and writes a folder of forecasts."""

    def __init__(self, folder: str | Path, request: ForecastRequest, num_cases: int = 0):
        """``num_cases``: room to make for so many where the format needs it made; 0 takes what is there."""
        self.folder, self.request = Path(folder), request
        stride = request.data.frame_stride
        self.files: CaseFiles = (
            NpzFiles(self.folder, stride)
            if request.file_format == "npz"
            else ZarrFiles(self.folder, stride, request.shape_MSCHW, num_cases)
        )

    @classmethod
    def create(cls, folder: str | Path, request: ForecastRequest, num_cases: int) -> "ForecastStore":
        """Opens the folder for writing ``num_cases``, and goes on with what it holds if that was asked for alike.

        Raises:
            ValueError: it holds forecasts of another request; the first difference is named.
        """
        folder = Path(folder)
        path = folder / REQUEST_NAME
        if path.is_file():
            difference = _first_difference(_read_request(path).model_dump(), request.model_dump())
            if difference:
                key, old, new = difference
                raise ValueError(
                    f"{folder} holds forecasts with {key} = {old!r}, now {new!r} is asked for; write to another folder"
                )
            return cls(folder, request, num_cases)
        folder.mkdir(parents=True, exist_ok=True)
        # several processes may create the folder at once; what they write is the same
        write_json(path, request.model_dump(mode="json"))
        return cls(folder, request, num_cases)

    @classmethod
    def open(cls, folder: str | Path) -> "ForecastStore":
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
        return cls(folder, _read_request(path))

    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""
        return self.files.cases()

    def path(self, case: int) -> Path:
        """Where a case lies."""
        return self.files.path(case)

    def write(self, case: int, key: str, members: np.ndarray) -> None:
        """Writes a case: ``members`` (M, S, C, H, W) float32 in stored units."""
        self.files.write(case, key, members)

    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members (M, S, C, H, W) float32) of a case.

        Raises:
            FileNotFoundError: it was not forecast.
            ValueError: the file is damaged.
        """
        return self.files.read(case)


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
        elif value != other and prefix + name not in _PLACES:
            return prefix + name, value, other
    return None


_PLACES = ("model", "shards", "data.train", "data.valid")
"""Where things lie is no part of what they are: checksums say that."""
