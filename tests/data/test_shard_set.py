"""Opening shards: what is missing or broken is said in one line."""

import json
import logging

import numbered_source
import numpy as np
import pytest
from numbered_source import numbered_sample

from dydiff_dist.data import shard_jobs
from dydiff_dist.data.manifest import manifest_identity
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import index_path


def test_missing_folder_and_manifest(make_shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shard folder .*nowhere does not exist; make it with"):
        ShardSet.open(tmp_path / "nowhere")
    folder = make_shards()
    with pytest.raises(FileNotFoundError, match=rf"has no manifest.json; did you mean {folder}\?"):
        ShardSet.open(folder.parent)


def test_truncated_missing_and_altered_shards_are_named(make_shards):
    folder = make_shards(counts=(4, 4))
    path = folder / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(
        ValueError, match=r"train-000001.tar is truncated: 5000 bytes.*sample 'sample-0005' and 2 after"
    ):
        ShardSet.open(folder)
    path.write_bytes(whole[:5000] + b"!" + whole[5001:])
    ShardSet.open(folder)
    with pytest.raises(ValueError, match=r"train-000001.tar was altered: its SHA-256"):
        ShardSet.open(folder, check="sha256")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar is missing"):
        ShardSet.open(folder)


def test_damaged_manifest_and_index_are_named(make_shards):
    folder = make_shards(counts=(2,))
    shards = ShardSet.open(folder)
    index = index_path(folder / "train-000000.tar")
    index.write_bytes(index.read_bytes().replace(b"0001", b"0002"))
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:4096])
    with pytest.raises(DamagedSampleError, match=r"index .*train-000000.index.json was altered.* it is damaged too"):
        shards.read(shards.address(0))
    (folder / "manifest.json").write_text('{"format_version": 1, "sourc": 3}')
    with pytest.raises(ValueError, match=r"manifest.json: ") as caught:
        ShardSet.open(folder)
    assert "\n" not in str(caught.value)


def test_samples_come_back_as_they_were_written(make_shards):
    shards = ShardSet.open(make_shards(counts=(3, 2), num_actions=2))
    for number in range(5):
        expected = numbered_sample(number, 5, 2)
        found = shards.read(shards.address(number))
        assert found.key == expected.key
        assert np.array_equal(found.frames, expected.frames) and np.array_equal(found.actions, expected.actions)


def test_nan_is_damage(make_shards, monkeypatch):
    good = numbered_source.numbered_sample

    def with_nan(number, num_frames, num_actions=0):
        sample = good(number, num_frames, num_actions)
        if number == 1:
            sample.frames[2, 1, 3, 3] = np.nan
        return sample

    monkeypatch.setattr(numbered_source, "numbered_sample", with_nan)
    monkeypatch.setattr(shard_jobs, "all_finite", lambda array: True)  # a conversion would reject it
    shards = ShardSet.open(make_shards(counts=(3,)))
    with pytest.raises(DamagedSampleError, match=r"sample 'sample-0001' of shard .* has NaN or infinite frames"):
        shards.read(shards.address(1))


def test_a_changed_digit_of_the_manifest_is_noticed(make_shards, caplog):
    path = make_shards() / "manifest.json"
    whole = json.loads(path.read_text())
    for change in ({"scale": [whole["scale"][0] + 1e-9, whole["scale"][1]]}, {"split": "tset"}, {"details": {}}):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=r"manifest.json was altered: its checksum does not fit") as caught:
            ShardSet.open(path.parent)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "sha256"}))
    with caplog.at_level(logging.WARNING):
        assert len(manifest_identity(ShardSet.open(path.parent).manifest)) == 64
    assert "manifest.json has no checksum, so a changed value in it goes unnoticed" in caplog.text
    path.write_text(json.dumps(whole))
    assert ShardSet.open(path.parent).manifest.sha256 == whole["sha256"]


def test_actions_can_be_left_unread(make_shards):
    folder = make_shards(counts=(2,), num_actions=3)
    with_actions, without = ShardSet.open(folder), ShardSet.open(folder, use_actions=False)
    assert (with_actions.schema.num_actions, without.schema.num_actions) == (3, 0)
    sample = without.read(without.address(1))
    assert sample.actions is None
    np.testing.assert_array_equal(sample.frames, with_actions.read(with_actions.address(1)).frames)
