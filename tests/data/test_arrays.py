"""Own data in every accepted kind of file comes back as it was."""

import av
import h5py
import numpy as np
import pytest
from test_video import moving, write_video

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.arrays import ArraysSource, ArraysSourceConfig, find_layout

RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((3, 7, 2, 6, 5)).astype(np.float32)
ACTIONS = RNG.standard_normal((3, 7, 4)).astype(np.float32)


def write(folder, kind):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cube.{kind}"
    if kind == "npy":
        np.save(path, FRAMES)
    elif kind == "npz":
        np.savez(path, frames=FRAMES, actions=ACTIONS)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["frames"], file["actions"] = FRAMES, ACTIONS
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr", reason="zarr is an extra: pip install dydiff_dist[zarr]")
        group = zarr.open_group(str(path), mode="w")
        group.create_array("frames", data=FRAMES)
        group.create_array("actions", data=ACTIONS)


def source(root, **options):
    settings = {"num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0, **options}
    return ArraysSource(ArraysSourceConfig(root=str(root), **settings))


def samples(folder):
    shards = ShardSet.open(folder)
    return [shards.read(shards.address(number)) for number in range(len(shards))]


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "zarr"])
def test_windows_of_every_kind_of_file(tmp_path, kind):
    write(tmp_path / "in", kind)
    convert(source(tmp_path / "in", window_step=2), tmp_path / "out")
    found = samples(tmp_path / "out" / "train")
    expected = [(number, start) for number in range(3) for start in (0, 2, 4)]
    assert [sample.key for sample in found] == [f"cube-{number:05d}-{start:05d}" for number, start in expected]
    for sample, (number, start) in zip(found, expected, strict=True):
        assert np.array_equal(sample.frames, FRAMES[number, start : start + 3])
        if kind != "npy":
            assert np.array_equal(sample.actions[1:], ACTIONS[number, start + 1 : start + 3])
            assert not sample.actions[0].any()


