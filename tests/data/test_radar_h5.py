"""DiffCast's layout of radar sequences: values, splits, sizes and thresholds."""

import h5py
import numpy as np
import pytest
from catalogue_inputs import write_radar_file
from PIL import Image
from test_all_options import files
from test_well import stored

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.sources.radar_h5 import RadarH5Source, RadarH5SourceConfig
from dydiff_dist.evaluation.choice import ForecastKind
from dydiff_dist.evaluation.rain import RAIN_PRESETS


def source(path, **options):
    return RadarH5Source(RadarH5SourceConfig(file=str(path), **options))


@pytest.mark.parametrize(("prefix", "at_root"), [("", False), ("", True), ("sample_", True)])
def test_sequences_come_back_value_for_value_in_order_of_their_numbers(tmp_path, prefix, at_root):
    counts = {"train": 13, "test": 11, "valid": 2}
    whole = write_radar_file(tmp_path / "a.h5", counts, prefix=prefix, lengths_at_root=at_root)
    report = convert(source(tmp_path / "a.h5"), tmp_path / "out")
    assert not report.bad_items and set(report.manifests) == set(counts)
    for group, count in counts.items():
        found = stored(tmp_path / "out" / group)
        assert list(found) == [key for key in whole if key.startswith(group)] and len(found) == count
        assert all(
            np.array_equal(frames[:, 0], whole[key]) and frames.dtype == np.uint8 for key, frames in found.items()
        )


def test_validation_is_the_last_of_training_and_said_to_be(tmp_path):
    write_radar_file(tmp_path / "a.h5", {"train": 20, "test": 2})
    made = source(tmp_path / "a.h5", valid_fraction=0.2)
    (line,) = made.summary(made.plan())
    assert line == (
        "train: 15 sequences, valid: 4 sequences, test: 2 sequences; validation is the last of the training sequences"
    )
    report = convert(made, tmp_path / "out")
    keys = {split: [int(key[-6:]) for key in stored(tmp_path / "out" / split)] for split in ("train", "valid")}
    assert keys == {"train": list(range(15)), "valid": [16, 17, 18, 19]}
    assert [(item.name, item.reason) for item in report.not_read] == [
        ("train/15", "may overlap in time with the first of validation")
    ]


def test_frames_are_resized_or_padded_around_their_centre(tmp_path):
    whole = write_radar_file(tmp_path / "a.h5", {"train": 3, "test": 1}, size=(9, 20))
    convert(source(tmp_path / "a.h5", size=(12, 15), fit="pad", valid_fraction=0.0), tmp_path / "padded")
    for key, frames in stored(tmp_path / "padded" / "train").items():
        assert frames.shape == (4, 1, 12, 15) and frames.dtype == np.uint8
        assert np.array_equal(frames[:, 0, 1:10], whole[key][:, :, 2:17])  # as torchvision's centre crop pads
        assert not frames[:, 0, :1].any() and not frames[:, 0, 10:].any()
    convert(source(tmp_path / "a.h5", size=(6, 8), valid_fraction=0.0), tmp_path / "resized")
    for key, frames in stored(tmp_path / "resized" / "train").items():
        picture = Image.fromarray(whole[key][2].astype(np.float32)).resize((8, 6), Image.Resampling.BILINEAR)
        assert np.array_equal(frames[2, 0], np.asarray(picture)) and frames.dtype == np.float32


