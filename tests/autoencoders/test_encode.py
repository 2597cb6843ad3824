"""Encoding shards: what is stored, that only the inputs decide it, and one clear line for what is wrong."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frame_source import FrameSource, FrameSourceConfig
from small_autoencoders import small_autoencoder

from dydiff_dist.autoencoders.encode import AUTOENCODER_FOLDER, open_splits, place_autoencoder
from dydiff_dist.autoencoders.files import load_autoencoder
from dydiff_dist.autoencoders.verify import data_range, verify_latents
from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import manifest_identity
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.evaluation.fields import psnr
from dydiff_dist.evaluation.reconstruction import format_reconstruction

CPU = torch.device("cpu")


def files(folder):
    """Contents by path, without locks."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def samples(shards):
    return [shards.read(shards.address(number)) for number in range(len(shards))]


def test_latents_are_the_posterior_of_every_sample(frames_folder, autoencoder, encode, tmp_path):
    report, latents = encode(frames_folder, tmp_path / "latents")
    assert (report.num_written, report.bad_items) == (4, [])
    for split, shards in latents.items():
        pixels = ShardSet.open(frames_folder / split)
        manifest, description = shards.manifest, autoencoder.description
        assert (manifest.shift, manifest.scale) == (description.latent_shift, description.latent_scale)
        assert manifest.frames.model_dump(include={"num_frames", "shape", "dtype", "has_logvar"}) == {
            "num_frames": 6,
            "shape": (3, 4, 4),
            "dtype": "float16",
            "has_logvar": True,
        }
        assert manifest.latents.autoencoder_sha256 == description.sha256
        assert manifest.latents.source_sha256 == manifest_identity(pixels.manifest)
        assert manifest.latents.source_frames == pixels.schema
        for stored, truth in zip(samples(shards), samples(pixels), strict=True):
            posterior = autoencoder.encode_raw(autoencoder.to_pixels(torch.from_numpy(truth.frames.copy())[None]))
            assert stored.key == truth.key
            # float16 has 11 bits; convolutions round by batch size on top
            np.testing.assert_allclose(stored.frames, posterior.mean[0], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(stored.logvar, posterior.logvar[0], rtol=1e-3, atol=1e-3)


def test_bytes_depend_on_neither_processes_nor_threads_nor_restarts(frames_folder, encode, tmp_path):
    encode(frames_folder, tmp_path / "one", batch_frames=12)
    encode(frames_folder, tmp_path / "threads", batch_frames=12, num_workers=3)
    reports = [encode(frames_folder, tmp_path / "parts", (part, 3), batch_frames=12)[0] for part in (1, 0, 2)]
    assert [report.num_elsewhere for report in reports] == [3, 1, 0]
    assert [bool(report.manifests) for report in reports] == [False, False, True]
    encode(frames_folder, tmp_path / "restarted", batch_frames=12)
    (tmp_path / "restarted" / "train" / "train-000001.tar").unlink()
    again, _ = encode(frames_folder, tmp_path / "restarted", batch_frames=12)
    assert (again.num_written, again.num_reused) == (1, 3)
    for name in ("threads", "parts", "restarted"):
        assert files(tmp_path / name) == files(tmp_path / "one"), name


def test_going_on_with_other_options_is_refused(frames_folder, encode, tmp_path):
    encode(frames_folder, tmp_path / "latents")
    with pytest.raises(ValueError, match="holds shards made with other options"):
        encode(frames_folder, tmp_path / "latents", kind="sample")


def carried(folder):
    """The members of each sample, as they stand in the tar files, but for the frames themselves."""
    members = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            found = {info.name: tar.extractfile(info).read() for info in tar}
        members |= {name: data for name, data in found.items() if not name.endswith(("frames.npy", "logvar.npy"))}
    return members


def test_actions_states_and_meta_are_carried_along_unchanged(encode, tmp_path):
    convert(FrameSource(FrameSourceConfig(num_actions=4, num_states=3)), tmp_path / "frames")
    _, latents = encode(tmp_path / "frames", tmp_path / "latents", mirror=True)
    source, stored = carried(tmp_path / "frames/train"), carried(tmp_path / "latents/train")
    assert len(source) == 10 * 3
    assert {name: data for name, data in stored.items() if "-mirrored" not in name} == source
    assert {name.replace("-mirrored", ""): data for name, data in stored.items() if "-mirrored" in name} == source
    for sample in samples(latents["train"]):
        assert sample.actions.shape == (6, 4)
        assert (sample.states, sample.meta) == (None, {})  # training reads neither


def test_mirror_images_follow_their_training_samples(frames_folder, autoencoder, encode, tmp_path):
    _, latents = encode(frames_folder, tmp_path / "latents", mirror=True)
    assert (len(latents["train"]), len(latents["test"])) == (20, 2)
    assert latents["train"].manifest.latents.mirrored and not latents["test"].manifest.latents.mirrored
    stored = samples(latents["train"])
    truth = samples(ShardSet.open(frames_folder / "train"))
    assert [sample.key for sample in stored[:2]] == ["train-000", "train-000-mirrored"]
    mirrored = np.ascontiguousarray(truth[3].frames[..., ::-1])
    mirrored[:, 0] *= -1  # the component along the width
    posterior = autoencoder.encode_raw(autoencoder.to_pixels(torch.from_numpy(mirrored)[None]))
    np.testing.assert_allclose(stored[7].frames, posterior.mean[0], rtol=1e-3, atol=1e-3)
    judged = verify_latents(latents["train"], ShardSet.open(frames_folder / "train"), autoencoder, 3)
    assert np.isfinite(judged.scores.summary()["psnr"])


def test_mirroring_is_refused_where_flips_are_not_allowed(encode, tmp_path):
    convert(FrameSource(FrameSourceConfig(augmentations=())), tmp_path / "frames")
    with pytest.raises(ValueError, match="does not allow flips"):
        encode(tmp_path / "frames", tmp_path / "latents", mirror=True)


def test_a_plain_sample_is_one_draw_of_the_posterior(frames_folder, encode, tmp_path):
    _, posterior = encode(frames_folder, tmp_path / "posterior")
    _, draws = encode(frames_folder, tmp_path / "draws", kind="sample", seed=1)
    _, others = encode(frames_folder, tmp_path / "others", kind="sample", seed=2)
    assert not draws["train"].schema.has_logvar
    deviations = []
    for drawn, gaussian in zip(samples(draws["train"]), samples(posterior["train"]), strict=True):
        std = np.exp(gaussian.logvar.astype(np.float64) / 2)
        deviations.append((drawn.frames.astype(np.float64) - gaussian.frames) / std)
    # 10 x 6 x 3 x 4 x 4 = 2880 values: standard errors 0.019 of the mean, 0.013 of the deviation
    assert abs(np.mean(deviations)) < 0.08 and abs(np.std(deviations) - 1) < 0.06
    assert not np.array_equal(samples(draws["train"])[0].frames, samples(others["train"])[0].frames)


def test_shifts_stay_allowed_where_the_autoencoder_is_periodic(frames_folder, encode, tmp_path):
    small_autoencoder(tmp_path / "periodic", periodic=True)
    _, latents = encode(frames_folder, tmp_path / "latents", with_autoencoder=load_autoencoder(tmp_path / "periodic"))
    assert latents["train"].schema.allowed_augmentations == ("periodic_shift",)
    _, latents = encode(frames_folder, tmp_path / "others")
    assert latents["train"].schema.allowed_augmentations == ()


def test_verifying_decodes_what_is_stored(frames_folder, autoencoder, encode, tmp_path):
    _, latents = encode(frames_folder, tmp_path / "latents")
    pixels = ShardSet.open(frames_folder / "test")
    training = ShardSet.open(frames_folder / "train").manifest
    judged = verify_latents(latents["test"], pixels, autoencoder, 2, training=training)
    statistics = training.statistics
    span = max(statistics.max) - min(statistics.min)
    assert judged.scores.summary()["data_range"] == span != data_range(pixels.manifest)
    assert f"dB (range {span:.4g})" in format_reconstruction(judged.scores.summary())
    decoded = [autoencoder.to_frames(autoencoder.history_latents(frames(s)))[0].numpy() for s in samples(pixels)]
    expected = np.mean([psnr(d, s.frames, span).mean() for d, s in zip(decoded, samples(pixels), strict=True)])
    assert judged.scores.summary()["psnr"] == pytest.approx(expected, abs=0.01)  # latents are rounded to float16
    assert len(judged.figure().axes) == 2 * 3 * 7
    with pytest.raises(ValueError, match="was made from other shards"):
        verify_latents(latents["train"], pixels, autoencoder, 1)


def test_all_splits_are_judged_by_one_range(frames_folder, autoencoder, encode, tmp_path):
    _, latents = encode(frames_folder, tmp_path / "latents")
    training, pixels = (ShardSet.open(frames_folder / split) for split in ("train", "test"))
    recorded = autoencoder.description.model_copy(update={"facts": {"scores": {"data_range": 12.5}}})
    trained = replace(autoencoder, description=recorded)  # as its training leaves it
    assert verify_latents(latents["test"], pixels, trained, 1).scores.data_range == 12.5
    manifest = training.manifest

    def of(**facts) -> float:
        return data_range(manifest.model_copy(update={"frames": manifest.frames.model_copy(update=facts)}))

    assert of(bounds=((-1, 3), (0, 4), (0, 1))) == 5
    assert of(bounds=((0, None),) * 3) == of() == max(manifest.statistics.max) - min(manifest.statistics.min)
    assert of(dtype="uint8") == 255


def frames(sample):
    return torch.from_numpy(sample.frames.copy())[None]


def damage_sample(folder, number):
    """Flips a bit in the frames of a sample."""
    shards = ShardSet.open(folder)
    address = shards.address(number)
    index = shards.index(address.shard)
    path = folder / shards.manifest.shards[address.shard].name
    data = bytearray(path.read_bytes())
    data[index.offsets[address.item] + 2000] ^= 1
    path.write_bytes(data)


def test_a_damaged_sample_stops_in_one_line_and_leaves_nothing_half_written(frames_folder, encode, tmp_path):
    damage_sample(frames_folder / "train", 4)
    with pytest.raises(DamagedSampleError, match=r"sample 'train-004' of shard .*train-000001.tar was altered") as info:
        encode(frames_folder, tmp_path / "latents")
    assert "\n" not in str(info.value)
    left = {path.name for path in (tmp_path / "latents" / "train").iterdir() if path.is_file()}
    assert left == {"train-000000.tar", "train-000000.index.json"}


def test_damaged_samples_may_be_left_out_and_are_named(frames_folder, encode, tmp_path):
    damage_sample(frames_folder / "train", 4)
    report, latents = encode(frames_folder, tmp_path / "latents", max_bad_rate=0.2, damaged_samples="skip")
    assert [item.reason.split(" of shard")[0] for item in report.bad_items] == ["sample 'train-004'"]
    assert len(latents["train"]) == 9
    assert latents["train"].manifest.details["rejected_items"] == 1


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((6, 3, 16, 16), "float32", "frames have 3 channels, the autoencoder takes 2"),
        ((6, 2, 18, 16), "float32", "frames of 18x16 are no multiple of 4"),
        ((6, 2, 16, 16), "uint8", "stores uint8, the autoencoder was made for float32"),
    ],
)
def test_frames_that_do_not_fit_are_refused_before_anything_is_written(encode, tmp_path, shape, dtype, message):
    convert(FrameSource(FrameSourceConfig(shape=shape, dtype=dtype)), tmp_path / "frames")
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "frames", tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


