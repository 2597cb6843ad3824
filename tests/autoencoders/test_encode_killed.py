"""Encoding killed at random moments ends in the same bytes, and the command works as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frame_source import FrameSource, FrameSourceConfig
from small_autoencoders import small_autoencoder

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "encode_latents.py")


def run(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.long
@pytest.mark.distributed
def test_twenty_kills_leave_identical_output(tmp_path):
    convert(FrameSource(FrameSourceConfig(train=(4,) * 8, test=(3, 3))), tmp_path / "frames")
    small_autoencoder(tmp_path / "autoencoder")
    script = Path(__file__).with_name("kill_encoding.py")
    folders = [tmp_path / name for name in ("autoencoder", "frames", "pieces", "whole")]
    killed = run(sys.executable, script, *folders, 20, 0)
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.startswith("20 kills"), killed.stdout


@pytest.mark.long
@pytest.mark.distributed
def test_the_command_encodes_with_two_ranks_verifies_and_goes_on(tmp_path):
    convert(FrameSource(FrameSourceConfig()), tmp_path / "frames")
    small_autoencoder(tmp_path / "autoencoder")
    arguments = [tmp_path / "autoencoder", "--shards", tmp_path / "frames", "--out", tmp_path / "latents"]
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2"]
    first = run(*torchrun, TOOL, *arguments, "--verify", "2")
    assert first.returncode == 0, first.stderr
    assert "frames/s" in first.stdout and "verified 2 of train: PSNR" in first.stdout
    assert (tmp_path / "latents" / "verify_train.png").stat().st_size > 10_000
    again = run(sys.executable, TOOL, *arguments)
    assert again.returncode == 0 and "reused 4 shards that stood complete, wrote 0" in again.stdout, again.stderr


def refused(*arguments):
    """What the command says of an input that it must refuse: one line and no more."""
    result = run(sys.executable, TOOL, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_inputs_that_do_not_fit_are_one_line_each_and_leave_nothing_half_written(tmp_path):
    frames, autoencoder, out = (tmp_path / name for name in ("frames", "autoencoder", "latents"))
    convert(FrameSource(FrameSourceConfig()), frames)
    small_autoencoder(autoencoder)

    convert(FrameSource(FrameSourceConfig(shape=(6, 3, 16, 16))), tmp_path / "colour")
    line = refused(autoencoder, "--shards", tmp_path / "colour", "--out", tmp_path / "none")
    assert "colour/train: frames have 3 channels, the autoencoder takes 2" in line
    assert not list((tmp_path / "none").rglob("*.tar*"))

    assert run(sys.executable, TOOL, autoencoder, "--shards", frames, "--out", out).returncode == 0
    before, other = contents(out), small_autoencoder(tmp_path / "finer", levels=2)
    line = refused(tmp_path / "finer", "--shards", frames, "--out", out)
    assert f"now {other.sha256} is asked for; give another --out" in line
    assert contents(out) == before

    shards = ShardSet.open(frames / "train")
    path, index = frames / "train" / shards.manifest.shards[1].name, shards.index(1)
    data = bytearray(path.read_bytes())
    data[index.offsets[1] + 2000] ^= 1
    path.write_bytes(data)
    line = refused(autoencoder, "--shards", frames, "--out", tmp_path / "stopped")
    assert "sample 'train-004' of shard" in line and "was altered" in line
    left = {path.name for path in (tmp_path / "stopped" / "train").iterdir() if path.is_file()}
    assert left == {"train-000000.tar", "train-000000.index.json"}


@pytest.mark.slow
def test_without_arguments_the_command_says_what_it_needs(tmp_path):
    shown = run(sys.executable, TOOL)
    assert shown.returncode == 2
    assert "tools/encode_latents.py runs/vae_turbulence_small --shards shards/turbulence" in shown.stdout
    missing = run(sys.executable, TOOL, "nowhere", "--shards", tmp_path, "--out", tmp_path / "out")
    assert missing.returncode == 2 and missing.stderr.startswith("error: no shards in"), missing.stderr
    assert "Traceback" not in missing.stderr
