"""A run's expectation of its data: planned with where the shards are absent, held against them where they are there."""

from pathlib import Path

from dydiff_dist.data.config import ExpectedData
from dydiff_dist.data.manifest import FrameStatistics, Manifest, ShardEntry
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.stores import LocalStore

_CHECKED = ("num_frames", "shape", "num_actions", "has_logvar")
"""What the network, its memory and its operations follow from."""


def expected_shards(expect: ExpectedData, folder: str) -> ShardSet:
    """A shard set that has the expected schema and number of samples, and nothing to read.

    Its statistics are those of white noise in network units.
    """
    num_channels = expect.frames.shape[0]
    zeros, ones = (0.0,) * num_channels, (1.0,) * num_channels
    statistics = FrameStatistics(
        count=0,
        mean=zeros,
        std=ones,
        min=zeros,
        max=zeros,
        frame_autocovariance=(1.0,) + (0.0,) * (expect.frames.num_frames - 1),
    )
    shard = ShardEntry(name="expected.tar", num_samples=expect.num_samples, bytes=0, sha256="", index_sha256="")
    manifest = Manifest(
        source="data.expect",
        split="",
        tool_version="",
        frames=expect.frames,
        shift=zeros,
        scale=ones,
        statistics=statistics,
        num_samples=expect.num_samples,
        shards=(shard,),
    )
    return ShardSet(LocalStore(Path(folder)), manifest)


def check_expectation(expect: ExpectedData, shards: ShardSet) -> None:
    """One-line ``ValueError`` where the shards are other than expected. The number of samples is only planned with."""
    wrong = [name for name in _CHECKED if getattr(expect.frames, name) != getattr(shards.schema, name)]
    if wrong:
        also = f" (and {', '.join(wrong[1:])} differ)" if wrong[1:] else ""
        raise ValueError(
            f"data.expect.frames.{wrong[0]} is {getattr(expect.frames, wrong[0])}, {shards.folder} has "
            f"{getattr(shards.schema, wrong[0])}{also}; give the shards that the configuration is for, or, for data of "
            "your own, take what it expects away with data.expect=null"
        )
