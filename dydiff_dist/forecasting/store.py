"""A folder of forecasts: ``forecast.json`` says what was asked for, ``case_000017.npz`` holds one case's ensemble.

Files appear under their names only when complete, so a stopped run can go on and several processes may write side by
side. Letters: M members, S lead times, C channels, H W height and width.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.strict_config import StrictConfig, describe_error

REQUEST_NAME = "forecast.json"
_CASE_NAME = re.compile(r"case_(\d{6,})\.npz")


class ForecastRequest(StrictConfig):
    """What a folder of forecasts is: everything that its numbers follow from."""

    format_version: Literal[1] = 1
    model: str
    """Folder of the model as it was given."""
    weights_sha256: str
    """Of the model's weights."""
    shards: str
    """Folder of the cases' shards as it was given."""
    shards_sha256: str
    """Of the shards' manifest."""
    data: DataConfig
    """How cases are cut: history and future frames, stride, crop."""
    sampling: SamplingConfig
    num_members: int
    """M."""
    seed: int
    """Key of all noise."""
    precision: Literal["fp32", "bf16"]
    """Storage of the network."""
    frames: FrameSchema
    """Channels, units and kind of the stored frames."""


class ForecastStore:
    """Reads and writes a folder of forecasts."""

    def __init__(self, folder: str | Path, request: ForecastRequest):
        self.folder, self.request = Path(folder), request

    @classmethod
    def create(cls, folder: str | Path, request: ForecastRequest) -> "ForecastStore":
        """Opens the folder for writing, and goes on with what it holds if that was asked for alike.

        Raises:
            ValueError: it holds forecasts of another request; the first difference is named.
        """
        folder = Path(folder)
        path = folder / REQUEST_NAME
        if path.is_file():
            found = cls.open(folder)
            difference = _first_difference(found.request.model_dump(), request.model_dump())
            if difference:
                key, old, new = difference
                raise ValueError(
                    f"{folder} holds forecasts with {key} = {old!r}, now {new!r} is asked for; write to another folder"
                )
            return found
        folder.mkdir(parents=True, exist_ok=True)
        # several processes may create the folder at once: each writes its own file, and the contents are the same
        partial = folder / f".{REQUEST_NAME}.{os.getpid()}.partial"
        partial.write_text(json.dumps(request.model_dump(mode="json"), indent=1) + "\n")
        partial.replace(path)
        return cls(folder, request)

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
        try:
            return cls(folder, ForecastRequest.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise ValueError(f"{path}: {describe_error(error, ForecastRequest)}; forecast into a new folder") from None

    def cases(self) -> list[int]:
        """Numbers of the cases that are there, ascending."""
        names = (_CASE_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, case: int) -> Path:
        """Where a case lies."""
        return self.folder / f"case_{case:06d}.npz"

    def write(self, case: int, key: str, members: np.ndarray) -> Path:
        """Writes a case: ``members`` (M, S, C, H, W) float32 in stored units, ``lead_frames`` (S,), ``key``."""
        path = self.path(case)
        partial = path.with_name(f".{path.name}.partial")
        stride = self.request.data.frame_stride
        lead_frames = np.arange(1, members.shape[1] + 1, dtype=np.int64) * stride
        with open(partial, "wb") as file:
            np.savez(file, members=members.astype(np.float32), lead_frames=lead_frames, key=np.array(key))
        partial.replace(path)
        return path

    def read(self, case: int) -> tuple[str, np.ndarray]:
        """(key, members (M, S, C, H, W) float32) of a case.

        Raises:
            FileNotFoundError: it was not forecast.
            ValueError: the file is damaged.
        """
        path = self.path(case)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return str(archive["key"]), archive["members"]
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist; run tools/forecast.py with more cases") from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run tools/forecast.py again") from None


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
