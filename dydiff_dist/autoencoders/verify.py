"""Decoding stored latents and comparing them with the frames they were made from."""

import numpy as np
import torch
from matplotlib.figure import Figure

from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.encode_source import MIRROR_SUFFIX
from dydiff_dist.data.manifest import LatentsSchema, Manifest, manifest_identity
from dydiff_dist.data.order import random_permutation
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.evaluation.colors import style_of
from dydiff_dist.evaluation.figures import reconstruction_figure
from dydiff_dist.evaluation.reconstruction import ReconstructionScores

_NUM_PICTURED = 2


class Reconstructions:
    """Scores of decoded samples, and the first of them for a picture.

    Args:
        frames: the shards of the originals.
        data_range: of the scores, in stored units; all splits of a data set must share it (``data_range``).
    """

    def __init__(self, frames: ShardSet, data_range: float):
        schema = frames.schema
        integer = schema.dtype == "uint8"
        self.scores = ReconstructionScores(data_range, channels=schema.channels, units=schema.units, integer=integer)
        self._schema, self._pictured = schema, list[tuple[str, np.ndarray, np.ndarray]]()

    def add(self, truth: Sample, decoded: np.ndarray) -> None:
        """Scores one sample, (S, C, H, W) in stored units."""
        self.scores.add(decoded, truth.frames)
        if len(self._pictured) < _NUM_PICTURED:
            self._pictured.append((truth.key, truth.frames, decoded))

    def figure(self) -> Figure:
        """Originals, decoded frames and their difference."""
        return reconstruction_figure(self._pictured, style_of(self._schema, is_cropped=False))


def data_range(training: Manifest) -> float:
    """Largest minus smallest value of frames, for PSNR and SSIM of any split, in stored units: 255 of 8 bits, what the
    schema bounds them to, else what the training split holds."""
    frames, statistics = training.frames, training.statistics
    if frames.dtype == "uint8":
        return 255.0
    low, high = (limit.ravel().tolist() for limit in frames.limits())
    span = max(high) - min(low)
    return span if np.isfinite(span) else max(statistics.max) - min(statistics.min)


def verify_latents(
    latents: ShardSet,
    frames: ShardSet,
    autoencoder: Autoencoder,
    num_samples: int,
    seed: int = 0,
    training: Manifest | None = None,
) -> Reconstructions:
    """``num_samples`` random samples decoded from their stored mean.

    Args:
        latents: latent shards made from ``frames`` by ``autoencoder``.
        frames: the pixel shards.
        autoencoder: decodes.
        num_samples: how many; at most as many as there are.
        seed: of the choice.
        training: manifest of the training split, for the range of the scores where the autoencoder's record does not
            hold it; None takes that of ``frames``.

    Raises:
        ValueError: the latents are another autoencoder's or of other frames.
    """
    origin = _check_origin(latents, frames, autoencoder)
    known = autoencoder.description.facts.get("scores", {}).get("data_range")
    judged = Reconstructions(frames, known or data_range(training or frames.manifest))
    count = 2 if origin.mirrored else 1
    shift, scale = (np.asarray(v, np.float32)[:, None, None] for v in (latents.manifest.shift, latents.manifest.scale))
    for number in random_permutation(seed, 0, 0, len(frames))[:num_samples].tolist():
        truth = frames.read(frames.address(number))
        stored = latents.read(latents.address(count * number))
        if stored.key != truth.key or stored.key.endswith(MIRROR_SUFFIX):
            raise ValueError(
                f"{latents.folder} lacks sample {truth.key!r} of {frames.folder}: damaged samples were left out, so "
                "the two cannot be compared by number"
            )
        mean = torch.from_numpy((stored.frames[None].astype(np.float32) - shift) / scale)
        judged.add(truth, autoencoder.to_frames(mean)[0].numpy())
    return judged


def _check_origin(latents: ShardSet, frames: ShardSet, autoencoder: Autoencoder) -> LatentsSchema:
    """What the latents' manifest says of them; one-line ``ValueError`` unless they are those of ``frames``."""
    check_latents(latents, autoencoder.description.sha256)
    origin = latents.manifest.latents
    if origin is None:
        raise ValueError(f"{latents.folder} holds frames, no latents; give shards that encode_latents wrote")
    here = manifest_identity(frames.manifest)
    if origin.source_sha256 != here:
        raise ValueError(
            f"{latents.folder} was made from other shards than {frames.folder} (manifest {origin.source_sha256[:12]}…, "
            f"here {here[:12]}…); encode again"
        )
    return origin


def check_latents(shards: ShardSet, autoencoder_sha256: str) -> None:
    """One-line ``ValueError`` with both hashes if ``shards`` hold latents of another autoencoder."""
    latents = shards.manifest.latents
    if latents is not None and latents.autoencoder_sha256 != autoencoder_sha256:
        raise ValueError(
            f"{shards.folder} holds latents of autoencoder {latents.autoencoder_sha256}, the configured one is "
            f"{autoencoder_sha256}; set autoencoder.path to the one that made them, or encode again"
        )
