"""Data sets in the layouts of The Well, DiffCast's radar files and LeRobot, as small as they can be."""

from pathlib import Path

import h5py
import numpy as np

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
            dimensions[name].attrs["sample_varying"] = False
        for axis, kind in (boundaries or dict.fromkeys(axes, "PERIODIC")).items():
            boundary = file.create_group(f"boundary_conditions/{axis}_{kind.lower()}")
            boundary.attrs.update(associated_dims=[axis], associated_fields=[], bc_type=kind)
            boundary["mask"] = np.zeros(sizes[axes.index(axis)], bool)
        file.create_group("scalars").attrs["field_names"] = ["tcool"]
        file["scalars/tcool"] = np.float32(0.3)
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
