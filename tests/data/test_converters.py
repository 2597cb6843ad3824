"""Converters against an independent reading of the same inputs, with plain h5py, av and PIL."""

import csv
import io
import json
import pickle
import tarfile
from datetime import datetime, timedelta

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import Manifest, read_document
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import LeftOut
from dydiff_dist.data.sources.robonet import RobonetSource, RobonetSourceConfig
from dydiff_dist.data.sources.sevir import SevirSource, SevirSourceConfig
from dydiff_dist.data.sources.sevir_values import vil_to_kg_per_m2
from dydiff_dist.data.sources.turbulence import TurbulenceSource, TurbulenceSourceConfig
from dydiff_dist.data.turbulence_solver import TurbulenceConfig
from dydiff_dist.files import file_sha256


def tar_members(folder):
    """All members of all shards of a folder by name, read with tarfile alone."""
    members = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {info.name: tar.extractfile(info).read() for info in tar}
    return members


def test_sevir_windows_equal_slices_of_the_hdf5(sample_data, tmp_path):
    config = SevirSourceConfig(
        root=str(sample_data / "sevir"),
        window_frames=9,
        window_step=7,
        time_stride=2,
        test_start="2010-08-26T05:00",
        events_per_shard=4,
    )
    convert(SevirSource(config), tmp_path)
    with open(sample_data / "sevir" / "CATALOG.csv") as file:
        events = {row["id"]: row for row in csv.DictReader(file)}
    times = {}
    for split in ("train", "test"):
        members = tar_members(tmp_path / split)
        times[split] = []
        for name in [name for name in members if name.endswith(".frames.npy")]:
            meta = json.loads(members[name.replace("frames.npy", "meta.json")])
            row = events[meta["event"]]
            with h5py.File(sample_data / "sevir" / "data" / row["file_name"]) as data:
                event = data["vil"][int(row["file_index"])]
            expected = np.stack([event[:, :, meta["start"] + 2 * s] for s in range(9)])[:, None]
            assert np.array_equal(np.load(io.BytesIO(members[name])), expected)
            start = datetime.fromisoformat(row["time_utc"]) + timedelta(minutes=-120 + 5 * meta["start"])
            times[split] += [start, start + timedelta(minutes=80)]
    assert max(times["train"]) < datetime(2010, 8, 26, 5) <= min(times["test"])


def test_sevir_downsampling_is_the_mean_of_squares(sample_data, tmp_path):
    config = SevirSourceConfig(root=str(sample_data / "sevir"), downsample=6, window_frames=3, window_step=46)
    convert(SevirSource(config), tmp_path)
    shards = ShardSet.open(tmp_path / "train", check="sha256")
    sample = shards.read(shards.address(0))
    event, start = sample.key.split("-")
    with h5py.File(next((sample_data / "sevir" / "data").rglob("*.h5"))) as data:
        frames = data["vil"][list(data["id"][()]).index(event.encode())]
    expected = frames[6 * 5 : 6 * 6, 6 * 40 : 6 * 41, int(start) + 1].astype(np.float64).mean()
    assert sample.frames.dtype == np.float32 and sample.frames.shape == (3, 1, 64, 64)
    # One float32 rounding of a value below 255.
    assert sample.frames[1, 0, 5, 40] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "nowhere"}, "nowhere/CATALOG.csv does not exist; --root must be the folder"),
        ({"test_start": "2030-01-01"}, "lies wholly in the split 'test'; the events span 2010-08-26T"),
        ({"image_type": "vis"}, "lists 0 events of type 'vis'"),
    ],
)
def test_sevir_user_errors_are_one_line(sample_data, options, message):
    config = SevirSourceConfig(**{"root": str(sample_data / "sevir"), **options})
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        SevirSource(config).plan()
    assert "\n" not in str(caught.value)


