"""BAIR's folders as people have them."""

import gzip

import pytest
from small_inputs import write_records

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.bair import BairSource, BairSourceConfig


def bair(root, **options):
    return BairSource(BairSourceConfig(root=str(root), num_frames=2, **{"valid_fraction": 0.0, **options}))


def test_trajectories_of_one_file_are_independent(tmp_path):
    """Their keys agree up to the last hyphen, but each begins anew."""
    write_records(tmp_path / "train" / "a.tfrecords", range(3))
    write_records(tmp_path / "test" / "b.tfrecords", range(3, 6))
    convert(bair(tmp_path), tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "test")
    keys = [shards.key(shards.address(number)) for number in range(3)]
    assert keys == [f"test-b-000{n}" for n in range(3)] and shards.manifest.independent == "case"


def test_folders_for_validation_endings_in_capitals_and_files_beside_are_taken_or_named(tmp_path):
    write_records(tmp_path / "train" / "a.TFRECORDS", range(3))
    write_records(tmp_path / "val" / "b.tfrecords", range(3, 5))
    (tmp_path / "train" / "c.tfrecords").write_bytes(b"")
    (tmp_path / "checksums.txt").write_text("")
    report = convert(bair(tmp_path), tmp_path / "out")
    assert set(report.manifests) == {"train", "valid"} and len(ShardSet.open(tmp_path / "out" / "valid")) == 2
    assert {item.name: item.reason for item in report.bad_items} == {"train/c.tfrecords": "it holds no record"}
    assert report.missing_splits == {"test": f"{tmp_path / 'test'} holds no record that can be found"}
    assert [item.name for item in report.not_read] == ["checksums.txt"]


def test_a_share_that_chooses_nothing_is_said(tmp_path):
    write_records(tmp_path / "train" / "a.tfrecords", range(3))
    report = convert(bair(tmp_path, valid_fraction=0.0001), tmp_path / "out")
    assert report.missing_splits["valid"] == "--valid-fraction 0.0001 chose no trajectory; give more"


def test_a_folder_without_training_files_is_refused(tmp_path):
    write_records(tmp_path / "a.tfrecords", range(3))
    with pytest.raises(FileNotFoundError, match=r"has no folder train/ with .tfrecords files"):
        bair(tmp_path).plan()
    write_records(tmp_path / "test" / "a.tfrecords", range(3))
    with pytest.raises(ValueError, match="has no trajectory for training"):
        bair(tmp_path).plan()


def test_records_packed_by_gzip_are_read_like_others(tmp_path):
    for name, pack in (("plain", bytes), ("packed", gzip.compress)):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "train" / "a.tfrecords", range(3))
        path = tmp_path / name / "train" / "a.tfrecords"
        path.write_bytes(pack(path.read_bytes()))
        convert(bair(tmp_path / name), tmp_path / name / "out")
    tars = [(tmp_path / name / "out" / "train" / "train-000000.tar").read_bytes() for name in ("plain", "packed")]
    assert tars[0] == tars[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="its gzip data are cut off or dam"):
        bair(tmp_path / "packed").plan()