def test_latents_are_not_encoded_again(frames_folder, encode, tmp_path):
    encode(frames_folder, tmp_path / "latents")
    with pytest.raises(ValueError, match="holds latents already"):
        encode(tmp_path / "latents", tmp_path / "twice")


def test_the_autoencoder_lies_beside_its_latents_and_is_not_replaced(frames_folder, autoencoder, tmp_path):
    shards = open_splits(str(frames_folder))["train"]
    folder = place_autoencoder(str(tmp_path / "autoencoder"), shards, tmp_path / "latents", 0, CPU)
    assert folder == tmp_path / "latents" / AUTOENCODER_FOLDER
    assert load_autoencoder(folder).description == autoencoder.description
    other = small_autoencoder(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match=f"autoencoder {autoencoder.description.sha256}, now {other.sha256} is asked"):
        place_autoencoder(str(tmp_path / "other"), shards, tmp_path / "latents", 0, CPU)


def _save_as_diffusers_does(folder, **options):
    small_autoencoder(folder / "ours", **options)
    load_autoencoder(folder / "ours").network.save_pretrained(folder)


def test_one_of_ours_that_lost_its_description_is_not_adopted(frames_folder, tmp_path):
    """Its units, edges and identity stood there: taken for a foreign one it would get others."""
    small_autoencoder(tmp_path / "ours", periodic=True)
    (tmp_path / "ours" / "autoencoder.json").unlink()
    shards = open_splits(str(frames_folder))["train"]
    with pytest.raises(FileNotFoundError, match=r"ours lacks autoencoder.json, which its weights were written with"):
        place_autoencoder(str(tmp_path / "ours"), shards, tmp_path / "latents", 0, CPU)
    assert not (tmp_path / "latents").exists()