def write_catalogue(root, dates):
    """One event of 49 frames of 12x12 random pixels per date."""
    (root / "data" / "vil").mkdir(parents=True)
    rng = np.random.default_rng(0)
    header = "id,file_name,file_index,img_type,time_utc,minute_offsets,size_x,pct_missing"
    offsets = ":".join(str(minutes) for minutes in range(-120, 125, 5))
    with h5py.File(root / "data" / "vil" / "events.h5", "w") as data:
        data["id"] = [f"E{number}".encode() for number in range(len(dates))]
        data["vil"] = rng.integers(0, 255, (len(dates), 12, 12, 49), dtype=np.uint8)
    rows = [f"E{n},vil/events.h5,{n},vil,{date},{offsets},12,0.0" for n, date in enumerate(dates)]
    (root / "CATALOG.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    ("preset", "windows", "side"),
    [("sevir-lr", {"train": 3, "valid": 3, "test": 6}, 4), ("cascast", {"train": 3, "valid": 3, "test": 6}, 12)],
)
def test_sevir_presets_make_the_published_windows(tmp_path, preset, windows, side):
    """CasCast counts 3 windows per event; SEVIR-LR has 25 frames of 10 minutes, windows of 13 at steps of 6."""
    write_catalogue(tmp_path, ["2018-05-01 12:00", "2019-03-01 12:00", "2019-08-01 12:00", "2019-11-01 12:00"])
    source = SevirSource(SevirSourceConfig(root=str(tmp_path), preset=preset))
    convert(source, tmp_path / "out")
    for split, count in windows.items():
        shards = ShardSet.open(tmp_path / "out" / split)
        assert len(shards) == count and shards.schema.shape == (1, side, side)
    assert (shards.manifest.shift, shards.manifest.scale) == ((0.0,), (255.0,))
    assert source.summary(source.plan())[1].startswith("valid: 3 windows of ")


def test_sevir_diffcast_preset_and_an_option_that_overrides_it(tmp_path):
    write_catalogue(tmp_path, ["2018-05-01 12:00", "2019-08-01 12:00", "2019-11-01 12:00"])
    tasks = SevirSource(SevirSourceConfig(root=str(tmp_path), preset="diffcast")).plan()
    assert [(task.split, task.items[0][3]) for task in tasks] == [
        (s, (0, 5, 10, 15, 20)) for s in ("train", "valid", "test")
    ]
    tasks = SevirSource(SevirSourceConfig(root=str(tmp_path), preset="diffcast", window_step=24)).plan()
    assert tasks[0].items[0][3] == (0, 24)


def test_sevir_takes_a_time_zone():
    config = SevirSourceConfig(root="radar", valid_start="2019-01-01T01:00+02:00", test_start="2019-06-01T00:00Z")
    begins = [f"{begin:%Y-%m-%dT%H:%M}" for _, begin, _ in config.intervals()[1:]]
    assert begins == ["2018-12-31T23:00", "2019-06-01T00:00"]


def write_event(root, image_type, data):
    """A catalogue of one event of ``image_type`` and its file, which ``data`` fills."""
    (root / "data" / image_type).mkdir(parents=True)
    header = "id,file_name,file_index,img_type,time_utc,minute_offsets,size_x,pct_missing"
    offsets = ":".join(str(minutes) for minutes in range(-120, 125, 5))
    (root / "CATALOG.csv").write_text(f"{header}\nE,{image_type}/e.h5,0,{image_type},2019-01-01,{offsets},12,\n")
    with h5py.File(root / "data" / image_type / "e.h5", "w") as file:
        for name, values in data.items():
            file[name] = values


def sevir_sample(root, **options):
    """The first window of the only event, with its manifest."""
    source = SevirSource(SevirSourceConfig(root=str(root), window_frames=49, **options))
    convert(source, root / "out")
    shards = ShardSet.open(root / "out" / "train")
    return shards.read(shards.address(0)).frames[:, 0], shards.manifest


@pytest.mark.parametrize(
    ("image_type", "normalisation", "shift_scale"),
    [("ir069", "sevir", (-3683.58, 1174.68)), ("ir107", "sevir", (-1552.8, 2562.43)), ("vis", "unit", (0.0, 1e4))],
)
def test_sevir_other_image_types_are_kept_or_made_physical(tmp_path, image_type, normalisation, shift_scale):
    stored = np.random.default_rng(0).integers(-6000, 4000, (1, 12, 12, 49)).astype(np.int16)
    write_event(tmp_path, image_type, {"id": [b"E"], image_type: stored})
    frames, manifest = sevir_sample(tmp_path, image_type=image_type, normalisation=normalisation)
    assert frames.dtype == np.int16 and np.array_equal(frames, np.moveaxis(stored[0], -1, 0))
    assert (manifest.shift[0], manifest.scale[0]) == shift_scale and manifest.frames.channels == (image_type,)
    source = SevirSource(
        SevirSourceConfig(root=str(tmp_path), window_frames=49, image_type=image_type, values="physical")
    )
    (sample,) = source.read(source.plan()[0])
    factor = 1e-4 if image_type == "vis" else 1e-2
    np.testing.assert_allclose(sample.frames[:, 0], frames * factor, rtol=1e-6)


