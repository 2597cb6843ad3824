"""Own data in every accepted kind of file comes back as it was."""

import av
import h5py
import numpy as np
import pytest

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.arrays import ArraysSource, ArraysSourceConfig

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
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        np.save(tmp_path / "in" / split / "a.npy", FRAMES[0].transpose(0, 2, 3, 1).astype(np.float64))
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