def test_an_adopted_autoencoder_gets_units_from_the_data(frames_folder, encode, tmp_path):
    """One that was not trained here has no autoencoder.json; its latents then have mean 0 and variance 1."""
    _save_as_diffusers_does(tmp_path / "theirs", seed=3)
    shards = open_splits(str(frames_folder))["train"]
    for _ in range(2):  # the second time it is there
        folder = place_autoencoder(str(tmp_path / "theirs"), shards, tmp_path / "latents", 0, CPU)
    adopted = load_autoencoder(folder)
    assert (adopted.description.spatial_ratio, adopted.description.latent_channels) == (4, 3)
    assert adopted.description.pixel_scale == shards.manifest.scale
    _, latents = encode(frames_folder, tmp_path / "latents", with_autoencoder=adopted)
    statistics = latents["train"].manifest.statistics
    np.testing.assert_allclose(statistics.mean, adopted.description.latent_shift, atol=1e-3)
    np.testing.assert_allclose(statistics.std, adopted.description.latent_scale, rtol=1e-2)
    with pytest.raises(ValueError, match="is asked for"):
        place_autoencoder("owner/other", shards, tmp_path / "latents", 0, CPU)


def test_images_are_adopted_in_the_units_of_published_autoencoders(tmp_path):
    convert(FrameSource(FrameSourceConfig(shape=(6, 3, 16, 16), dtype="uint8")), tmp_path / "frames")
    _save_as_diffusers_does(tmp_path / "theirs", num_channels=3)
    shards = open_splits(str(tmp_path / "frames"))["train"]
    adopted = load_autoencoder(place_autoencoder(str(tmp_path / "theirs"), shards, tmp_path / "latents", 0, CPU))
    assert (
        float(adopted.to_pixels(torch.tensor([0.0, 255.0])[:, None, None, None, None].expand(2, 1, 3, 1, 1)).min())
        == -1
    )
    with pytest.raises(ValueError, match="takes frames of 3 channels"):
        convert(FrameSource(FrameSourceConfig()), tmp_path / "velocity")
        velocity = open_splits(str(tmp_path / "velocity"))["train"]
        place_autoencoder(str(tmp_path / "theirs"), velocity, tmp_path / "other", 0, CPU)