def test_sevir_liquid_in_physical_units_and_its_logarithm(tmp_path):
    """The published curve at hand-calculated values."""
    stored = np.zeros((1, 12, 12, 49), np.uint8)
    stored[0, 0, :6, :] = np.array([0, 5, 6, 18, 84, 254], np.uint8)[:, None]
    expected = [0, 0, 0.04412, 0.17648, 1.00257, 79.261]
    write_event(tmp_path, "vil", {"id": [b"E"], "vil": stored})
    for values, expect in (("physical", expected), ("log", np.log1p(expected))):
        source = SevirSource(SevirSourceConfig(root=str(tmp_path), window_frames=49, values=values))
        (sample,) = source.read(source.plan()[0])
        np.testing.assert_allclose(sample.frames[7, 0, 0, :6], expect, rtol=1e-4)
        assert sample.frames.dtype == np.float32 and "vil" not in source.schema(sample).channels[0]


def test_the_curve_of_liquid_at_its_break_points():
    """Values by hand from the tutorial's rule; nearly continuous at 18, which settles where its bracket belongs."""
    stored = np.arange(255)
    liquid = vil_to_kg_per_m2(stored.astype(np.uint8))
    np.testing.assert_allclose(
        liquid[[0, 5, 6, 18, 19, 254]], [0, 0, 0.0441209, 0.1764836, 0.1885522, 79.26135], rtol=1e-5
    )
    assert (np.diff(liquid[5:]) > 0).all()
    assert liquid[19] / liquid[18] < 1.1 and liquid[254] / liquid[253] < 1.03


def test_sevir_windows_with_missing_pixels_are_left_out_where_they_have_no_value(tmp_path):
    stored = np.zeros((1, 12, 12, 49), np.uint8)
    stored[0, 3, 3, 30] = 255
    write_event(tmp_path, "vil", {"id": [b"E"], "vil": stored})
    cut = {"root": str(tmp_path), "window_frames": 20, "window_step": 20, "max_pct_missing": 100.0}
    for values, expected in (("stored", [False, False]), ("physical", [False, True]), ("log", [False, True])):
        source = SevirSource(SevirSourceConfig(**cut, values=values))
        assert [isinstance(item, LeftOut) for item in source.read(source.plan()[0])] == expected


def test_sevir_lightning_counts_flashes_in_pixels_and_frames(tmp_path):
    # (seconds, latitude, longitude, x, y)
    flashes = [
        *([-7200, 0, 0, 3.9, 10.1], [-6901, 0, 0, 3.2, 10.7], [-6900, 0, 0, 3, 10], [-9000, 0, 0, 47.9, 0]),
        *([7500, 0, 0, 0, 47], [0, 0, 0, 48, 5], [0, 0, 0, 5, -1]),
    ]
    write_event(tmp_path, "lght", {"id": [b"E"], "E": np.array(flashes, np.float32)})
    frames, manifest = sevir_sample(tmp_path, image_type="lght", normalisation="sevir")
    assert frames.shape == (49, 48, 48) and frames.sum() == 5 and manifest.scale == (0.60517,)
    assert frames[0, 10, 3] == 2 and frames[1, 10, 3] == 1 and frames[0, 0, 47] == 1 and frames[48, 47, 0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_type": "vis", "normalisation": "sevir"}, "normalisation sevir is not defined for vis"),
        ({"values": "log", "image_type": "ir069"}, "values log is of vil and lght"),
        ({"values": "physical", "normalisation": "unit"}, "normalisation unit is of SEVIR's stored values"),
    ],
)
def test_sevir_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SevirSourceConfig(root="-", **options)


