"""Data sets in the layouts of The Well, DiffCast's radar files and LeRobot, as small as they can be."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_video import write_video

RNG = np.random.default_rng(1)


def write_well_file(
    path: Path,
    sizes: tuple[int, ...] = (6, 8),
    num_trajectories: int = 2,
    num_steps: int = 7,
    boundaries: dict[str, str] | None = None,
    drop_axes: bool = True,
    flat_tensors: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A file of The Well with fields of each order and each way not to vary; the whole arrays (N, T, …, components)."""
    rng, axes = np.random.default_rng(seed), "xyz"[: len(sizes)]
    varying = {
        "t0_fields": {
            "density": (True, True, sizes),
            "mask": (False, False, sizes),
            "forcing": (False, True, (1, *sizes[1:])),
            "inflow": (True, True, (*sizes[:-1], 1)),
        },
        "t1_fields": {"velocity": (True, True, sizes), "wind": (True, False, (1, *sizes[1:]))},
        "t2_fields": {"D": (True, True, sizes)},
    }
    whole = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="flow", grid_type="cartesian", n_spatial_dims=len(sizes))
        file.attrs.update(n_trajectories=num_trajectories, simulation_parameters=["tcool"], tcool=0.3)
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = list(axes)
        for name, size in {"time": num_steps, **dict(zip(axes, sizes, strict=True))}.items():
            dimensions[name] = np.linspace(0, 1, size, dtype=np.float32)
            dimensions[name].attrs.update(sample_varying=False, time_varying=False)
        for axis, kind in (boundaries or dict.fromkeys(axes, "PERIODIC")).items():
            boundary = file.create_group(f"boundary_conditions/{axis}_{kind.lower()}")
            boundary.attrs.update(associated_dims=[axis], associated_fields=[], bc_type=kind)
            boundary.attrs.update(sample_varying=False, time_varying=False)
            boundary["mask"] = np.zeros(sizes[axes.index(axis)], bool)
        file.create_group("scalars").attrs["field_names"] = ["tcool"]
        file["scalars/tcool"] = np.float32(0.3)
        file["scalars/tcool"].attrs.update(sample_varying=False, time_varying=False)
        for order, (group, fields) in enumerate(varying.items()):
            file.create_group(group).attrs["field_names"] = list(fields)
            for name, (in_sample, in_time, spatial) in fields.items():
                lead = (num_trajectories,) * in_sample + (num_steps,) * in_time
                parts = (len(sizes),) * order
                values = rng.standard_normal((*lead, *spatial, *parts)).astype(np.float32)
                kept = tuple(size for size in spatial if size > 1) if drop_axes else spatial
                stored_parts = (len(sizes) ** 2,) if flat_tensors and order == 2 else parts
                file[group][name] = values.reshape(*lead, *kept, *stored_parts)
                file[group][name].attrs.update(
                    dim_varying=[size > 1 for size in spatial], sample_varying=in_sample, time_varying=in_time
                )
                values = values if in_sample else values[None]
                values = values if in_time else np.expand_dims(values, 1)
                full = np.broadcast_to(values, (num_trajectories, num_steps, *sizes, *parts))
                whole[name] = full.reshape(num_trajectories, num_steps, *sizes, -1)
    return whole


def write_well(root: Path, count: int = 12, **options: object) -> dict:
    """A data set of so many files of one trajectory in train/, one in valid/ and one in test/."""
    files = [*(f"train/run_{n:02d}" for n in range(count)), "valid/run", "test/run"]
    for seed, name in enumerate(files):
        write_well_file(root / "data" / f"{name}.hdf5", num_trajectories=1, seed=seed, **options)
    return {"root": str(root), "num_frames": 3}


def write_radar_file(
    path: Path,
    counts: dict[str, int],
    size: tuple[int, int] = (12, 10),
    num_frames: int = 4,
    prefix: str = "",
    lengths_at_root: bool = False,
) -> dict[str, np.ndarray]:
    """A file of numbered sequences by group; the sequences (S, H, W) by the keys of their samples."""
    whole = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for group, count in counts.items():
            file.create_group(group)
            first = 1 if prefix else 0
            for number in range(first, first + count):
                frames = RNG.integers(0, 256, (num_frames, *size), np.uint8)
                file[group].create_dataset(f"{prefix}{number}", data=frames, compression="lzf")
                whole[f"{group}_{number:06d}"] = frames
            file[f"{group}_len" if lengths_at_root else f"{group}/all_len"] = count
    return whole