def test_video_files_give_rgb_frames(tmp_path):
    (tmp_path / "in").mkdir()
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[..., 0], frames[..., 2] = 200, 40
    with av.open(str(tmp_path / "in" / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    convert(source(tmp_path / "in"), tmp_path / "out")
    found = samples(tmp_path / "out" / "train")
    assert len(found) == 2 and found[0].frames.shape == (3, 3, 32, 48)
    # 6: loss of the colour conversion and of the codec on a flat colour.
    assert np.abs(found[1].frames[:, :, 16, 24].astype(int) - [200, 0, 40]).max() <= 6


def test_channels_last_folders_as_splits_and_types(tmp_path):
    for split, dtype in (("train", "<f8"), ("test", ">f8")):
        (tmp_path / "in" / split).mkdir(parents=True)
        np.save(tmp_path / "in" / split / "a.npy", FRAMES[0].transpose(0, 2, 3, 1).astype(dtype))
    convert(source(tmp_path / "in", layout="channels_last", vector_channels=(0, 1), allow=("flip",)), tmp_path / "out")
    (first, second) = samples(tmp_path / "out" / "test")
    assert np.array_equal(first.frames, FRAMES[0, :3]) and np.array_equal(second.frames, FRAMES[0, 3:6])
    schema = ShardSet.open(tmp_path / "out" / "train").schema
    assert schema.vector_channels == (0, 1) and schema.allowed_augmentations == ("flip",) and schema.dtype == "float32"


def test_bad_files_are_named(tmp_path):
    write(tmp_path / "in", "npy")
    (tmp_path / "in" / "broken.npy").write_bytes(b"not npy")
    np.save(tmp_path / "in" / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "in" / "complex.npy", np.zeros((4, 1, 2, 2), complex))
    np.save(tmp_path / "in" / "nan.npy", np.full((4, 2, 6, 5), np.nan, np.float32))
    np.save(tmp_path / "in" / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    report = convert(source(tmp_path / "in"), tmp_path / "out")
    reasons = {item.name: item.reason for item in report.bad_items}
    assert set(reasons) == {"broken.npy", "flat.npy", "complex.npy", "nan.npy", "objects.npy"}
    assert "2 axes" in reasons["flat.npy"] and "complex128 cannot be stored" in reasons["complex.npy"]


def h5(path, frames, name="frames", **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=frames, chunks=(1, *frames.shape[1:])).attrs.update(attributes)


def rejected(root, out, **options):
    report = convert(source(root, **options), out, max_bad_rate=1.0)
    return report, {item.name: item.reason for item in report.bad_items}


PACKED = RNG.integers(-3000, 3000, (4, 3, 1, 6, 8)).astype(np.int16)
CF = {"scale_factor": 0.01, "add_offset": 280.0, "_FillValue": np.int16(-32768), "units": "K"}


def write_packed(path, packed, kind):
    if kind == "zarr":
        zarr = pytest.importorskip("zarr", reason="zarr is an extra: pip install dydiff_dist[zarr]")
        group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w", zarr_format=2)
        array = group.create_array("frames", data=packed, chunks=(1, *packed.shape[1:]))
        array.attrs.update({**CF, "_FillValue": -32768})
    else:
        h5(path.with_suffix(f".{kind}"), packed, **CF)


@pytest.mark.parametrize("layout", ["channels_first", "no_channels"])
def test_a_mask_is_filled_in_every_window_that_has_it_throughout(tmp_path, layout):
    """Of windows that overlap, each for itself: what one fills is no value to another."""
    frames = RNG.standard_normal((5, 1, 6, 8)).astype(np.float32)
    frames[:, 0, 2] = frames[4, 0, 4, 5] = np.nan
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "sea.npy", frames if layout == "channels_first" else frames[:, 0])
    options = {"layout": layout, "window_step": 1}
    _, reasons = rejected(tmp_path / "in", tmp_path / "out", **options, fill=(-1.5,))
    assert reasons == {"sea.npy": "frames 2 to 4: 1 of 144 values are missing, NaN or infinite"}
    found = samples(tmp_path / "out" / "train")
    expected = np.where(np.isnan(frames), np.float32(-1.5), frames)
    assert [np.array_equal(sample.frames, expected[start : start + 3]) for start, sample in enumerate(found)] == [1, 1]
    with pytest.raises(ValueError, match=r"24 of 144 values .*, 8 pixels in all .*--fill VALUE"):
        convert(source(tmp_path / "in", **options), tmp_path / "none", max_bad_rate=0.0)


@pytest.mark.parametrize("kind", ["h5", "nc", "zarr"])
def test_packed_values_are_unpacked_and_windows_with_gaps_are_rejected(tmp_path, kind):
    packed = PACKED.copy()
    packed[2, 1, 0, :2, :2] = -32768
    (tmp_path / "in").mkdir()
    write_packed(tmp_path / "in" / "t2m", packed, kind)
    _, reasons = rejected(tmp_path / "in", tmp_path / "out")
    assert reasons == {f"t2m.{kind}, trajectory 2": "frames 0 to 2: 4 of 144 values are missing, NaN or infinite"}
    found = samples(tmp_path / "out" / "train")
    assert [sample.frames.dtype for sample in found] == [np.float32] * 3
    np.testing.assert_allclose(found[0].frames, 280 + 0.01 * PACKED[0].astype(np.float64), rtol=1e-7)
    assert ShardSet.open(tmp_path / "out" / "train").schema.units == "K"
    convert(source(tmp_path / "in", packing="stored"), tmp_path / "stored")
    assert np.array_equal(samples(tmp_path / "stored" / "train")[2].frames, packed[2])


def test_attributes_that_may_change_values_are_not_passed_over(tmp_path):
    h5(tmp_path / "in" / "a.h5", FRAMES)
    h5(tmp_path / "in" / "b.h5", FRAMES, gain=2.0)
    _, reasons = rejected(tmp_path / "in", tmp_path / "out")
    assert "an attribute 'gain' may change its values" in reasons["b.h5, trajectory 0"]
    assert len(reasons) == 3 and len(samples(tmp_path / "out" / "train")) == 6


def test_data_in_other_units_are_not_mixed(tmp_path):
    h5(tmp_path / "in" / "train" / "a.h5", FRAMES, units="K")
    h5(tmp_path / "in" / "test" / "b.h5", FRAMES, units="degC")
    with pytest.raises(ValueError, match=r"'test' .* has units degC, not K as 'train'"):
        convert(source(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5"])
def test_chunks_that_are_not_in_the_file_reject_their_windows(tmp_path, kind):
    frames = RNG.standard_normal((2, 6, 1, 6, 8)).astype(np.float32) + 9
    if kind == "h5":
        name = "a.h5"
        (tmp_path / "in").mkdir()
        with h5py.File(tmp_path / "in" / name, "w") as file:  # a simulation that was stopped
            written = file.create_dataset("frames", frames.shape, np.float32, chunks=(1, 3, 1, 6, 8))
            written[0], written[1, :3] = frames[0], frames[1, :3]
    else:
        name = "a.zarr"
        zarr = pytest.importorskip("zarr", reason="zarr is an extra: pip install dydiff_dist[zarr]")
        group = zarr.open_group(str(tmp_path / "in" / name), mode="w", zarr_format=int(kind[-1]))
        group.create_array("frames", data=frames, chunks=(1, 3, 1, 6, 8))
        lost = {"zarr2": "1.1.0.0.0", "zarr3": "c/1/1/0/0/0"}[kind]
        (tmp_path / "in" / name / "frames" / lost).unlink()  # as by a copy that was stopped
    _, reasons = rejected(tmp_path / "in", tmp_path / "out")
    assert set(reasons) == {f"{name}, trajectory 1"} and "chunks of frame 3 are not in the file" in str(reasons)
    assert len(samples(tmp_path / "out" / "train")) == 3
    convert(source(tmp_path / "in", absent_chunks="fill"), tmp_path / "filled")
    assert not samples(tmp_path / "filled" / "train")[3].frames.any()


def test_a_virtual_data_set_without_its_sources_is_named(tmp_path):
    h5(tmp_path / "in" / "a.h5", FRAMES)
    h5(tmp_path / "in" / "part.h5", FRAMES)
    virtual = h5py.VirtualLayout(FRAMES.shape, np.float32)
    virtual[...] = h5py.VirtualSource("part.h5", "frames", FRAMES.shape)
    with h5py.File(tmp_path / "in" / "whole.h5", "w") as file:
        file.create_virtual_dataset("frames", virtual)
    assert not rejected(tmp_path / "in", tmp_path / "out")[1]
    (tmp_path / "in" / "part.h5").unlink()
    reasons = rejected(tmp_path / "in", tmp_path / "again")[1]
    assert "of which part.h5 is missing" in reasons["whole.h5"]


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((100, 3, 64, 64), {}, "channels_first"),  # 100 trajectories of 3 frames would be too short for a sample
        ((20, 64, 64, 3), {}, "channels_last"),
        ((20, 64, 64), {}, "no_channels"),
        ((5, 20, 2, 64, 64), {}, "channels_first"),
        ((5, 20, 64, 64, 2), {}, "channels_last"),
        ((20, 16, 8, 8), {"num_channels": 16}, "channels_first"),
        ((20, 16, 8, 8), {"layout": "channels_first"}, "channels_first"),
        ((12, 16, 16, 16), {"layout": "no_channels"}, "no_channels"),
    ],
)
def test_the_layout_is_told_by_the_shape_or_by_the_user(shape, options, expected):
    assert find_layout(shape, options.get("layout"), 10, options.get("num_channels", 0)) == expected


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((12, 12, 16, 16), None, r"do not show the order.* --layout channels_first .*no_channels \(N, S, H, W\)"),
        ((20, 8, 8, 8), None, "do not show the order of their axes"),
        ((5, 20, 8, 8, 8), None, r"say it: --layout channels_first \(N, S, C, H, W\), --layout channels_last"),
        ((20, 64), None, r"frames have 2 axes; \(S, C, H, W\)"),
        ((5, 20, 2, 64, 64), "no_channels", "do not have the axes of --layout no_channels; they may be"),
    ],
)
def test_a_layout_that_cannot_be_told_is_refused_with_what_decides(shape, layout, message):
    with pytest.raises(ValueError, match=message):
        find_layout(shape, layout, 10)


