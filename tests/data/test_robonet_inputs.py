"""RoboNet files as people have them: aborted, damaged, held by a writer, behind links; what is odd is named."""

import fcntl
import re

import h5py
import numpy as np
import pytest
from test_converters import robonet, write_trajectory
from test_video import noise, write_video

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.files import file_sha256


@pytest.fixture
def trajectories(tmp_path):
    """Three good files; the tests break the second."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_trajectory(tmp_path / "in" / f"{name}.hdf5", cameras=(0, 1))
    return tmp_path


def replace(path, name, value):
    with h5py.File(path, "r+") as data:
        del data[name]
        if value is not None:
            data[name] = value


def cut_jpg(path):
    with h5py.File(path, "r+") as data:
        stored = data["env/cam0_video/frame2"][()]
        del data["env/cam0_video/frame2"]
        data["env/cam0_video/frame2"] = stored[: len(stored) // 2]


def put_video(path, tmp_path, share=1.0):
    """An mp4 stream of 4 frames in place of the pictures, or its first part."""
    write_video(tmp_path / "a.mp4", noise(4), options={"movflags": "faststart"})
    data = (tmp_path / "a.mp4").read_bytes()
    with h5py.File(path, "r+") as file:
        del file["env/cam0_video"]
        file["env/cam0_video/frames"] = np.frombuffer(data[: int(share * len(data))], np.uint8)


def with_video_group(path):
    with h5py.File(path, "r+") as data:
        del data["env/cam0_video"]
        data.create_group("env/cam0_video/frames/part")


ODD = {
    "empty actions": (lambda p: replace(p, "policy/actions", np.zeros(0)), r"policy/actions has shape \(0,\)"),
    "no times": (lambda p: replace(p, "policy/actions", np.zeros((0, 4))), r"policy/actions has shape \(0, 4\)"),
    "null": (lambda p: replace(p, "policy/actions", h5py.Empty("f")), "'policy/actions' holds nothing, not numbers"),
    "words": (lambda p: replace(p, "policy/actions", ["left"] * 3), "'policy/actions' holds object, not numbers"),
    "flat states": (lambda p: replace(p, "env/state", np.zeros(4)), r"env/state has shape \(4,\)"),
    "NaN actions": (
        lambda p: replace(p, "policy/actions", np.full((3, 4), np.nan)),
        "12 of 16 actions are missing, NaN or infinite, the first at frame 1",
    ),
    "NaN states": (lambda p: replace(p, "env/state", np.full((4, 5), np.inf)), "20 of 20 states are missing, NaN"),
    "no metadata": (lambda p: replace(p, "metadata", None), "it has no 'metadata', only env, policy"),
    "no states": (lambda p: replace(p, "env/state", None), "it has no 'env/state'"),
    "no env": (lambda p: replace(p, "env", None), "it has no 'env/state', only metadata, policy"),
    "half a picture": (cut_jpg, "frame 2 cannot be decoded: .*[Tt]runcated"),
    "a lost picture": (lambda p: replace(p, "env/cam0_video/frame2", None), "it has no 'frame2', only frame0, frame1"),
    "a group of frames": (with_video_group, "'frames' is a group, not an array"),
    "raw frames": (
        lambda p: replace(p, "env/cam0_video", np.zeros((4, 24, 32, 3), np.uint8)),
        r"env/cam0_video is an array of shape \(4, 24, 32, 3\), not a group of encoded frames",
    ),
    "half a file": (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "it is cut off"),
    "no HDF5": (lambda p: p.write_bytes(b"<html>"), "it is no HDF5 file"),
    "empty": (lambda p: p.write_bytes(b""), "it is no HDF5 file|cut off"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_rejected_by_name_and_the_others_are_read(trajectories, kind):
    change, message = ODD[kind]
    change(trajectories / "in" / "b.hdf5")
    report = convert(robonet(trajectories), trajectories / "out", max_bad_rate=0.5)
    (item,) = report.bad_items
    assert item.name.startswith("b.hdf5") and "\n" not in item.reason
    assert re.search(message, item.reason), item.reason
    assert len(ShardSet.open(trajectories / "out" / "train")) == 2


def test_a_file_that_another_process_writes_to_is_named(trajectories):
    with open(trajectories / "in" / "b.hdf5", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does in another process
        report = convert(robonet(trajectories), trajectories / "out", max_bad_rate=0.5)
    assert [item.reason for item in report.bad_items] == [
        "a process holds it open for writing; wait until it has closed it"
    ]


def test_a_video_that_is_cut_off_is_named(trajectories):
    put_video(trajectories / "in" / "a.hdf5", trajectories)
    put_video(trajectories / "in" / "b.hdf5", trajectories, share=0.7)
    report = convert(robonet(trajectories), trajectories / "out", max_bad_rate=0.5)
    assert [(item.name, "cut off" in item.reason) for item in report.bad_items] == [("b.hdf5", True)]


def test_what_several_cameras_saw_is_one_trajectory(trajectories):
    report = convert(robonet(trajectories, cameras=(0, 1), num_frames=2), trajectories / "out")
    shards = ShardSet.open(trajectories / "out" / "train")
    keys = [shards.key(shards.address(number)) for number in range(len(shards))]
    assert report.left_out == {} and keys[:4] == ["a-00_cam0", "a-01_cam0", "a-00_cam1", "a-01_cam1"]
    assert shards.manifest.independent == "key_prefix"
    assert {key.rpartition("-")[0] for key in keys} == {"a", "b", "c"}


def test_linked_folders_other_endings_and_odd_names_are_found(trajectories):
    store = trajectories / "store"
    store.mkdir()
    for name in ("d.HDF5", "e.h5", "Greifer 2.1 é.hdf5"):
        write_trajectory(store / name)
    (trajectories / "in" / "there").symlink_to(store)
    report = convert(robonet(trajectories), trajectories / "out")
    shards = ShardSet.open(trajectories / "out" / "train")
    assert len(shards) == 6 and not report.bad_items and not report.not_read


def test_bytes_in_attributes_are_text(trajectories):
    with h5py.File(trajectories / "in" / "a.hdf5", "r+") as data:
        data["metadata"].attrs["robot"] = np.bytes_("baxter")
        for item in data["env/cam0_video"].values():
            item.attrs["image_format"] = np.bytes_("BGR")
    report = convert(robonet(trajectories, where=("robot=baxter", "image_format=RGB,BGR")), trajectories / "out")
    shards = ShardSet.open(trajectories / "out" / "train")
    first = shards.read(shards.address(0)).frames[3, :, 6, 8].astype(int)
    assert not report.bad_items and np.abs(first - [30, 100, 200]).max() <= 4  # loss of jpg on a flat colour


def test_an_array_of_bytes_is_no_picture(trajectories):
    replace(trajectories / "in" / "b.hdf5", "env/cam0_video/frame1", np.frombuffer(b"text", np.uint8))
    report = convert(robonet(trajectories), trajectories / "out", max_bad_rate=0.5)
    assert report.bad_items[0].reason.startswith("frame 1 cannot be decoded")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_that_windows_wrote_name_their_first_file_too(trajectories, encoding):
    """A byte order mark would else hide the first name, and put a test trajectory among the training ones."""
    (trajectories / "test.txt").write_bytes("b.hdf5\r\n".encode(encoding))
    files = sorted((trajectories / "in").iterdir())
    sums = "".join(f"{file_sha256(file)}  {file.name}\r\n" for file in files)
    (trajectories / "sums.txt").write_bytes(sums.encode(encoding))
    lists = {"test_list": str(trajectories / "test.txt"), "hashes": str(trajectories / "sums.txt")}
    report = convert(robonet(trajectories, **lists), trajectories / "out")
    assert not report.bad_items and len(ShardSet.open(trajectories / "out" / "test")) == 1
