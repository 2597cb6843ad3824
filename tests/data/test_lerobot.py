"""LeRobot's layouts: frames, actions and states of each episode where they belong, whatever the version and codec."""

import json

import av
import numpy as np
import pytest
from catalogue_inputs import read_shade, write_lerobot
from test_all_options import files

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources import lerobot
from dydiff_dist.data.sources.lerobot import LerobotSource, LerobotSourceConfig

TWO = ("observation.images.top", "observation.images.wrist")


def source(root, **options):
    return LerobotSource(
        LerobotSourceConfig(root=str(root), **{"num_frames": 3, "valid_fraction": 0.0, "test_fraction": 0.0, **options})
    )


def samples(folder):
    shards = ShardSet.open(folder, check="sha256")
    return {sample.key: sample for sample in map(shards.read, map(shards.address, range(len(shards))))}


def decoded(path):
    """All frames of a video (T, 3, H, W), by PyAV from its beginning."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    return np.stack(frames).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("version", "codec"), [("v3.0", "libx264"), ("v3.0", "libsvtav1"), ("v2.1", "libx264"), ("v2.1", "libsvtav1")]
)
def test_episodes_come_back_value_for_value_and_are_never_mixed(tmp_path, version, codec):
    lengths = (9, 7, 12, 8, 2)
    write_lerobot(tmp_path / "set", lengths, version, codec, TWO)
    report = convert(source(tmp_path / "set", cameras=("top", TWO[1]), episodes_per_shard=2), tmp_path / "out")
    assert not report.bad_items and report.left_out == {
        "episodes of fewer frames than --num-frames and --stride span": 1
    }
    found = samples(tmp_path / "out" / "train")
    assert len(found) == 2 * (3 + 2 + 4 + 2) and "episode_000002-003_cam1" in found
    for key, sample in found.items():
        episode, window, camera = int(key[8:14]), int(key[15:18]), int(key[-1])
        assert [read_shade(frame) for frame in sample.frames] == [(episode, 3 * window + s, camera) for s in range(3)]
        if version == "v3.0":
            path = tmp_path / "set" / "videos" / TWO[camera] / "chunk-000" / f"file-{episode // 3:03d}.mp4"
            first = sum(lengths[episode // 3 * 3 : episode]) + 3 * window
        else:
            path = tmp_path / "set" / "videos" / "chunk-000" / TWO[camera] / f"episode_{episode:06d}.mp4"
            first = 3 * window
        assert np.array_equal(sample.frames, decoded(path)[first : first + 3])
        led_by = [[0, 0], *([episode + (3 * window + s) / 100, -1] for s in range(2))]
        assert np.array_equal(sample.actions, np.array(led_by, np.float32))
    shards = ShardSet.open(tmp_path / "out" / "train")
    schema = shards.schema
    assert schema.frames_per_sec == 10 and schema.num_actions == 2 and schema.allowed_augmentations == ()
    assert shards.manifest.independent == "key_prefix" and shards.manifest.scale == (127.5,) * 3


def test_a_stride_keeps_all_actions_and_states_of_its_frames(tmp_path):
    write_lerobot(tmp_path / "set", (14,))
    made = source(tmp_path / "set", stride=2, size=(16, 24))
    tasks = made.plan()
    first, second = made.read(tasks[0])
    for start, sample in ((0, first), (6, second)):
        assert [read_shade(frame) for frame in sample.frames] == [(0, start + 2 * s, 0) for s in range(3)]
        expected = [[0] * 4] + [[(start + k) / 100, -1, (start + k + 1) / 100, -1] for k in (0, 2)]
        assert np.array_equal(sample.actions, np.array(expected, np.float32))
        assert sample.states[:, 1].tolist() == [start, start + 2, start + 4] and sample.frames.shape == (3, 3, 16, 24)
    assert made.schema(first).frames_per_sec == 5


def test_numbers_may_be_left_out(tmp_path):
    write_lerobot(tmp_path / "set", (6,))
    made = source(tmp_path / "set", action_key="", state_key="")
    sample = next(made.read(made.plan()[0]))
    assert sample.actions is None and sample.states is None


def test_splits_are_those_of_the_data_set_or_by_hash(tmp_path):
    write_lerobot(tmp_path / "named", (4,) * 10, splits={"train": "0:6", "val": "6:8", "test": "8:10"})
    made = source(tmp_path / "named")
    (line,) = made.summary(made.plan())
    episodes = "train: 6 episodes, valid: 2 episodes, test: 2 episodes"
    assert line == f"v3.0, observation.images.top at 10 frames a second; {episodes}"
    found = {task.split: [item[0] for item in task.items] for task in made.plan()}
    assert found == {"train": [0, 1, 2, 3, 4, 5], "valid": [6, 7], "test": [8, 9]}
    write_lerobot(tmp_path / "hashed", (4,) * 10)
    made = source(tmp_path / "hashed", valid_fraction=0.3, test_fraction=0.3)
    found = {task.split: [item[0] for item in task.items] for task in made.plan()}
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(10)) and set(found) == {
        "train",
        "valid",
        "test",
    }


def test_each_video_is_decoded_once(tmp_path, monkeypatch):
    """An episode costs its own frames and those since the key frame before it, not the file's."""
    write_lerobot(tmp_path / "set", (9, 9, 9, 9), episodes_per_file=4)
    turned = []
    from dydiff_dist.data import video

    monkeypatch.setattr(video, "_turned", lambda pixels, frame: turned.append(frame.time) or pixels)
    made = source(tmp_path / "set")
    assert len(list(made.read(made.plan()[0]))) == 12
    assert turned == pytest.approx([n / 10 for n in range(36)])