def test_grey_videos_without_a_channel_axis(tmp_path):
    (tmp_path / "in").mkdir()
    frames = RNG.integers(0, 256, (12, 8, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "in" / "x.npy", frames)
    with pytest.raises(ValueError, match=r"all of its inputs were rejected.* say it: --layout"):
        convert(source(tmp_path / "in", num_frames=8), tmp_path / "out")
    convert(source(tmp_path / "in", num_frames=8, layout="no_channels"), tmp_path / "out")
    found = samples(tmp_path / "out" / "train")
    assert len(found) == 12 and np.array_equal(found[3].frames[:, 0], frames[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("u", "v", "w")}, "--channels names 3, frames .* have 2 as channels_first"),
        ({"vector_channels": (1, 2)}, "--vector-channels are .* have 2 channels"),
    ],
)
def test_what_the_user_said_is_held_against_the_shape(tmp_path, options, message):
    write(tmp_path / "in", "npy")
    with pytest.raises(ValueError, match=message):
        convert(source(tmp_path / "in", layout="channels_first", **options), tmp_path / "out")


@pytest.mark.parametrize("options", [{"channels": ("grey",)}, {"vector_channels": (2, 3)}])
def test_what_the_user_said_of_videos_is_held_against_their_colours(tmp_path, options):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", moving(3))
    with pytest.raises(ValueError, match=r"--(channels|vector-channels) .* have 3 (channels )?as a video"):
        convert(source(tmp_path / "in", **options), tmp_path / "out")


