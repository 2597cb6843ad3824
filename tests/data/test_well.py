"""The Well's layout: fields of every kind read back value for value, axes, planes, splits and normalisation."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from catalogue_inputs import write_well, write_well_file
from test_all_options import files

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.well import WellSource, WellSourceConfig

ALL = ("density", "mask", "forcing", "inflow", "velocity", "wind", "D")


def source(root: Path, **options: object) -> WellSource:
    return WellSource(WellSourceConfig(root=str(root), **{"num_frames": 3, **options}))


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Frames by key."""
    shards = ShardSet.open(folder, check="sha256")
    return {sample.key: sample.frames for sample in map(shards.read, map(shards.address, range(len(shards))))}


@pytest.mark.parametrize("drop_axes", [True, False])
@pytest.mark.parametrize("flat_tensors", [True, False])
def test_fields_of_every_order_and_axis_come_back_value_for_value(tmp_path, drop_axes, flat_tensors):
    for split in ("train", "valid", "test"):
        path = tmp_path / "flow" / "data" / split / f"{split}.hdf5"
        whole = write_well_file(path, drop_axes=drop_axes, flat_tensors=flat_tensors, seed=len(split))
        if split == "train":
            expected = np.concatenate([whole[name] for name in ALL], axis=-1)
    report = convert(source(tmp_path / "flow", fields=ALL, window_step=2), tmp_path / "out")
    assert set(report.manifests) == {"train", "valid", "test"} and not report.bad_items
    found = stored(tmp_path / "out" / "train")
    assert list(found) == [f"train-train-{n:04d}-{start:05d}" for n in range(2) for start in (0, 2, 4)]
    for key, frames in found.items():
        number, start = map(int, key.split("-")[2:])
        assert np.array_equal(frames, expected[number, start : start + 3].transpose(0, 3, 1, 2))
    schema = ShardSet.open(tmp_path / "out" / "train").schema
    components = ("velocity_x", "velocity_y", "wind_x", "wind_y", "D_xx", "D_xy", "D_yx", "D_yy")
    assert schema.channels == (*ALL[:4], *components) and schema.vector_channels == (5, 4)
    assert schema.allowed_augmentations == ("periodic_shift",) and schema.dtype == "float32"


def test_fields_that_vary_in_time_are_taken_unless_others_are_named(tmp_path):
    write_well(tmp_path, count=1)
    made = source(tmp_path)
    assert "density, forcing, inflow, velocity_x" in made.summary(made.plan())[0] and "mask" not in made._channels()
    made = source(tmp_path, fields=("velocity", "mask"))
    assert "velocity_x, velocity_y, mask (mask repeated in time)" in made.summary(made.plan())[0]


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_planes_of_three_dimensions_come_back_value_for_value(tmp_path, axis):
    write_well(tmp_path / "box", count=1, sizes=(4, 5, 6))
    whole = write_well_file(tmp_path / "box" / "data" / "train" / "run_00.hdf5", sizes=(4, 5, 6), seed=9)
    boxes = np.concatenate([whole[name] for name in ALL], axis=-1)
    convert(source(tmp_path / "box", fields=ALL, slice_axis=axis, slice_index=(1, 3)), tmp_path / "out")
    found = stored(tmp_path / "out" / "train")
    assert list(found)[:3] == [
        f"train-run_00-0000-{place}" for place in (f"00000_{axis}1", f"00000_{axis}3", f"00003_{axis}1")
    ]
    manifest = ShardSet.open(tmp_path / "out" / "train").manifest
    assert manifest.independent == "key_prefix" and len(found) == 2 * 2 * 2
    for key, frames in found.items():
        _, _, number, rest = key.split("-")
        start, plane = int(rest[:5]), int(rest[-1])
        expected = boxes[int(number), start : start + 3].take(plane, 1 + "xyz".index(axis))
        assert np.array_equal(frames, expected.transpose(0, 3, 1, 2))
    along_h, along_w = [name for name in "xyz" if name != axis]
    channels = manifest.frames.channels
    assert [channels[n] for n in manifest.frames.vector_channels] == [f"velocity_{along_w}", f"velocity_{along_h}"]


