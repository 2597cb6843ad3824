"""Small inputs of every source, many of a kind, for tests that do something to one of them."""

import csv
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from test_bair import EXAMPLE
from test_converters import write_trajectory
from test_video import moving, write_video

COUNT = 12
RNG = np.random.default_rng(0)


def fields() -> np.ndarray:
    """A trajectory (3, 1, 6, 8) of whole numbers."""
    return RNG.integers(0, 100, (3, 1, 6, 8)).astype(np.float32)


def write_arrays(root: Path, suffix: str) -> dict:
    zarr = pytest.importorskip("zarr", reason="zarr is an extra") if suffix == ".zarr" else None
    for n in range(COUNT):
        path = root / f"run-{n:02d}{suffix}"
        if suffix == ".npy":
            np.save(path, fields())
        elif suffix == ".npz":
            np.savez_compressed(path, frames=fields())
        elif suffix == ".h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("frames", data=fields(), chunks=(1, 1, 6, 8), compression="gzip")
        elif suffix == ".mp4":
            write_video(path, moving(4), options={"movflags": "faststart"})
        else:
            zarr.create_array(str(path), data=fields(), chunks=(1, 1, 6, 8))
    return {"root": str(root), "num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0}


def write_records(path: Path, numbers: range) -> None:
    """BAIR's records, of two frames of one colour, the record's number."""
    data = b""
    for n in numbers:
        example = EXAMPLE()
        for t in range(2):
            feature = example.features.feature
            for camera in ("main", "aux1"):
                feature[f"{t}/image_{camera}/encoded"].byteslist.value.append(bytes([n]) * 64 * 64 * 3)
            feature[f"{t}/action"].floatlist.value.extend([0.5] * 4)
            feature[f"{t}/endeffector_pos"].floatlist.value.extend([0.5] * 3)
        message, length = example.SerializeToString(), struct.pack("<Q", example.ByteSize())
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, message)]
        data += length + crcs[0] + message + crcs[1]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def write_bair(root: Path) -> dict:
    for n in range(COUNT):
        write_records(root / "train" / f"traj_{n}.tfrecords", range(n, n + 1))
    return {"root": str(root), "num_frames": 2, "valid_fraction": 0.0}


def write_robonet(root: Path) -> dict:
    for n in range(COUNT):
        write_trajectory(root / f"traj{n}.hdf5")
    return {"root": str(root), "num_frames": 4, "size": (12, 16), "test_fraction": 0.0, "valid_fraction": 0.0}


def write_sevir(root: Path) -> dict:
    columns = ["id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "size_x", "size_y"]
    minutes = ":".join(str(minute) for minute in range(-120, 125, 5))
    (root / "data").mkdir()
    with open(root / "CATALOG.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "pct_missing"])
        for n in range(COUNT):
            writer.writerow([f"E{n:02d}", f"e{n}.h5", 0, "vil", f"2019-01-{n + 1:02d} 00:00:00", minutes, 12, 12, 0])
            with h5py.File(root / "data" / f"e{n}.h5", "w") as data:
                data["id"], data["vil"] = [f"E{n:02d}".encode()], RNG.integers(0, 254, (1, 12, 12, 49), np.uint8)
    return {"root": str(root), "window_frames": 49}


def write_pdebench(root: Path) -> dict:
    """Reaction and diffusion, a trajectory of one window in each file."""
    for n in range(COUNT):
        with h5py.File(root / f"run-{n:02d}.h5", "w") as file:
            values = RNG.normal(size=(3, 6, 8, 2)).astype(np.float32)
            file.create_dataset("0000/data", data=values, compression="lzf", fletcher32=True)
            for axis, size in (("x", 6), ("y", 8), ("t", 3)):
                file[f"0000/grid/{axis}"] = np.arange(size, dtype=np.float32)
    return {"root": str(root), "num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0}


def write_weather(root: Path) -> dict:
    """Temperatures, the times of one window in each file."""
    xarray = pytest.importorskip("xarray", reason="xarray is an extra")
    for n in range(COUNT):
        times = np.datetime64("2019-12-30", "ns") + np.arange(3 * n, 3 * n + 3) * np.timedelta64(6, "h")
        axes = {"time": times, "latitude": [60.0, 0.0, -60.0], "longitude": np.arange(4) * 90.0}
        values = RNG.normal(280, 9, (3, 3, 4)).astype(np.float32)
        data = xarray.Dataset({"t2m": (tuple(axes), values, {"units": "K"})}, axes)
        stored = {name: {"zlib": True, "fletcher32": True} for name in ("t2m", "time")}
        data.to_netcdf(root / f"times-{n:02d}.nc", engine="h5netcdf", encoding=stored)
    return {"root": (str(root),), "variables": ("t2m",), "num_frames": 3}
