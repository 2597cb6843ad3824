"""The audit finds exact epochs exact and inexact ones not; summaries and pictures are made for every kind of data."""

import pytest
from PIL import Image

from dydiff_dist.data.inspection import audit, describe, save_pictures
from dydiff_dist.data.order import SampleOrder
from dydiff_dist.data.shard_set import SampleAddress, ShardSet


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (8, 0), (3, 1)])
def test_17_uneven_shards_are_seen_exactly_once(make_shards, world_size, num_workers):
    shards = ShardSet.open(make_shards(counts=(1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2)))
    for epoch in (0, 2):
        result = audit(shards, world_size, num_workers, epoch)
        assert result.exact and result.seen_once == len(shards) and result.missing == 0


def test_a_repeated_sample_is_found(make_shards, monkeypatch):
    shards = ShardSet.open(make_shards(counts=(4, 3)))
    right = SampleOrder.address
    monkeypatch.setattr(SampleOrder, "address", lambda plan, p: SampleAddress(0, 1) if p == 2 else right(plan, p))
    result = audit(shards, 2, 0)
    assert not result.exact and result.missing == 1 and result.seen_more == ["sample-0001"]


def test_summary_and_pictures(make_shards, tmp_path):
    shards = ShardSet.open(make_shards(counts=(4, 3), num_actions=2, augmentations=("flip",)))
    text = "\n".join(describe(shards))
    assert "7 in 2 shards of 3 to 4" in text and "5 of 2x6x8 float32" in text and "allowed  flip" in text
    save_pictures(shards, tmp_path / "picture.png", num_samples=2)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 300