@pytest.mark.parametrize(
    ("boundaries", "allowed"),
    [
        ({"x": "PERIODIC", "y": "PERIODIC"}, ("periodic_shift",)),
        ({"x": "periodic", "y": "WALL"}, ("periodic_shift_h",)),
        ({"x": "OPEN", "y": "PERIODIC"}, ("periodic_shift_w",)),
        ({"x": "WALL", "y": "OPEN"}, ()),
        ({"x": "PERIODIC"}, ("periodic_shift_h",)),
    ],
)
def test_periodic_axes_become_the_allowed_shifts(tmp_path, boundaries, allowed):
    write_well(tmp_path, count=1, boundaries=boundaries)
    made = source(tmp_path)
    (sample, *_) = made.read(made.plan()[0])
    assert made.schema(sample).allowed_augmentations == allowed


def test_a_wall_on_a_periodic_axis_takes_its_shift_away(tmp_path):
    write_well(tmp_path, count=1)
    for path in tmp_path.rglob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            inner = file.create_group("boundary_conditions/obstacle")
            inner.attrs.update(associated_dims=["x", "y"], bc_type="WALL")
    made = source(tmp_path)
    (sample, *_) = made.read(made.plan()[0])
    assert made.schema(sample).allowed_augmentations == ()


STATS = """
mean:
  density: 3.4847E+01
  velocity:
  - 6.1707E-03
  - -2.4651E-02
  D:
  - - 1.0
    - 2.0
  - - 3.0
    - 4.0
std:
  density: 4.4284E+01
  velocity:
  - 4.1764E-02
  - 1.0E-06
  D:
  - - 5.0
    - 6.0
  - - 7.0
    - 8.0
"""


def test_normalisation_is_that_of_the_published_statistics_or_measured(tmp_path):
    write_well(tmp_path / "flow", count=2)
    (tmp_path / "flow" / "stats.yaml").write_text(STATS)
    fields = ("velocity", "density", "D")
    convert(source(tmp_path / "flow", fields=fields, normalisation="stats"), tmp_path / "stats")
    manifest = ShardSet.open(tmp_path / "stats" / "test").manifest
    assert manifest.shift == (6.1707e-03, -2.4651e-02, 34.847, 1.0, 2.0, 3.0, 4.0)
    assert manifest.scale == (4.1764e-02, 1e-4, 44.284, 5.0, 6.0, 7.0, 8.0)  # 1e-4: the least, as in The Well's loader
    convert(source(tmp_path / "flow", fields=fields), tmp_path / "measured")
    frames = np.stack(list(stored(tmp_path / "measured" / "train").values())).astype(np.float64)
    np.testing.assert_allclose(ShardSet.open(tmp_path / "measured" / "test").manifest.shift, frames.mean((0, 1, 3, 4)))
    with pytest.raises(ValueError, match="it has no 'inflow'; mend it, or give --normalisation standard"):
        source(tmp_path / "flow", fields=("inflow",), normalisation="stats").plan()
    (tmp_path / "flow" / "stats.yaml").write_text("mean: [")
    with pytest.raises(ValueError, match=r"stats.yaml: .*--normalisation standard") as caught:
        source(tmp_path / "flow", normalisation="stats").plan()
    assert "\n" not in str(caught.value)
    (tmp_path / "flow" / "stats.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"stats.yaml does not exist"):
        source(tmp_path / "flow", normalisation="stats").plan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ("speed",)}, "--fields speed is not in flow, which has density, mask, forcing"),
        ({"slice_axis": "x", "slice_index": (1,)}, "flow has two dimensions; leave out --slice-axis"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, options, message):
    write_well(tmp_path, count=1)
    with pytest.raises(ValueError, match=message):
        source(tmp_path, **options).plan()


