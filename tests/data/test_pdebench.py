"""PDEBench's files as its generators write them, read back value for value."""

import functools

import h5py
import numpy as np
import pytest
from test_all_options import files

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.pdebench import PdebenchSource, PdebenchSourceConfig

RNG = np.random.default_rng(0)
PERIODIC = "2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_128_Train.hdf5"


def values(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def write_gas(path, num=3, times=9, size=(12, 8)):
    with h5py.File(path, "w") as file:
        for name in ("density", "pressure", "Vx", "Vy"):
            file[name] = values(num, times, *size)
        for name, count in (("x", size[0]), ("y", size[1]), ("t", times + 1)):
            file[f"{name}-coordinate"] = np.linspace(0, 1, count, dtype=np.float32)
        file.attrs.update({"eta": 0.01, "zeta": 0.01, "M": 0.1})


def write_seeds(path, channels, num=3, times=9, size=(12, 12)):
    with h5py.File(path, "w") as file:
        for seed in range(num):
            data = values(times, *size, channels)
            file.create_dataset(f"{seed:04d}/data", data=data, compression="lzf" if channels == 2 else None)
            for name, count in (("x", size[0]), ("y", size[1]), ("t", times)):
                file[f"{seed:04d}/grid/{name}"] = np.linspace(0, 1, count, dtype=np.float32)
            file[f"{seed:04d}"].attrs["config"] = "sim:\n  seed: 0\n"


def write_incompressible(path, num=2, times=9, size=(12, 8), written=None):
    with h5py.File(path, "w") as file:
        for name, last in (("velocity", 2), ("particles", 1)):
            shape = (num, times, *size, last)
            data = file.create_dataset(name, shape, "f4", compression="lzf", shuffle=True, chunks=(1, 1, *size, last))
            data[:, :written] = values(*shape)[:, :written]
        file.create_dataset("force", data=values(num, *size, 2), chunks=(1, *size, 2), compression="lzf")
        file["t"] = np.tile(np.arange(times, dtype=np.float32), (num, 1))


def source(root, **options):
    usual = {"num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0}
    return PdebenchSource(PdebenchSourceConfig(root=str(root), **{**usual, **options}))


def samples(folder, made):
    convert(made, folder)
    shards = ShardSet.open(folder / "train", check="sha256")
    found = {s.key: s.frames for s in (shards.read(shards.address(number)) for number in range(len(shards)))}
    return found, shards.schema


def test_compressible_flow(tmp_path):
    (tmp_path / "in").mkdir()
    write_gas(tmp_path / "in" / PERIODIC)
    found, schema = samples(tmp_path / "out", source(tmp_path / "in", window_step=2))
    assert len(found) == 3 * 4
    with h5py.File(tmp_path / "in" / PERIODIC) as file:
        for key, frames in found.items():
            trajectory, start = map(int, key.rsplit("-", 2)[1:])
            expected = [file[name][trajectory, start : start + 3] for name in ("density", "pressure", "Vx", "Vy")]
            assert np.array_equal(frames, np.stack(expected, axis=1))
    assert schema.channels == ("density", "pressure", "Vx", "Vy") and schema.shape == (4, 12, 8)
    assert schema.allowed_augmentations == ("periodic_shift",) and schema.vector_channels == (3, 2)


@pytest.mark.parametrize(
    ("channels", "names"), [(2, ("activator", "inhibitor")), (1, ("height",))], ids=["reaction", "shallow water"]
)
def test_groups_by_seed(tmp_path, channels, names):
    (tmp_path / "in").mkdir()
    write_seeds(tmp_path / "in" / "2D_NA_NA.h5", channels)
    found, schema = samples(tmp_path / "out", source(tmp_path / "in", time_stride=2, space_stride=3))
    assert len(found) == 3
    with h5py.File(tmp_path / "in" / "2D_NA_NA.h5") as file:
        for key, frames in found.items():
            expected = file[f"{key.split('-')[1]}/data"][0:5:2, ::3, ::3].transpose(0, 3, 1, 2)
            assert np.array_equal(frames, expected)
    assert schema.channels == names and schema.allowed_augmentations == ("flip", "rotate")


def test_incompressible_flow_with_its_force(tmp_path):
    (tmp_path / "in").mkdir()
    write_incompressible(tmp_path / "in" / "ns_incom_inhom_2d_512-0.h5")
    found, schema = samples(tmp_path / "out", source(tmp_path / "in", fields=("force", "velocity", "particles")))
    with h5py.File(tmp_path / "in" / "ns_incom_inhom_2d_512-0.h5") as file:
        for key, frames in found.items():
            trajectory, start = map(int, key.rsplit("-", 2)[1:])
            parts = [file[name][trajectory, start : start + 3] for name in ("velocity", "particles")]
            force = np.broadcast_to(file["force"][trajectory], (3, 12, 8, 2))
            assert np.array_equal(frames, np.concatenate([force, *parts], axis=-1).transpose(0, 3, 1, 2))
    assert schema.channels == ("force_x", "force_y", "velocity_x", "velocity_y", "particles")
    assert schema.vector_channels == (3, 2) and schema.allowed_augmentations == ()


@pytest.mark.parametrize(
    ("name", "boundary", "allowed"),
    [
        ("KH_M01_dk1_Re1e3.hdf5", None, ()),
        ("KH_M01_dk1_Re1e3.hdf5", "periodic", ("periodic_shift",)),
        (PERIODIC, "open", ()),
    ],
)
def test_the_boundary_decides_what_a_run_may_shift(tmp_path, name, boundary, allowed):
    (tmp_path / "in").mkdir()
    write_gas(tmp_path / "in" / name)
    _, schema = samples(tmp_path / "out", source(tmp_path / "in", boundary=boundary))
    assert schema.allowed_augmentations == allowed


def test_times_that_were_never_written_are_named(tmp_path):
    """As a simulation leaves them that was stopped."""
    (tmp_path / "in").mkdir()
    write_incompressible(tmp_path / "in" / "ns.h5", written=7)
    report = convert(source(tmp_path / "in"), tmp_path / "out", max_bad_rate=1.0)
    assert [item.name for item in report.bad_items] == [
        f"ns.h5, trajectory {n}, times 6 to 8" for n in ("00000", "00001")
    ]
    assert "pieces of 'velocity' are not in the file" in report.bad_items[0].reason


def test_a_window_with_nan_is_named_and_the_others_are_taken(tmp_path):
    (tmp_path / "in").mkdir()
    write_gas(tmp_path / "in" / PERIODIC)
    with h5py.File(tmp_path / "in" / PERIODIC, "r+") as file:
        file["Vx"][1, 4, 2, 2] = np.nan
    report = convert(source(tmp_path / "in"), tmp_path / "out", max_bad_rate=0.2)
    (bad,) = report.bad_items
    assert bad.name.endswith("trajectory 00001, times 3 to 5") and bad.reason.startswith("1 values of 'Vx' are missing")


def test_a_conversion_that_is_started_again_gives_the_same_bytes(tmp_path):
    for split, num in (("train", 4), ("test", 2)):
        (tmp_path / "in" / split).mkdir(parents=True)
        write_seeds(tmp_path / "in" / split / "a.h5", 2, num)
        write_seeds(tmp_path / "in" / split / "b.h5", 2, num)
    made = functools.partial(source, tmp_path / "in", trajectories_per_shard=4)
    convert(made(), tmp_path / "whole")
    convert(made(), tmp_path / "again")
    (tmp_path / "again" / "train" / "train-000001.tar").unlink()
    (tmp_path / "again" / "train" / "manifest.json").unlink()
    (tmp_path / "again" / "train" / ".train-000001.tar.0123abcd.partial").write_bytes(b"half a shard")
    report = convert(made(), tmp_path / "again", num_processes=2)
    assert (report.num_written, report.num_reused) == (1, 2) and files(tmp_path / "again") == files(tmp_path / "whole")
    write_seeds(tmp_path / "in" / "train" / "b.h5", 2, 4)
    report = convert(made(), tmp_path / "again")
    assert report.rewritten == {"their inputs changed": 1}
    convert(made(), tmp_path / "anew")
    assert files(tmp_path / "again") == files(tmp_path / "anew")


def test_a_trajectorys_windows_stay_in_one_split(tmp_path):
    (tmp_path / "in").mkdir()
    write_seeds(tmp_path / "in" / "a.h5", 1, 40)
    made = source(tmp_path / "in", valid_fraction=0.3, test_fraction=0.3)
    tasks = made.plan()
    items = [item[1] for task in tasks for item in task.items]
    assert sorted(items) == [f"{n:04d}" for n in range(40)] and {task.split for task in tasks} == {
        "train",
        "valid",
        "test",
    }
    assert made.independent("train") == "key_prefix"


def gas_of(*shape):
    def write(file):
        for name in ("density", "pressure", "Vx"):
            file[name] = values(*shape)

    return write


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (gas_of(2, 9, 12), {}, r"its 'density' has shape \(2, 9, 12\); of compressible flow, \(N, T, X, Y\)"),
        (gas_of(2, 9, 4, 4, 4), {}, r"of compressible flow, \(N, T, X, Y\) in two dimensions"),
        (gas_of(2, 9, 4, 4), {}, "it has no 'Vy', only Vx, density, pressure"),
        (
            lambda file: file.update({"tensor": values(4, 9, 12)}),
            {},
            "of an equation in one dimension, or of Darcy flow",
        ),
        (lambda file: file.update({"0000/data": values(9, 12, 1)}), {}, r"its 0000/data has shape \(9, 12, 1\)"),
        (
            lambda file: file.update({"frames": values(9, 2, 4, 4)}),
            {},
            "it holds frames, which no two-dimensional file",
        ),
        (lambda file: None, {}, "it holds nothing, which no"),
        (
            lambda file: file.update({"0000/data": values(9, 4, 4, 1)}),
            {"num_frames": 10},
            "9 times are fewer than the 10",
        ),
        (
            lambda file: file.update({"velocity": values(2, 9, 4, 4, 2)}),
            {"fields": ("vorticity",)},
            "--fields names 'vorticity', a file of incompressible has velocity, particles, force",
        ),
        (
            lambda file: file.update({"velocity": values(2, 9, 4, 4, 2)}),
            {"fields": ("force",)},
            "--fields force has no axis of time",
        ),
    ],
)
def test_any_other_file_is_refused_in_one_line(tmp_path, write, options, message):
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "x.h5", "w") as file:
        write(file)
    with pytest.raises(ValueError, match=message) as caught:
        convert(source(tmp_path / "in", **options), tmp_path / "out", max_bad_rate=0.0)
    assert "\n" not in str(caught.value)
