"""Shards whose samples are Gaussians: mean and log-variance from the writer to the batch."""

import numpy as np
import pytest

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import FrameSchema, LatentsSchema
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import ShardTask, Source
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.strict_config import StrictConfig

SHAPE = (5, 3, 4, 4)
SHIFT, SCALE = (0.5, 0.0, -1.0), (2.0, 1.0, 0.5)


class GaussianSource(Source):
    """Eight samples of float16 means and log-variances."""

    name = "gaussian"

    def plan(self):
        return [ShardTask("train", "train-000000.tar", (8,), 100_000)]

    def read(self, task):
        for number in range(task.items[0]):
            mean, logvar = gaussian(number)
            yield Sample(f"sample-{number}", mean, np.ones((SHAPE[0], 2), np.float32), logvar=logvar)

    def schema(self, sample):
        return FrameSchema(num_frames=SHAPE[0], shape=SHAPE[1:], dtype="float16", num_actions=2, has_logvar=True)

    def normalisation(self):
        return SHIFT, SCALE

    def latents(self, split):
        pixels = FrameSchema(num_frames=5, shape=(1, 16, 16), dtype="uint8", num_actions=2)
        return LatentsSchema(autoencoder_sha256="a" * 64, source_frames=pixels, source_sha256="b" * 64)


def gaussian(number):
    rng = np.random.default_rng(number)
    return rng.standard_normal(SHAPE).astype(np.float16), rng.uniform(-6, -2, SHAPE).astype(np.float16)


@pytest.fixture
def folder(tmp_path):
    convert(GaussianSource(StrictConfig()), tmp_path)
    return tmp_path / "train"


def test_a_batch_holds_mean_and_logvar_in_network_units(folder):
    shards = ShardSet.open(folder)
    assert shards.manifest.latents.autoencoder_sha256 == "a" * 64
    config = DataConfig(train=str(folder), num_history_frames=2, num_future_frames=2, num_workers=0)
    batch = next(iter(TrainStream(shards, config, seed=3, global_batch_size=4, micro_batch_size=4)))
    assert batch["frames"].shape == batch["logvar"].shape == (4, 4, *SHAPE[1:])
    scale, shift = (np.asarray(v, np.float32)[:, None, None] for v in (SCALE, SHIFT))
    starts = set()
    for row, key in enumerate(batch["key"]):
        mean, logvar = (array.astype(np.float32) for array in gaussian(int(key.removeprefix("sample-"))))
        fits = [
            start
            for start in (0, 1)
            if np.allclose(batch["frames"][row], (mean[start : start + 4] - shift) / scale, atol=1e-6)
            and np.allclose(batch["logvar"][row], logvar[start : start + 4] - 2 * np.log(scale), atol=1e-6)
        ]
        assert len(fits) == 1  # mean and log-variance are cut at the same frame
        starts.update(fits)
    assert starts == {0, 1}


def test_statistics_are_those_of_draws(folder):
    """Against moments of many draws: 8 samples x 80 values x 400 draws give 0.1 % on a variance of about 1."""
    draws = FrameMoments()
    rng = np.random.default_rng(0)
    for number in range(8):
        mean, logvar = (array.astype(np.float64) for array in gaussian(number))
        for _ in range(400):
            draws.add(mean + np.exp(logvar / 2) * rng.standard_normal(SHAPE))
    statistics = ShardSet.open(folder).manifest.statistics
    mean, std = draws.mean_and_std()
    np.testing.assert_allclose(statistics.mean, mean, atol=2e-3)
    np.testing.assert_allclose(statistics.std, std, rtol=2e-3)
    expected = draws.summary(np.array(SHIFT), np.array(SCALE)).frame_autocovariance
    np.testing.assert_allclose(statistics.frame_autocovariance, expected, atol=5e-3)


def test_a_missing_logvar_is_damage(folder):
    shards = ShardSet.open(folder)
    data = (folder / "train-000000.tar").read_bytes()
    assert shards.read(shards.address(0)).logvar.dtype == np.float16
    altered = data.replace(b"sample-0.logvar.npy", b"sample-0.logvax.npy")
    from dydiff_dist.data.shard_set import decode_sample

    index = shards.index(0)
    stretch = altered[index.offsets[0] : index.offsets[0] + index.sizes[0]]
    with pytest.raises(DamagedSampleError, match=r"lacks its member logvar.npy"):
        decode_sample(with_checksum(stretch), "sample-0", shards.schema, "sample")


def with_checksum(stretch):
    """The tar header's checksum made right for the new name, so that only the name is wrong."""
    import tarfile

    parts = bytearray(stretch)
    start = stretch.index(b"sample-0.logvax.npy")
    header = parts[start : start + 512]
    header[148:156] = b" " * 8
    parts[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    assert tarfile.TarInfo.frombuf(bytes(parts[start : start + 512]), "utf-8", "strict").name.endswith("logvax.npy")
    return bytes(parts)


def test_latents_cannot_be_cropped(folder):
    config = DataConfig(train=str(folder), num_history_frames=2, num_future_frames=2, crop_size=(2, 2), num_workers=0)
    with pytest.raises(ValueError, match=r"crop_size cannot cut latents"):
        TrainStream(ShardSet.open(folder), config, seed=0, global_batch_size=2, micro_batch_size=2)