def test_what_is_wrong_with_an_episode_is_named_and_the_others_go_on(tmp_path):
    write_lerobot(tmp_path / "set", (6,) * 24, "v2.1")
    pq = pytest.importorskip("pyarrow.parquet")
    videos, data = (tmp_path / "set" / name / "chunk-000" for name in ("videos", "data"))
    path = videos / "observation.images.top" / "episode_000003.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    (videos / "observation.images.top" / "episode_000005.mp4").unlink()
    (data / "episode_000007.parquet").write_bytes(b"PAR1")
    (data / "episode_000009.parquet").unlink()
    table = pq.read_table(data / "episode_000011.parquet")
    pq.write_table(table.slice(0, 5), data / "episode_000011.parquet")
    pq.write_table(table.drop_columns(["action"]), data / "episode_000013.parquet")
    report = convert(source(tmp_path / "set"), tmp_path / "out", max_bad_rate=0.5)
    reasons = {int(item.name.split()[1]): item.reason for item in report.bad_items}
    assert set(reasons) == {3, 5, 7, 9, 11, 13}
    assert "cut off" in reasons[3] and "No such file" in reasons[5] and "does not exist" in reasons[9]
    assert "holds 5 of the episode's 6 rows" in reasons[11] and "it has no column 'action'" in reasons[13]
    assert all("\n" not in reason for reason in reasons.values())
    assert len(samples(tmp_path / "out" / "train")) == 2 * 18


def test_a_video_of_another_rate_is_refused(tmp_path):
    write_lerobot(tmp_path / "set", (6, 6), "v2.1")
    path = tmp_path / "set" / "meta" / "info.json"
    path.write_text(path.read_text().replace('"fps": 10', '"fps": 40'))
    made = source(tmp_path / "set")
    for chunk in (tmp_path / "set" / "data").rglob("*.parquet"):
        rewrite_times(chunk, 40)
    (bad, *_) = [item for item in made.read(made.plan()[0]) if not hasattr(item, "frames")]
    assert bad.reason == "no frame lies at 0.025 s; it is of another rate"


def rewrite_times(path, fps):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    times = pa.array(np.arange(len(table)) / fps, pa.float32())
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", times), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--cameras is left out, which names no one camera: the data set has observation.images.top, observation"),
        ({"cameras": ("side",)}, "--cameras side names no one camera"),
        ({"cameras": ("top",), "action_key": "act"}, "--action-key act is not among the features action, observation"),
        ({"cameras": ("top",), "state_key": "s"}, "--state-key s is not among the features"),
        ({"cameras": ("top",), "valid_fraction": 0.5, "test_fraction": 0.499}, "no episode for training; lower the"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, options, message):
    write_lerobot(tmp_path / "set", (6,), cameras=TWO)
    with pytest.raises(ValueError, match=message) as caught:
        source(tmp_path / "set", **options).plan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: "{", "is damaged"),
        (
            lambda info: json.dumps({**info, "codebase_version": "v1.6"}),
            "of version v1.6 at 10.0 frames a second; v3.0",
        ),
        (lambda info: json.dumps({**info, "fps": "x"}), "could not convert string to float"),
        (lambda info: json.dumps({k: v for k, v in info.items() if k != "features"}), "it has no 'features'"),
        (lambda info: json.dumps({**info, "features": {"../x": {"dtype": "video"}}}), "no plain file name"),
        (lambda info: json.dumps({**info, "splits": {"train": "all"}}), "not enough values"),
        (lambda info: json.dumps([1]), "list indices|not dict"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path, change, message):
    write_lerobot(tmp_path / "set", (6,))
    path = tmp_path / "set" / "meta" / "info.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as caught:
        source(tmp_path / "set").plan()
    assert "\n" not in str(caught.value) and "info.json" in str(caught.value)


@pytest.mark.parametrize("key", ["is_depth_map", "video.is_depth_map"])
def test_depth_videos_are_no_cameras(tmp_path, key):
    write_lerobot(tmp_path / "set", (6,), cameras=TWO)
    path = tmp_path / "set" / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][TWO[1]]["info"] = {key: True}
    path.write_text(json.dumps(info))
    made = source(tmp_path / "set")
    assert len(made.plan()) == 1 and made.details()["cameras"] == [TWO[0]]
    with pytest.raises(
        ValueError, match=r"--cameras wrist names no one camera: the data set has observation\.images\.top$"
    ):
        source(tmp_path / "set", cameras=("wrist",)).plan()


def test_without_pyarrow_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dydiff_dist\[lerobot\]'"):
        source(tmp_path).plan()


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_restart_writes_the_same_bytes_and_a_changed_file_its_shards_anew(tmp_path, version):
    write_lerobot(tmp_path / "set", (6,) * 6, version, episodes_per_file=2)
    made = source(tmp_path / "set", episodes_per_shard=2)
    convert(made, tmp_path / "a")
    convert(made, tmp_path / "b")
    (tmp_path / "b" / "train" / "train-000001.tar").unlink()
    report = convert(source(tmp_path / "set", episodes_per_shard=2), tmp_path / "b")
    assert (report.num_written, report.num_reused) == (1, 2) and files(tmp_path / "a") == files(tmp_path / "b")
    rewrite_times(sorted((tmp_path / "set" / "data").rglob("*.parquet"))[0], 10.001)
    report = convert(source(tmp_path / "set", episodes_per_shard=2), tmp_path / "b", max_bad_rate=1.0)
    assert (report.num_written, report.num_reused) == (1, 2)