@pytest.mark.parametrize(
    ("preset", "scale", "dtype"), [("shanghai", 255, "float32"), ("meteonet", 90, "float32"), ("cikm", 255, "uint8")]
)
def test_presets_make_frames_that_their_scores_take(tmp_path, preset, scale, dtype):
    num_frames = sum(RAIN_PRESETS[preset].frames)
    write_radar_file(tmp_path / "a.h5", {"train": 2, "test": 1}, size=(101, 101), num_frames=num_frames)
    convert(source(tmp_path / "a.h5", preset=preset, valid_fraction=0.0), tmp_path / "out")
    manifest = ShardSet.open(tmp_path / "out" / "train").manifest
    assert manifest.frames.shape == (1, 128, 128) and manifest.scale == (scale,) and manifest.shift == (0,)
    assert manifest.frames.dtype == dtype and manifest.frames.bounds == ((0, 255),)
    kind = ForecastKind(
        schema=manifest.frames, shape=(20, 1, 128, 128), num_history_frames=5, num_members=4, periodic=False
    )
    assert "rain" in kind.fitting_suites() and RAIN_PRESETS[preset].size == (128, 128)


def test_thresholds_are_the_published_ones_in_stored_values():
    """Against DiffCast's evaluation, which cuts fractions off on a scale of 90, and HKO-7's pixels of rain rates."""
    stored_values = np.arange(256)
    for preset, published in (
        ("shanghai", (20, 30, 35, 40)),
        ("cikm", (20, 30, 35, 40)),
        ("meteonet", (12, 18, 24, 32)),
    ):
        scale = 90.0 if preset == "meteonet" else 255.0
        theirs = ((stored_values / scale).clip(0, 1) * 90.0).astype(np.uint16)
        for ours, threshold in zip(RAIN_PRESETS[preset].thresholds, published, strict=True):
            assert np.array_equal(stored_values >= ours, theirs >= threshold)
    for pixel, rain in zip(RAIN_PRESETS["hko7"].thresholds, (0.5, 2, 5, 10, 30), strict=True):
        reflectivity = pixel / 255 * 70 - 10
        assert (10 ** (reflectivity / 10) / 58.53) ** (1 / 1.56) == pytest.approx(rain, rel=1e-12)


def test_what_is_missing_or_of_another_kind_is_named(tmp_path):
    write_radar_file(tmp_path / "a.h5", {"train": 24, "test": 1})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["train/5"], file["train/7"], file["train/9"]
        file["train/7"] = np.zeros((4, 12), np.uint8)
        file["train/9"] = np.zeros((4, 12, 10), np.float32)
    report = convert(source(tmp_path / "a.h5", valid_fraction=0.0), tmp_path / "out", max_bad_rate=0.2)
    assert {item.name: item.reason for item in report.bad_items} == {
        "train, sequence 24 of 24": "train/all_len promises 24 sequences, there are 23; the file is not whole",
        "train/7": "it is uint8 (4, 12); (S, H, W) of uint8 is expected",
        "train/9": "it is float32 (4, 12, 10); (S, H, W) of uint8 is expected",
    }
    (tmp_path / "no.h5").write_bytes(b"html")
    with pytest.raises(ValueError, match=r"no.h5: it is no HDF5 file; fetch it again"):
        source(tmp_path / "no.h5").plan()
    write_radar_file(tmp_path / "empty.h5", {"test": 1})
    with pytest.raises(ValueError, match="has no group 'train' of numbered arrays; give another --file"):
        source(tmp_path / "empty.h5").plan()
    write_radar_file(tmp_path / "few.h5", {"train": 2, "test": 1})
    with pytest.raises(ValueError, match=r"--valid-fraction 0\.6 leaves no training; give less"):
        source(tmp_path / "few.h5", valid_fraction=0.6).plan()


def test_a_restart_writes_the_same_bytes(tmp_path):
    write_radar_file(tmp_path / "a.h5", {"train": 7, "test": 2})
    made = source(tmp_path / "a.h5", sequences_per_shard=3, valid_fraction=0.0)
    convert(made, tmp_path / "a")
    convert(made, tmp_path / "b")
    (tmp_path / "b" / "train" / "train-000001.tar").unlink()
    report = convert(made, tmp_path / "b")
    assert (report.num_written, report.num_reused) == (1, 3) and files(tmp_path / "a") == files(tmp_path / "b")
