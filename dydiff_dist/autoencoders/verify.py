"""Decoding stored latents and comparing them with the frames they were made from."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.encode_source import MIRROR_SUFFIX
from dydiff_dist.data.manifest import manifest_identity
from dydiff_dist.data.order import random_permutation
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.evaluation.colors import style_of
from dydiff_dist.evaluation.figures import reconstruction_figure
from dydiff_dist.evaluation.reconstruction import ReconstructionScores

_NUM_PICTURED = 2


def verify_latents(
    latents: ShardSet, frames: ShardSet, autoencoder: Autoencoder, num_samples: int, seed: int = 0
) -> tuple[dict[str, float], Figure]:
    """Scores and a picture of ``num_samples`` random samples decoded from their stored mean.

    Args:
        latents: latent shards made from ``frames`` by ``autoencoder``.
        frames: the pixel shards.
        autoencoder: decodes.
        num_samples: how many; at most as many as there are.
        seed: of the choice.

    Raises:
        ValueError: the latents are another autoencoder's or of other frames.
    """
    check_origin(latents, frames, autoencoder)
    scores, pictured = reconstruction_scores(frames), []
    count = 2 if latents.manifest.latents.mirrored else 1
    for number in random_permutation(seed, 0, 0, len(frames))[:num_samples].tolist():
        truth = frames.read(frames.address(number))
        stored = latents.read(latents.address(count * number))
        if stored.key != truth.key or stored.key.endswith(MIRROR_SUFFIX):
            raise ValueError(
                f"{latents.folder} lacks sample {truth.key!r} of {frames.folder}: damaged samples were left out, so "
                "the two cannot be compared by number"
            )
        decoded = decode_sample(stored, latents, autoencoder)
        scores.add(decoded, truth.frames)
        if len(pictured) < _NUM_PICTURED:
            pictured.append((truth.key, truth.frames, decoded))
    return scores.summary(), reconstruction_figure(pictured, style_of(frames.schema, is_cropped=False))


def check_origin(latents: ShardSet, frames: ShardSet, autoencoder: Autoencoder) -> None:
    """One-line ``ValueError`` if ``latents`` are not those of ``frames`` by ``autoencoder``."""
    check_latents(latents, autoencoder.description.sha256)
    made_from, here = latents.manifest.latents.source_sha256, manifest_identity(frames.manifest)
    if made_from != here:
        raise ValueError(
            f"{latents.folder} was made from other shards than {frames.folder} (manifest {made_from[:12]}…, here "
            f"{here[:12]}…); encode again"
        )


def check_latents(shards: ShardSet, autoencoder_sha256: str) -> None:
    """One-line ``ValueError`` with both hashes if ``shards`` hold latents of another autoencoder."""
    latents = shards.manifest.latents
    if latents is not None and latents.autoencoder_sha256 != autoencoder_sha256:
        raise ValueError(
            f"{shards.folder} holds latents of autoencoder {latents.autoencoder_sha256}, the configured one is "
            f"{autoencoder_sha256}; set autoencoder.path to the one that made them, or encode again"
        )


def decode_sample(stored: Sample, latents: ShardSet, autoencoder: Autoencoder) -> np.ndarray:
    """Frames (S, C, H, W) float32 in stored units of a stored sample of latents."""
    shift, scale = (np.asarray(v, np.float32)[:, None, None] for v in (latents.manifest.shift, latents.manifest.scale))
    mean = (stored.frames.astype(np.float32) - shift) / scale
    return autoencoder.to_frames(torch.from_numpy(mean[None]))[0].numpy()


def reconstruction_scores(frames: ShardSet) -> ReconstructionScores:
    """Empty scores for such frames: the range is 255 for 8 bits, else that of the stored values."""
    schema, statistics = frames.schema, frames.manifest.statistics
    integer = schema.dtype == "uint8"
    data_range = 255.0 if integer else max(statistics.max) - min(statistics.min)
    return ReconstructionScores(data_range, channels=schema.channels, units=schema.units, integer=integer)


def picture_path(folder: Path, split: str) -> Path:
    """Where the picture of a verified split is written."""
    return folder / f"verify_{split}.png"