def test_frames_of_another_name_and_files_that_hold_none(tmp_path):
    h5(tmp_path / "in" / "a.h5", FRAMES, name="fields/velocity")
    h5(tmp_path / "in" / "b.h5", FRAMES)
    with h5py.File(tmp_path / "in" / "c.h5", "w") as file:
        file["fields/velocity/0000"] = FRAMES[0, 0]
    _, reasons = rejected(tmp_path / "in", tmp_path / "out", frames_name="fields/velocity")
    assert reasons == {
        "b.h5": "it has no array 'fields/velocity', only frames; say which holds the frames with --frames-name",
        "c.h5": "'fields/velocity' is a group of 0000, not an array",
    }
    assert len(samples(tmp_path / "out" / "train")) == 6


def test_a_zarr_store_of_one_array_is_the_frames(tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is an extra: pip install dydiff_dist[zarr]")
    (tmp_path / "in").mkdir()
    zarr.create_array(str(tmp_path / "in" / "a.ZARR"), data=FRAMES, chunks=(1, 7, 2, 6, 5))
    convert(source(tmp_path / "in"), tmp_path / "out")
    assert np.array_equal(samples(tmp_path / "out" / "train")[0].frames, FRAMES[0, :3])


def test_a_file_of_one_array_has_no_actions_whatever_they_are_called(tmp_path):
    write(tmp_path / "in", "npy")
    report = convert(source(tmp_path / "in", actions_name="moves"), tmp_path / "out")
    assert not report.bad_items and samples(tmp_path / "out" / "train")[0].actions is None


def test_names_of_any_kind_give_shards_that_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    names = ["Überflug_1.npy", "x" * 180 + ".npy", "run 1 (2).npy", "飛行.NPY", "a.npy", "a.npz", "a-00000.npy"]
    for number, name in enumerate(names):
        with open(tmp_path / "in" / name, "wb") as file:
            frames = FRAMES[0, :3] + number
            np.savez(file, frames=frames) if name.endswith("npz") else np.save(file, frames)
    np.save(tmp_path / "in" / "a0.npy", FRAMES[:1, :3])
    report = convert(source(tmp_path / "in"), tmp_path / "out")
    found = samples(tmp_path / "out" / "train")
    assert not report.bad_items and len({sample.key for sample in found}) == len(names) + 1


def test_what_is_not_read_is_named_last(tmp_path):
    write(tmp_path / "in" / "Train", "npy")
    write(tmp_path / "elsewhere", "npy")
    (tmp_path / "in" / "validation").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "extra").mkdir()
    write(tmp_path / "in" / "extra", "npy")
    (tmp_path / "in" / "README").write_text("how these were made")
    report = convert(source(tmp_path / "in"), tmp_path / "out")
    assert set(report.manifests) == {"train", "valid"}
    assert report.describe()[-3:] == [
        f"no test split: there is no folder test/ with files under {tmp_path / 'in'}",
        "not read: 1 (README): files without ending are not read",
        "not read: 1 (extra/cube.npy): it lies beside the folders of the splits (train, valid, test)",
    ]


def test_a_fraction_that_chooses_nothing_is_reported(tmp_path):
    write(tmp_path / "in", "npy")
    report = convert(source(tmp_path / "in", test_fraction=1e-9), tmp_path / "out")
    assert "--test-fraction 1e-09 chose no trajectory; give more" in report.missing_splits["test"]


def test_an_array_of_no_trajectory_is_named(tmp_path):
    write(tmp_path / "in", "npy")
    np.save(tmp_path / "in" / "none.npy", FRAMES[:0])
    assert rejected(tmp_path / "in", tmp_path / "out")[1] == {"none.npy": "it holds no trajectory"}


def test_videos_of_other_rates_are_refused_or_brought_to_one(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
    write_video(tmp_path / "in" / "train" / "a.mp4", moving(9), rate=30)
    write_video(tmp_path / "in" / "test" / "b.MP4", moving(3), rate=10)
    with pytest.raises(ValueError, match=r"has frames_per_sec 10.0, not 30.0 as .*--fps brings videos to one rate"):
        convert(source(tmp_path / "in"), tmp_path / "out")
    convert(source(tmp_path / "in", fps=10.0), tmp_path / "out")
    schema = ShardSet.open(tmp_path / "out" / "train").schema
    assert schema.frames_per_sec == 10 and schema.is_rgb and len(samples(tmp_path / "out" / "test")) == 1


def test_windows_of_a_trajectory_are_not_independent(tmp_path):
    write(tmp_path / "in", "npy")
    convert(source(tmp_path / "in", window_step=2), tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "train")
    keys = [shards.key(shards.address(number)) for number in range(len(shards))]
    assert shards.manifest.independent == "key_prefix" and len({key.rpartition("-")[0] for key in keys}) == 3
