"""One damaged input among many, for every source: the others are converted, it is named, and the rate decides."""

import csv
import random
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from test_bair import EXAMPLE
from test_converters import write_trajectory
from test_fuzz import drop_middle, overwrite, truncate, zero_blocks
from test_video import moving, write_video

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import SOURCES

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


def write_bair(root: Path) -> dict:
    (root / "train").mkdir()
    for n in range(COUNT):
        example = EXAMPLE()
        for t in range(2):
            feature = example.features.feature
            feature[f"{t}/image_main/encoded"].byteslist.value.append(bytes([n]) * 64 * 64 * 3)
            feature[f"{t}/action"].floatlist.value.extend([0.5] * 4)
            feature[f"{t}/endeffector_pos"].floatlist.value.extend([0.5] * 3)
        message, length = example.SerializeToString(), struct.pack("<Q", example.ByteSize())
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, message)]
        (root / "train" / f"traj_{n}.tfrecords").write_bytes(length + crcs[0] + message + crcs[1])
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


WRITERS = {
    **{
        f"arrays{suffix}": ("arrays", lambda root, suffix=suffix: write_arrays(root, suffix))
        for suffix in (".npy", ".npz", ".h5", ".zarr", ".mp4")
    },
    "bair": ("bair", write_bair),
    "robonet": ("robonet", write_robonet),
    "sevir": ("sevir", write_sevir),
}
CERTAIN = {
    "empty": lambda data, rng: b"",
    "truncate": truncate,
    "another kind": lambda data, rng: b"<html>404 Not Found</html>",
}
"""Damage that leaves nothing to be read as if it were whole."""
POSSIBLE = {"overwrite": overwrite, "drop": drop_middle, "zeros": zero_blocks}
"""Damage that a format without checksums may not show."""


def convert_all(source: str, options: dict, out: Path, rate: float = 1.0) -> tuple[dict[str, bytes], list[str]]:
    """Frames by key, and the names of what was rejected."""
    kind = SOURCES[source]
    report = convert(kind.source(kind.config(**options)), out, max_bad_rate=rate)
    shards = ShardSet.open(out / "train", check="sha256")
    samples = [shards.read(shards.address(number)) for number in range(len(shards))]
    return {sample.key: sample.frames.tobytes() for sample in samples}, [item.name for item in report.bad_items]


def inputs(root: Path) -> list[Path]:
    """Files that hold one input each; of a zarr store, its chunks."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ("CATALOG.csv", "zarr.json"))
    return [path for path in paths if ".zarr" not in str(path) or "/c/" in str(path)]


@pytest.mark.parametrize("name", WRITERS)
def test_one_damaged_input_is_named_and_the_others_are_converted(tmp_path, name):
    source, write = WRITERS[name]
    (tmp_path / "in").mkdir()
    options = write(tmp_path / "in")
    whole, rejected = convert_all(source, options, tmp_path / "whole")
    assert len(whole) >= COUNT and not rejected
    rng = random.Random(name)
    for trial, (kind, damage) in enumerate([*CERTAIN.items(), *POSSIBLE.items(), *POSSIBLE.items()]):
        victim = rng.choice(inputs(tmp_path / "in"))
        kept = victim.read_bytes()
        victim.write_bytes(damage(kept, rng))
        found, rejected = convert_all(source, options, tmp_path / f"out{trial}")
        place = next(part for part in victim.relative_to(tmp_path / "in").as_posix().split("/") if "." in part)
        assert all(place in item for item in rejected), (kind, victim, rejected)
        assert len(found) >= COUNT - 1 and found.keys() <= whole.keys()
        changed = [key for key in whole if found.get(key) != whole[key]]
        assert len(changed) <= 1 and (len(found) == len(whole) or rejected), (kind, victim)
        assert rejected or kind not in CERTAIN, (kind, victim)
        if rejected:
            with pytest.raises(ValueError, match=r"1 of \d+ inputs are bad, more than the allowed rate 0.0"):
                convert_all(source, options, tmp_path / f"strict{trial}", rate=0.0)
        victim.write_bytes(kept)


def test_a_shard_of_several_processes_names_the_same(tmp_path):
    (tmp_path / "in").mkdir()
    options = write_arrays(tmp_path / "in", ".npy")
    (tmp_path / "in" / "run-05.npy").write_bytes(b"")
    kind = SOURCES["arrays"]
    source = kind.source(kind.config(**options, trajectories_per_shard=4))
    report = convert(source, tmp_path / "out", num_processes=2)
    assert [item.name for item in report.bad_items] == ["run-05.npy"] and report.manifests


def test_an_hdf5_file_that_a_writer_holds_is_named(tmp_path):
    """The lock belongs to another process's open file, as a running simulation's."""
    (tmp_path / "in").mkdir()
    options = write_arrays(tmp_path / "in", ".h5")
    import subprocess
    import sys

    hold = "import sys, h5py; file = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"
    path = str(tmp_path / "in" / "run-03.h5")
    with subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        found, rejected = convert_all("arrays", options, tmp_path / "out")
        holder.stdin.close()
    assert rejected == ["run-03.h5"] and len(found) == COUNT - 1