def read_trajectory(path):
    """Frames (T, H, W, 3), actions and states of a RoboNet file."""
    with h5py.File(path) as data:
        video = data["env/cam0_video"]
        if data["env"].attrs["cam_encoding"] == "mp4":
            container = av.open(io.BytesIO(video["frames"][:].tobytes()))
            frames = [np.asarray(frame.to_image()) for frame in container.decode(container.streams.video[0])]
        else:
            frames = [np.asarray(Image.open(io.BytesIO(video[f"frame{t}"][:].tobytes()))) for t in range(len(video))]
        return np.stack(frames), data["policy/actions"][:], data["env/state"][:]


@pytest.mark.slow
def test_robonet_frames_actions_and_states_equal_an_independent_reading(sample_data, tmp_path):
    root = sample_data / "robonet" / "hdf5"
    convert(RobonetSource(RobonetSourceConfig(root=str(root), trajectories_per_shard=20)), tmp_path)
    encodings, total = set(), 0
    for split in ("train", "valid", "test"):
        members = tar_members(tmp_path / split)
        for name in [name for name in members if name.endswith(".frames.npy")]:
            key = name.removesuffix(".frames.npy")
            path = root / json.loads(members[f"{key}.meta.json"])["file"]
            frames, actions, states = read_trajectory(path)
            assert np.array_equal(np.load(io.BytesIO(members[name])), frames.transpose(0, 3, 1, 2))
            stored_actions = np.load(io.BytesIO(members[f"{key}.actions.npy"]))
            assert np.array_equal(stored_actions[1:], actions) and not stored_actions[0].any()
            assert np.array_equal(np.load(io.BytesIO(members[f"{key}.states.npy"])), states)
            with h5py.File(path) as data:
                encodings.add(data["env"].attrs["cam_encoding"])
            total += 1
    assert total == 75 and encodings == {"mp4", "jpg"}


def write_trajectory(
    path, num_frames=4, image_format="RGB", num_actions=4, primitives="none", robot="baxter", cameras=(0,)
):
    """A RoboNet file with jpg frames of one flat colour each, for each camera."""
    with h5py.File(path, "w") as data:
        for camera in cameras:
            video = data.create_group(f"env/cam{camera}_video")
            for number in range(num_frames):
                stream = io.BytesIO()
                Image.new("RGB", (32, 24), (200 - 20 * camera, 100, 10 * number)).save(stream, "jpeg", quality=95)
                frame = video.create_dataset(f"frame{number}", data=np.frombuffer(stream.getvalue(), np.uint8))
                frame.attrs["image_format"] = image_format
        data["env/state"] = np.linspace(0, 1, num_frames)[:, None].repeat(5, axis=1).astype(np.float32)
        data["env/low_bound"] = np.full((1, 5), -2.0, np.float32)
        data["env/high_bound"] = np.full((1, 5), 3.0, np.float32)
        data["policy/actions"] = np.ones((num_frames - 1, num_actions), np.float32)
        data.create_group("metadata").attrs.update({"robot": robot, "primitives": primitives})


def robonet(tmp_path, **options):
    settings = {"num_frames": 4, "size": (12, 16), "test_fraction": 0.0, "valid_fraction": 0.0, **options}
    return RobonetSource(RobonetSourceConfig(root=str(tmp_path / "in"), **settings))


def convert_one(tmp_path, **options):
    report = convert(robonet(tmp_path, **options), tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "train")
    return report, shards.read(shards.address(0))


def test_robonet_bgr_is_turned_and_frames_are_resized(tmp_path):
    (tmp_path / "in").mkdir()
    write_trajectory(tmp_path / "in" / "a.hdf5", image_format="BGR")
    _, sample = convert_one(tmp_path)
    assert sample.frames.shape == (4, 3, 12, 16)
    # 4: loss of jpg on a flat colour.
    assert np.abs(sample.frames[3, :, 6, 8].astype(int) - [30, 100, 200]).max() <= 4


def test_robonet_autograsp_command_is_taken_from_the_next_state(tmp_path):
    (tmp_path / "in").mkdir()
    write_trajectory(tmp_path / "in" / "a.hdf5", num_actions=3, primitives="autograsp")
    _, sample = convert_one(tmp_path, impute_autograsp=True)
    # States 1/3, 2/3, 1 against the middle 0.5 of the bounds -2 and 3.
    assert sample.actions[:, 3].tolist() == [0, -2, 3, 3]


