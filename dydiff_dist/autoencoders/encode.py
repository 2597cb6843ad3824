"""Encoding a folder of shards: finds shards and autoencoder, and encodes what is missing."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dydiff_dist.autoencoders.adopt import adopt_autoencoder
from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.description import (
    DESCRIPTION_NAME,
    AutoencoderDescription,
    find_autoencoder,
    read_description,
)
from dydiff_dist.autoencoders.encode_source import EncodeSource
from dydiff_dist.autoencoders.files import copy_autoencoder, load_autoencoder
from dydiff_dist.data.convert import ConversionReport, convert
from dydiff_dist.data.manifest import MANIFEST_NAME
from dydiff_dist.data.remote import RemoteConfig
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import ShardTask

SPLITS = ("train", "valid", "test")
AUTOENCODER_FOLDER = "autoencoder"
"""Where the encoded shards keep the autoencoder that made them, so that they are complete in themselves."""

_ADOPTION_TIMEOUT_SEC = 1800
_GPU_WORKERS = 3
"""Threads that read and copy while the GPU encodes."""


def open_splits(path: str, remote: RemoteConfig | None = None) -> dict[str, ShardSet]:
    """The pixel shards by split: of a folder with split folders in it, of one split's folder, or of a URL of either.

    Raises:
        FileNotFoundError: no shards there.
    """
    if "://" not in path and (Path(path) / MANIFEST_NAME).is_file():
        shards = ShardSet.open(path, remote=remote)
        return {shards.manifest.split: shards}
    found = {}
    for split in SPLITS:
        inside = f"{path.rstrip('/')}/{split}"
        if "://" in path:
            try:
                found[split] = ShardSet.open(inside, remote=remote)
            except FileNotFoundError:
                continue
        elif (Path(inside) / MANIFEST_NAME).is_file():
            found[split] = ShardSet.open(inside, remote=remote)
    if not found:
        raise FileNotFoundError(
            f"no shards in {path!r}: expected {MANIFEST_NAME} there or in {', '.join(SPLITS)}; make them with "
            "tools/make_shards.py"
        )
    return found


def place_autoencoder(name: str, shards: ShardSet, out: Path, rank: int, device: torch.device) -> Path:
    """Puts the autoencoder to be used into ``out/autoencoder``; rank 0 does it, the others wait for it.

    Args:
        name: an autoencoder's folder, or anything ``fetch_network`` knows; such a one gets its latent units from
            ``shards``.
        shards: training data.
        out: folder of the latents.
        rank: this process.
        device: where units are measured.

    Raises:
        FileNotFoundError, ValueError: no such autoencoder, or another one's latents are in ``out``.
    """
    folder = out / AUTOENCODER_FOLDER
    try:
        source = find_autoencoder(name)
    except FileNotFoundError:
        source = None
    if rank == 0:
        if (folder / DESCRIPTION_NAME).is_file():
            _check_same(read_description(folder), name, source, out)
        elif source is not None:
            copy_autoencoder(source, folder)
        else:
            adopt_autoencoder(name, shards, folder, device=device)
        return folder
    deadline = time.monotonic() + _ADOPTION_TIMEOUT_SEC
    while not (folder / DESCRIPTION_NAME).is_file():
        if time.monotonic() > deadline:
            raise ValueError(f"{folder} did not appear; is {out} a folder that all ranks share?")
        time.sleep(0.2)
    return folder


def _check_same(standing: AutoencoderDescription, name: str, source: Path | None, out: Path) -> None:
    """The autoencoder in ``out`` is the one asked for: by its hash, or by the name it was fetched under."""
    have = standing.sha256 if source is not None else standing.facts.get("fetched_from")
    asked = name if source is None else read_description(source).sha256
    if asked != have:
        raise ValueError(
            f"{out} holds latents of autoencoder {have}, now {asked} is asked for; give another --out, or remove that "
            "folder first"
        )


def encode_shards(
    source: EncodeSource,
    out: Path,
    part: tuple[int, int] = (0, 1),
    max_bad_rate: float = 0.0,
    on_shard: Callable[[ShardTask, int, bool], None] = lambda task, num_samples, reused: None,
) -> ConversionReport:
    """Encodes what is missing in ``out``, and closes the source.

    Args:
        source: shards of frames with their autoencoder.
        out: folder of the latents, a folder for each split in it.
        part: (number of this process, how many share the shards); the last one writes the manifests.
        max_bad_rate: share of samples that may be left out.
        on_shard: hears of each shard, as ``convert`` says.

    Raises:
        ValueError: ``out`` holds latents made with other options, or too many samples are bad.
    """
    try:
        return convert(source, out, max_bad_rate=max_bad_rate, on_shard=on_shard, part=part)
    finally:
        source.close()


def open_autoencoder(
    folder: Path, device: torch.device, precision: str, *, max_frames: int, compiled: bool = False
) -> Autoencoder:
    """The autoencoder for encoding: its encoder compiled where asked for, convolutions in the layout that suits."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    autoencoder = load_autoencoder(folder, device=device, dtype=dtype, max_frames=max_frames)
    if autoencoder.is_framewise and device.type == "cuda":
        autoencoder.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    if compiled:
        autoencoder.network.encoder.compile()
    return autoencoder


def worker_threads(device: torch.device, local_world_size: int) -> int:
    """Threads that read and encode in one process: on a CPU one for each of its cores, each calculating alone."""
    if device.type == "cuda":
        return _GPU_WORKERS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_world_size)
