"""Frames as npy, png, jpg and mp4: what comes back, what is refused, and what damage looks like."""

import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import webdataset
from numbered_source import NumberedSource, NumberedSourceConfig
from PIL import Image

from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.data.members import EncodingConfig, MemberError, decode_frames, encode_frames
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem

S, H, W = 6, 21, 32


def clip(num_channels, number=0):
    """Smooth 8-bit frames that move, (S, C, H, W)."""
    s, c, y, x = np.meshgrid(np.arange(S), np.arange(num_channels), np.arange(H), np.arange(W), indexing="ij")
    waves = np.sin((x + 2 * s + number) / 6 + c) + np.cos((y - s) / 5 + 2 * c)
    return np.round(127.5 + 60 * waves).astype(np.uint8)


class ClipSource(NumberedSource):
    """Moving waves of 8 bits."""

    def read(self, task):
        first, count = task.items
        for number in range(first, first + count):
            yield Sample(f"clip-{number}", clip(3, number)) if number != 1 else BadItem("clip-1", "by order")

    def schema(self, sample):
        return FrameSchema(num_frames=S, shape=sample.frames.shape[1:], dtype="uint8")


def convert_clips(out, **encoding):
    convert(ClipSource(NumberedSourceConfig(counts=(3,))), out, encoding=EncodingConfig(**encoding), max_bad_rate=1.0)
    return out / "train"


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(("encoding", "error"), [("npy", 0), ("png", 0), ("jpg", 6), ("mp4", 16)])
def test_frames_come_back(num_channels, encoding, error):
    """6 and 16 grey levels of 255: the loss of jpg at quality 95 and of H.264 at crf 14 on smooth frames."""
    frames = clip(num_channels)
    members = encode_frames(frames, EncodingConfig(encoding=encoding))
    found = decode_frames(members, encoding, S, num_channels)
    assert found.dtype == np.uint8 and found.shape == frames.shape
    difference = np.abs(found.astype(int) - frames)
    assert difference.max() <= error and difference.mean() <= error / 4
    assert members == encode_frames(frames, EncodingConfig(encoding=encoding))


def test_a_video_does_not_depend_on_what_memory_holds():
    """glibc fills new memory with the byte that MALLOC_PERTURB_ says; x264 read some of it."""
    program = """
import hashlib, numpy as np
from dydiff_dist.data.members import EncodingConfig, encode_frames
noise = np.random.default_rng(0).normal(size=(12, 3, 48, 64))
frames = noise.cumsum(0).cumsum(2).cumsum(3).clip(0, 255).astype(np.uint8)
print(hashlib.sha256(encode_frames(frames, EncodingConfig(encoding="mp4"))["frames.mp4"]).hexdigest())
"""
    sums = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "MALLOC_PERTURB_": filling},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for filling in ("85", "170", "255")
    }
    assert len(sums) == 1


def test_pictures_and_videos_are_what_others_read():
    frames = clip(3)
    jpg = encode_frames(frames, EncodingConfig(encoding="jpg"))
    assert list(jpg) == [f"{s:04d}.jpg" for s in range(S)]
    with Image.open(io.BytesIO(jpg["0002.jpg"])) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (W, H), "RGB")
    with av.open(io.BytesIO(encode_frames(frames, EncodingConfig(encoding="mp4"))["frames.mp4"])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == S


@pytest.mark.parametrize("encoding", ["png", "jpg", "mp4"])
def test_shards_say_how_frames_are_stored_and_give_them_back(tmp_path, encoding):
    folder = convert_clips(tmp_path, encoding=encoding)
    shards = ShardSet.open(folder, check="sha256")
    assert shards.schema.encoding == encoding and len(shards) == 2
    expected = encode_frames(clip(3, 2), EncodingConfig(encoding=encoding))
    assert np.array_equal(shards.read(shards.address(1)).frames, decode_frames(expected, encoding, S, 3))
    stored = np.stack([shards.read(shards.address(number)).frames for number in range(2)]).astype(np.float64)
    # The statistics are those of what a run reads, not of what went into the encoder.
    np.testing.assert_allclose(shards.manifest.statistics.mean, stored.mean((0, 1, 3, 4)), rtol=1e-12)


def test_plain_webdataset_decodes_the_pictures(tmp_path):
    folder = convert_clips(tmp_path, encoding="png")
    samples = list(webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    assert np.array_equal(samples[0]["0003.png"], clip(3)[3].transpose(1, 2, 0))


def test_another_encoding_into_the_same_folder_is_refused(tmp_path):
    convert_clips(tmp_path, encoding="jpg")
    with pytest.raises(ValueError, match="made with other options"):
        convert_clips(tmp_path, encoding="jpg", jpg_quality=50)


def test_frames_that_are_no_pictures_are_refused_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"--encoding jpg needs 8-bit frames of 1 or 3 channels, these are float32"
    ) as e:
        convert(NumberedSource(NumberedSourceConfig()), tmp_path, encoding=EncodingConfig(encoding="jpg"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("encoding", ["png", "jpg", "mp4"])
def test_damaged_members_are_named(encoding):
    members = encode_frames(clip(3), EncodingConfig(encoding=encoding))
    last = list(members)[-1]
    with pytest.raises(MemberError, match=f"has an unreadable {last}"):
        decode_frames({**members, last: members[last][:40]}, encoding, S, 3)
    with pytest.raises(MemberError, match=f"lacks its member {last}"):
        decode_frames({name: data for name, data in members.items() if name != last}, encoding, S, 3)


def test_a_video_of_too_few_frames_is_damage(tmp_path):
    folder = convert_clips(tmp_path, encoding="mp4")
    shards = ShardSet.open(folder)
    object.__setattr__(shards.manifest, "frames", shards.schema.model_copy(update={"num_frames": S + 1}))
    with pytest.raises(DamagedSampleError, match=r"sample 'clip-0' .* has frames uint8 \(6, 3, 21, 32\), the manifest"):
        shards.read(shards.address(0))
