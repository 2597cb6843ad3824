"""Frames, an autoencoder, and a way to encode the ones with the other."""

import pytest
from frame_source import FrameSource, FrameSourceConfig
from small_autoencoders import small_autoencoder

from dydiff_dist.autoencoders.encode import encode_shards, open_splits
from dydiff_dist.autoencoders.encode_source import EncodeSource, EncodeSourceConfig
from dydiff_dist.autoencoders.files import load_autoencoder
from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet


@pytest.fixture
def frames_folder(tmp_path):
    """Ten training samples in three shards and two test samples of 6 frames, 2x16x16."""
    convert(FrameSource(FrameSourceConfig()), tmp_path / "frames")
    return tmp_path / "frames"


@pytest.fixture
def autoencoder(tmp_path):
    """A small one for such frames."""
    small_autoencoder(tmp_path / "autoencoder")
    return load_autoencoder(tmp_path / "autoencoder")


@pytest.fixture
def encode(autoencoder):
    """Encodes a folder of frames; returns the report and the latents by split."""

    def run(folder, out, part=(0, 1), num_workers=1, max_bad_rate=0.0, with_autoencoder=autoencoder, **options):
        config = EncodeSourceConfig(**options)
        source = EncodeSource(open_splits(str(folder)), with_autoencoder, config, num_workers)
        report = encode_shards(source, out, part, max_bad_rate)
        return report, {split: ShardSet.open(out / split) for split in report.manifests}

    return run