def test_robonet_bad_files_are_named_and_the_rest_is_converted(tmp_path):
    (tmp_path / "in").mkdir()
    write_trajectory(tmp_path / "in" / "good.hdf5")
    write_trajectory(tmp_path / "in" / "short.hdf5", num_frames=3)
    write_trajectory(tmp_path / "in" / "wide.hdf5", num_actions=5)
    (tmp_path / "in" / "broken.hdf5").write_bytes(b"no hdf5")
    report, _ = convert_one(tmp_path)
    reasons = {item.name: item.reason for item in report.bad_items}
    assert set(reasons) == {"short.hdf5", "wide.hdf5", "broken.hdf5"}
    assert "3 frames are fewer than --num-frames 4" in reasons["short.hdf5"]
    assert read_document(tmp_path / "out" / "train" / "manifest.json", Manifest).details["rejected_items"] == 3


def test_robonet_test_list_decides_the_split(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_trajectory(tmp_path / "in" / f"{name}.hdf5")
    (tmp_path / "list.txt").write_text("b.hdf5\n")
    convert_one(tmp_path, test_list=str(tmp_path / "list.txt"))
    assert [name for name in tar_members(tmp_path / "out" / "test") if "frames" in name] == ["b-00.frames.npy"]


def test_robonet_metadata_filters_leave_out_and_count(tmp_path):
    (tmp_path / "in").mkdir()
    for name, options in {"a": {}, "b": {"num_actions": 5}, "c": {"robot": "fetch"}}.items():
        write_trajectory(tmp_path / "in" / f"{name}.hdf5", **options)
    report, _ = convert_one(tmp_path, where=("robot=sawyer,baxter", "adim=4"))
    assert report.left_out == {"not adim=4": 1, "not robot=sawyer,baxter": 1} and not report.bad_items
    details = read_document(tmp_path / "out" / "train" / "manifest.json", Manifest).details
    assert details["left_out_items"] == report.left_out
    sent = pickle.loads(pickle.dumps(robonet(tmp_path, where=("adim=4",))))  # as to another process
    assert LeftOut("not adim=4") in list(sent.read(sent.plan()[0]))
    misspelt = robonet(tmp_path, where=("robt=baxter",))
    with pytest.raises(ValueError, match=r"--where 'adim' must have the form NAME=VALUE"):
        RobonetSource(RobonetSourceConfig(root=str(tmp_path), where=("adim",)))
    bad = list(misspelt.read(misspelt.plan()[0]))
    assert all("its metadata have no 'robt', only adim, image_format" in item.reason for item in bad) and len(bad) == 3


def test_robonet_file_hashes_are_checked(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("good", "altered", "unlisted"):
        write_trajectory(tmp_path / "in" / f"{name}.hdf5")
    sums = {name: file_sha256(tmp_path / "in" / f"{name}.hdf5") for name in ("good", "altered")}
    (tmp_path / "SHA256").write_text("".join(f"{digest}  {name}.hdf5\n" for name, digest in sums.items()))
    with h5py.File(tmp_path / "in" / "altered.hdf5", "r+") as data:
        data["policy/actions"][0, 0] = 7
    report, sample = convert_one(tmp_path, hashes=str(tmp_path / "SHA256"))
    reasons = {item.name: item.reason for item in report.bad_items}
    assert set(reasons) == {"altered.hdf5", "unlisted.hdf5"} and sample.key == "good-00"
    assert "fetch the file again" in reasons["altered.hdf5"] and "does not list it" in reasons["unlisted.hdf5"]
    with open(tmp_path / "SHA256", "a") as sums_file:
        sums_file.write(f"{file_sha256(tmp_path / 'in' / 'unlisted.hdf5')}  unlisted.hdf5\n")
    report, _ = convert_one(tmp_path, hashes=str(tmp_path / "SHA256"))
    assert {item.name for item in report.bad_items} == {"altered.hdf5"}


def test_robonet_several_cameras_give_samples_of_their_own(tmp_path):
    (tmp_path / "in").mkdir()
    write_trajectory(tmp_path / "in" / "a.hdf5", cameras=(0, 2))
    write_trajectory(tmp_path / "in" / "b.hdf5")
    report, _ = convert_one(tmp_path, cameras=(0, 2))
    shards = ShardSet.open(tmp_path / "out" / "train")
    samples = [shards.read(shards.address(number)) for number in range(len(shards))]
    assert [sample.key for sample in samples] == ["a-00_cam0", "a-00_cam2", "b-00_cam0"]
    # write_trajectory paints camera n with red 200 - 20 n; 4: loss of jpg on a flat colour.
    assert [
        abs(int(sample.frames[0, 0, 6, 8]) - red) <= 4 for sample, red in zip(samples, (200, 160, 200), strict=True)
    ]
    assert np.array_equal(samples[0].actions, samples[1].actions) and report.left_out == {"no camera 2": 1}


def test_robonet_states_of_other_sizes_are_padded_or_cut(tmp_path):
    (tmp_path / "in").mkdir()
    write_trajectory(tmp_path / "in" / "a.hdf5")
    for number, expected in ((7, [1.0] * 5 + [0.0] * 2), (3, [1.0] * 3)):
        source = robonet(tmp_path, num_states=number)
        (sample,) = source.read(source.plan()[0])
        assert sample.states[-1].tolist() == expected


TINY_FLOW = TurbulenceSourceConfig(
    train=6,
    valid=2,
    test=2,
    num_frames=3,
    segments_per_run=2,
    runs_per_shard=2,
    flow=TurbulenceConfig(resolution=16, force_min_wavenumber=2.0, force_max_wavenumber=4.0, spin_up_frames=2),
)


def test_statistics_of_the_manifest_equal_a_second_pass(tmp_path):
    convert(TurbulenceSource(TINY_FLOW), tmp_path)
    shards = ShardSet.open(tmp_path / "train", check="sha256")
    assert len(shards) == 6
    frames = np.stack([shards.read(shards.address(number)).frames for number in range(6)]).astype(np.float64)
    manifest = shards.manifest
    np.testing.assert_allclose(manifest.shift, frames.mean((0, 1, 3, 4)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(manifest.scale, frames.std((0, 1, 3, 4)), rtol=1e-12)
    normal = (frames - np.reshape(manifest.shift, (2, 1, 1))) / np.reshape(manifest.scale, (2, 1, 1))
    expected = [(normal[:, : 3 - lag] * normal[:, lag:]).mean() for lag in range(3)]
    np.testing.assert_allclose(manifest.statistics.frame_autocovariance, expected, rtol=1e-10, atol=1e-12)
    assert ShardSet.open(tmp_path / "test").manifest.scale == manifest.scale


@pytest.mark.slow
def test_a_restarted_conversion_reuses_shards_and_gives_the_same_bytes(tmp_path):
    convert(TurbulenceSource(TINY_FLOW), tmp_path / "a")
    convert(TurbulenceSource(TINY_FLOW), tmp_path / "b")
    (tmp_path / "b" / "train" / "train-000001.tar").unlink()
    (tmp_path / "b" / "train" / "manifest.json").unlink()
    (tmp_path / "b" / "train" / ".train-000001.tar.0123abcd.partial").write_bytes(b"half a shard")
    report = convert(TurbulenceSource(TINY_FLOW), tmp_path / "b")
    assert (report.num_written, report.num_reused) == (1, 3)
    files = {
        path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()
    }
    again = {
        path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()
    }
    assert files == again


@pytest.mark.slow
def test_parts_of_several_jobs_make_the_same_whole(tmp_path):
    convert(TurbulenceSource(TINY_FLOW), tmp_path / "a")
    for number in (2, 0):
        report = convert(TurbulenceSource(TINY_FLOW), tmp_path / "b", part=(number, 3))
        assert not report.manifests and report.num_elsewhere > 0
    report = convert(TurbulenceSource(TINY_FLOW), tmp_path / "b", part=(1, 3))
    assert set(report.manifests) == {"train", "valid", "test"}
    for path in [path for path in (tmp_path / "a").rglob("*") if path.is_file() and ".lock" not in path.name]:
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_other_options_into_the_same_folder_are_refused(tmp_path):
    convert(TurbulenceSource(TINY_FLOW), tmp_path)
    with pytest.raises(ValueError, match="made with other options"):
        convert(TurbulenceSource(TINY_FLOW.model_copy(update={"seed": 1})), tmp_path)
