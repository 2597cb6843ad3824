"""Encodes and is killed, over and over: python kill_encoding.py AUTOENCODER FRAMES OUT WHOLE NUM_KILLS SEED

Encodes FRAMES once into WHOLE, then into OUT in child processes that get SIGKILL after a random time. Whenever OUT is
finished before the kills are used up it is compared with WHOLE and begun again. The children are forked from a process
that has imported everything, so that a kill falls into the encoding and not into the imports. Prints the number of
kills and of comparisons.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from dydiff_dist.autoencoders.encode import encode_shards, open_splits
from dydiff_dist.autoencoders.encode_source import EncodeSource, EncodeSourceConfig
from dydiff_dist.autoencoders.files import load_autoencoder
from dydiff_dist.data.manifest import MANIFEST_NAME


def encode(autoencoder: Path, frames: str, out: Path) -> None:
    config = EncodeSourceConfig(batch_frames=12)
    encode_shards(EncodeSource(open_splits(frames), load_autoencoder(autoencoder), config, num_workers=2), out)


def run_for(seconds: float, *arguments) -> bool:
    """Encodes in a child for so long; returns whether it had to be killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            encode(*arguments)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "a child failed"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def files(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def check_visible(out: Path, whole: Path) -> None:
    """Whatever stands under a final name is complete, also right after a kill."""
    finished = files(whole)
    for path, data in files(out).items():
        assert path.suffix == ".partial" or data == finished[path], path


def main() -> None:
    autoencoder, frames, out, whole = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    num_kills, rng = int(sys.argv[5]), random.Random(int(sys.argv[6]))
    torch.set_num_threads(1)
    load_autoencoder(autoencoder)  # imports diffusers, seconds that no child need spend
    started = time.monotonic()
    assert not run_for(600.0, autoencoder, frames, whole)
    whole_sec = time.monotonic() - started
    kills = comparisons = 0
    while kills < num_kills:
        if run_for(rng.uniform(0, 0.4 * whole_sec), autoencoder, frames, out):
            kills += 1
            check_visible(out, whole)
        elif (out / "train" / MANIFEST_NAME).exists():
            assert files(out) == files(whole)
            comparisons += 1
            shutil.rmtree(out)
    encode(autoencoder, frames, out)
    assert files(out) == files(whole)
    print(f"{kills} kills, {comparisons + 1} comparisons")


if __name__ == "__main__":
    main()
