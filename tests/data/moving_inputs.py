"""Data sets with something in them that can be forecast, in the layouts of The Well, PDEBench, WeatherBench 2, LeRobot
and DiffCast: for the pictures and conversion times of docs/data.md, and for tests.

    python tests/data/moving_inputs.py well|pdebench|weather FOLDER [SIZE]
    python tests/data/moving_inputs.py lerobot|radar_h5 FOLDER --shards SHARDS

The last two rewrite shards of robonet and of sevir. SIZE is how many runs (well, pdebench) or days (weather).
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
from catalogue_inputs import write_lerobot

from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.turbulence_solver import TurbulenceConfig, simulate

SPLITS = {"train": 1.0, "valid": 0.1, "test": 0.1}
"""Split -> its runs, of those of training."""


def write_well(root: Path, num_runs: int = 24, num_frames: int = 102) -> None:
    """Turbulence in a periodic box of 64x64, vorticity and velocity, as The Well stores them: a file for each split."""
    for split, share in SPLITS.items():
        count = max(2, round(share * num_runs))
        (found,) = simulate(TurbulenceConfig(), 1, split, range(count), 1, num_frames, 0)
        velocity_NTHWD = found.numpy().transpose(0, 1, 3, 4, 2)[..., ::-1]  # along x, our height, comes first
        waves = 1j * np.fft.fftfreq(64, 1 / 64)
        along_x, along_y = np.moveaxis(np.fft.fft2(velocity_NTHWD, axes=(2, 3)), -1, 0)
        vorticity = np.fft.ifft2(waves[:, None] * along_y - waves * along_x).real
        path = root / "data" / split / "turbulence.hdf5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.attrs.update(dataset_name="turbulence", grid_type="cartesian", n_spatial_dims=2, n_trajectories=count)
            file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
            for axis in ("x", "y"):
                file[f"dimensions/{axis}"] = np.arange(64, dtype=np.float32) * 2 * np.pi / 64
                boundary = file.create_group(f"boundary_conditions/{axis}_periodic")
                boundary.attrs.update(associated_dims=[axis], bc_type="PERIODIC", sample_varying=False)
            file["dimensions/time"] = np.arange(num_frames, dtype=np.float32) * 0.2
            for group, name, values in (
                ("t0_fields", "vorticity", vorticity),
                ("t1_fields", "velocity", velocity_NTHWD),
                ("t2_fields", "", None),
            ):
                file.create_group(group).attrs["field_names"] = [name] if name else []
                if name:
                    file[group][name] = values.astype(np.float32)
                    file[group][name].attrs.update(dim_varying=[True, True], sample_varying=True, time_varying=True)


def write_pdebench(root: Path, num_runs: int = 40) -> None:
    """PDEBench's reaction–diffusion (FitzHugh–Nagumo, arXiv 2210.07182 appendix D): 101 times of 128x128 points from
    white noise, no flow through the edges; explicit Euler of 0.01. A file for each split."""
    for seed, (split, share) in enumerate(SPLITS.items()):
        rng, count = np.random.default_rng(seed), max(1, round(share * num_runs))
        state_CNHW = rng.standard_normal((2, count, 128, 128), np.float32)
        diffusion = np.array([1e-3, 5e-3], np.float32)[:, None, None, None] / np.float32((2 / 128) ** 2)
        data_NTHWC = np.empty((count, 101, 128, 128, 2), np.float32)
        for frame in range(101):
            data_NTHWC[:, frame] = np.moveaxis(state_CNHW, 0, -1)
            for _ in range(5):
                padded = np.pad(state_CNHW, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
                around = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] + padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
                u, v = state_CNHW
                reaction = np.stack([u - u**3 - np.float32(5e-3) - v, u - v])
                state_CNHW = state_CNHW + np.float32(0.01) * (diffusion * (around - 4 * state_CNHW) + reaction)
        path = root / split / "2D_diff-react_NA_NA.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        axis = np.linspace(-1, 1, 128, dtype=np.float32)
        with h5py.File(path, "w") as file:
            for number, data in enumerate(data_NTHWC):
                file.create_dataset(f"{number:04d}/data", data=data, compression="lzf")
                for name, values in (("x", axis), ("y", axis), ("t", np.arange(101, dtype=np.float32) / 20)):
                    file[f"{number:04d}/grid/{name}"] = values


def write_weather(path: Path, num_days: int = 4 * 365, start: str = "2016-01-01") -> None:
    """WeatherBench 2's 64x32 store, 6-hourly, axes (time, level, longitude, latitude): Rossby waves on a sphere.

    Spherical harmonics of degree n and order m turn by the exact rate of a rotating sphere without stretching,
    m (α − 2 (Ω + α) / (n (n + 1))) with α of a west wind of 15 m/s; their amplitudes forget by half in four days. A
    mean by latitude and a year's cycle of temperature are added.
    """
    import xarray
    from scipy.special import sph_harm_y

    rng, num_times = np.random.default_rng(0), 4 * num_days
    longitude, latitude = np.arange(64) * 5.625, np.linspace(-87.1875, 87.1875, 32)
    modes = [(n, m) for n in range(4, 11) for m in range(1, n + 1)]
    colatitude, around = np.deg2rad(90 - latitude), np.deg2rad(longitude)[:, None]
    basis = np.stack([sph_harm_y(n, m, colatitude, around) / n for n, m in modes])
    turning, wind = 7.292e-5, 15 / 6.371e6
    rates = np.array([m * (wind - 2 * (turning + wind) / (n * (n + 1))) for n, m in modes])
    keep = 0.5 ** (1 / 16)
    step = keep * np.exp(-1j * rates * 6 * 3600)
    noise = np.sqrt(1 - keep**2) * rng.standard_normal((num_times, len(modes), 2)) @ np.array([1, 1j])
    amplitudes = np.empty((num_times, len(modes)), complex)
    amplitude = noise[0] / np.sqrt(1 - keep**2)
    for number in range(num_times):
        amplitudes[number] = amplitude = step * amplitude + noise[number]
    waves = np.tensordot(amplitudes, basis, 1).real
    shifted = np.tensordot(amplitudes * np.exp(0.8j), basis, 1).real
    time = np.datetime64(start, "ns") + np.arange(num_times) * np.timedelta64(6, "h")
    year = np.cos(2 * np.pi * ((time - time[0]) / np.timedelta64(1, "D") - 15) / 365.25)[:, None, None]
    mean, season = np.cos(np.deg2rad(latitude)) ** 2, -year * np.sin(np.deg2rad(latitude))
    height = np.stack([5.0e4 + 7e3 * mean + 600 * season + 2200 * waves, 1.2e4 + 3e3 * mean + 1500 * waves], axis=1)
    upper = np.stack([240 + 25 * mean + 5 * season + 9 * shifted, 265 + 25 * mean + 9 * season + 12 * shifted], axis=1)
    surface = 258 + 40 * mean + 12 * season + 12 * shifted
    axes = ("time", "level", "longitude", "latitude")
    fields = {
        "geopotential": (axes, height.astype(np.float32), {"units": "m**2 s**-2"}),
        "temperature": (axes, upper.astype(np.float32), {"units": "K"}),
        "2m_temperature": ((axes[0], *axes[2:]), surface.astype(np.float32), {"units": "K"}),
    }
    coordinates = {"time": time, "level": [500, 850], "longitude": longitude, "latitude": latitude}
    xarray.Dataset(fields, coordinates).to_zarr(path, zarr_format=2)


def write_lerobot_of(root: Path, shards: Path) -> None:
    """Trajectories of shards with actions, as LeRobot v3.0 in H.264; shards/train, valid and test become its splits."""
    samples, splits = [], {}
    for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
        found = ShardSet.open(shards / split)
        splits[name] = f"{len(samples)}:{len(samples) + len(found)}"
        samples += [found.read(found.address(number)) for number in range(len(found))]
    frames = [sample.frames.transpose(0, 2, 3, 1) for sample in samples]
    # ours leads to frame s, LeRobot's is taken at frame s
    actions = [np.roll(sample.actions, -1, axis=0) for sample in samples]
    write_lerobot(
        root,
        tuple(map(len, frames)),
        splits=splits,
        picture=lambda episode, frame, _: frames[episode][frame],
        action=lambda episode, frame: actions[episode][frame].tolist(),
    )


def write_radar_of(path: Path, shards: Path) -> None:
    """Sequences of one channel of 8 bits of shards/train and shards/test, as DiffCast's Shanghai file has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            found = ShardSet.open(shards / split)
            for number in range(len(found)):
                frames = found.read(found.address(number)).frames
                file.create_dataset(f"{split}/{number}", data=frames[:, 0], compression="lzf")
            file[f"{split}/all_len"] = len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sized = {"well": write_well, "pdebench": write_pdebench, "weather": write_weather}
    rewritten = {"lerobot": write_lerobot_of, "radar_h5": write_radar_of}
    parser.add_argument("layout", choices=[*sized, *rewritten])
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", type=int, nargs="?")
    parser.add_argument("--shards", type=Path)
    arguments = parser.parse_args()
    if arguments.layout in rewritten:
        rewritten[arguments.layout](arguments.folder, arguments.shards)
    else:
        sized[arguments.layout](arguments.folder, *([arguments.size] if arguments.size else []))


if __name__ == "__main__":
    main()