@pytest.mark.parametrize("options", [{}, {"slice_axis": "y", "slice_index": (5,)}, {"slice_axis": "t"}])
def test_planes_must_be_named_and_be_there(tmp_path, options):
    write_well(tmp_path, count=1, sizes=(4, 5, 6))
    advice = re.escape("axes are x of 4, y of 5, z of 6 points; for example --slice-axis z --slice-index 3")
    with pytest.raises(ValueError, match=advice):
        source(tmp_path, **options).plan()


def test_what_is_wrong_with_a_file_is_named_and_the_others_go_on(tmp_path):
    write_well(tmp_path / "flow", count=22)
    train = tmp_path / "flow" / "data" / "train"
    (train / "run_03.hdf5").write_bytes(b"no hdf5")
    write_well_file(train / "run_05.hdf5", sizes=(6, 4))
    with h5py.File(train / "run_07.hdf5", "r+") as file:
        del file["t0_fields/density"]
    with h5py.File(train / "run_08.hdf5", "r+") as file:
        del file["t1_fields/velocity"]
        velocity = file["t1_fields"].create_dataset("velocity", (1, 7, 6, 8, 2), "f4", chunks=(1, 2, 6, 8, 2))
        velocity[:, :4], velocity[:, 6:] = 1.0, 1.0
        velocity.attrs.update(dim_varying=[True, True], sample_varying=True, time_varying=True)
    write_well_file(train / "run_09.hdf5", num_steps=2)
    report = convert(source(tmp_path / "flow", fields=("density", "velocity")), tmp_path / "out", max_bad_rate=0.2)
    reasons = {item.name: item.reason for item in report.bad_items}
    assert reasons == {
        "train/run_03.hdf5": "it is no HDF5 file; fetch it again",
        "train/run_05.hdf5": "sizes (6, 4), not (6, 8) as in train/run_00.hdf5",
        "train/run_07.hdf5": "it has no 'density', only forcing, inflow, mask",
        "train/run_08.hdf5, trajectory 0, step 3": "chunks of step 4 are not there",
    }
    assert report.left_out == {"trajectories of fewer steps than --num-frames": 2}


def test_a_restart_writes_the_same_bytes_and_a_changed_file_its_shard_anew(tmp_path):
    write_well(tmp_path / "flow", count=5)
    made = source(tmp_path / "flow", trajectories_per_shard=2)
    convert(made, tmp_path / "a")
    convert(made, tmp_path / "b")
    (tmp_path / "b" / "train" / "train-000001.tar").unlink()
    report = convert(source(tmp_path / "flow", trajectories_per_shard=2), tmp_path / "b")
    assert (report.num_written, report.num_reused) == (1, 4) and files(tmp_path / "a") == files(tmp_path / "b")
    write_well_file(tmp_path / "flow" / "data" / "train" / "run_02.hdf5", num_trajectories=1, seed=77)
    report = convert(source(tmp_path / "flow", trajectories_per_shard=2), tmp_path / "b")
    assert (report.num_written, report.num_reused) == (1, 4)


def test_samples_are_those_of_the_wells_own_loader(tmp_path):
    """Whose reader takes axes that don't vary as axes of one entry only."""
    data = pytest.importorskip("the_well.data", reason="the_well is not installed")
    for split in ("train", "valid", "test"):
        write_well_file(tmp_path / "data" / split / f"{split}.hdf5", drop_axes=False, seed=len(split))
    theirs = data.WellDataset(path=str(tmp_path), well_split_name="train", n_steps_input=2, n_steps_output=1)
    made = source(tmp_path, window_step=1)
    ours = list(made.read(made.plan()[0]))
    assert len(ours) == len(theirs) == 10
    for sample, their in zip(ours, map(theirs.__getitem__, range(10)), strict=True):
        frames = np.concatenate([their["input_fields"].numpy(), their["output_fields"].numpy()])
        assert np.array_equal(sample.frames, frames.transpose(0, 3, 1, 2))