def write_radar(root: Path) -> dict:
    write_radar_file(root / "radar.h5", {"train": 12, "test": 2})
    return {"file": str(root / "radar.h5"), "valid_fraction": 0.0}


def write_lerobot(
    root: Path,
    lengths: tuple[int, ...] = (9, 7, 12, 8),
    version: str = "v3.0",
    codec: str = "libx264",
    cameras: tuple[str, ...] = ("observation.images.top",),
    episodes_per_file: int = 3,
    fps: int = 10,
    splits: dict[str, str] | None = None,
    picture: Callable[[int, int, int], np.ndarray] | None = None,
    action: Callable[[int, int], list[float]] = lambda episode, frame: [episode + frame / 100, -1.0],
) -> dict:
    """A data set of LeRobot whose frame i of episode e, camera c, is ``picture(e, i, c)``, by default ``shade``'s;
    action[i] is ``action(e, i)``, e + i / 100 and -1.

    v3.0 puts so many episodes into each table and each video; v2.1 has a file for each.
    """
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    picture = picture or shade
    number_of = {"dtype": "float32", "shape": [len(action(0, 0))], "names": None}
    features = {"action": number_of, "observation.state": {**number_of, "shape": [3]}}
    video_of = {"dtype": "video", "shape": picture(0, 0, 0).shape, "info": {"video.codec": codec}}
    features |= dict.fromkeys(cameras, video_of)
    info = {"codebase_version": version, "fps": fps, "features": features, "chunks_size": 1000, "robot_type": "arm"}
    info |= {"total_episodes": len(lengths), "splits": splits or {"train": f"0:{len(lengths)}"}}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    per_file = episodes_per_file if version == "v3.0" else 1
    rows, first_row = [], 0
    for first in range(0, len(lengths), per_file):
        episodes = range(first, min(first + per_file, len(lengths)))
        data = f"chunk-000/file-{first // per_file:03d}" if version == "v3.0" else f"chunk-000/episode_{first:06d}"
        table = [(e, i) for e in episodes for i in range(lengths[e])]
        columns = {
            "action": pa.array([action(e, i) for e, i in table], pa.list_(pa.float32())),
            "observation.state": pa.array([[e, i, 0.5] for e, i in table], pa.list_(pa.float32())),
            "timestamp": pa.array([i / fps for _, i in table], pa.float32()),
            "frame_index": [i for _, i in table],
            "episode_index": [e for e, _ in table],
            "index": list(range(first_row, first_row + len(table))),
            "task_index": [0] * len(table),
        }
        path = root / "data" / f"{data}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=10)
        for c, camera in enumerate(cameras):
            name = f"{camera}/{data}" if version == "v3.0" else data.replace("/", f"/{camera}/")
            path = root / "videos" / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, [picture(e, i, c) for e, i in table], fps, codec=codec, pixels="yuv420p")
        begins = 0
        for e in episodes:
            row = {"episode_index": e, "tasks": ["push"], "length": lengths[e], "dataset_from_index": first_row}
            row |= {"dataset_to_index": first_row + lengths[e], "data/chunk_index": 0}
            row["data/file_index"] = first // per_file
            for camera in cameras:
                places = {"chunk_index": 0, "file_index": first // per_file, "from_timestamp": begins / fps}
                places["to_timestamp"] = (begins + lengths[e]) / fps
                row |= {f"videos/{camera}/{name}": value for name, value in places.items()}
            rows.append(row)
            begins, first_row = begins + lengths[e], first_row + lengths[e]
    if version == "v3.0":
        path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        names = ("episode_index", "tasks", "length")
        lines = [json.dumps({name: row[name] for name in names}) + "\n" for row in rows]
        (root / "meta" / "episodes.jsonl").write_text("".join(lines))
    return {"root": str(root), "num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0}


def shade(episode: int, frame: int, camera: int) -> np.ndarray:
    """A frame (32, 48, 3) that says of which episode (modulo 12), frame and camera it is, for ``read_shade``."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:32], pixels[:, 32:] = 20 * (episode % 12) + 10, 12 * frame + 10, 100 * camera + 10
    return pixels


def read_shade(frame_CHW: np.ndarray) -> tuple[int, int, int]:
    """(episode, frame, camera) of a frame of ``shade`` that a codec has been at."""
    height, width = frame_CHW.shape[1:]
    blocks = [frame_CHW[:, height // 2, place * width // 6].mean() - 10 for place in (1, 3, 5)]
    return tuple(round(value / step) for value, step in zip(blocks, (20, 12, 100), strict=True))
