"""Looking at shards: a summary, pictures of samples, and a proof that an epoch holds every sample once."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.order import random_permutation
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.stream import TrainStream

MAX_CURVES = 8
"""Channels of a series that are drawn."""


def describe(shards: ShardSet) -> list[str]:
    """The manifest in words, line by line."""
    manifest = shards.manifest
    frames, statistics = manifest.frames, manifest.statistics
    size = sum(entry.bytes for entry in manifest.shards)
    counts = [entry.num_samples for entry in manifest.shards]
    S, (C, H, W) = frames.num_frames, frames.shape
    lines = [
        f"{shards.folder}: {manifest.source}, split {manifest.split}, made by dydiff_dist {manifest.tool_version}",
        f"samples  {len(shards)} in {len(counts)} shards of {min(counts)} to {max(counts)}, {size / 1e6:,.1f} MB",
        f"frames   {S} of {C}x{H}x{W} {frames.dtype} ({frames.encoding}), {frames.units or 'no units given'}",
        f"actions  {frames.num_actions or 'none'}",
        f"allowed  {', '.join(frames.allowed_augmentations) or 'no augmentation'}",
    ]
    if frames.latitudes:
        lines.append(f"rows     latitude {frames.latitudes[0]:g} to {frames.latitudes[-1]:g} degrees north")
    if manifest.independent is not None:
        of_one = "each sample" if manifest.independent == "case" else "samples whose keys agree up to the last hyphen"
        lines.append(f"one case {of_one}: one independent observation")
    stored = "stored" if frames.sample_scaling == "none" else "stored / mean |history|"
    names = frames.channels or tuple(str(channel) for channel in range(C))
    for channel, name in enumerate(names):
        low, high = frames.limits()
        within = f" within {low[channel].item():g} to {high[channel].item():g}" if frames.bounds else ""
        lines.append(
            f"channel  {name}: mean {statistics.mean[channel]:.4g}, std {statistics.std[channel]:.4g}, "
            f"min {statistics.min[channel]:.4g}, max {statistics.max[channel]:.4g}{within}; network units = "
            f"({stored} - {manifest.shift[channel]:.4g}) / {manifest.scale[channel]:.4g}"
        )
    covariance = statistics.frame_autocovariance
    shown = ", ".join(f"{lag}: {covariance[lag]:.3f}" for lag in sorted({0, 1, 2, 4, 8, 11, S - 1}) if lag < S)
    lines.append(f"memory   frame autocovariance in network units by lag: {shown}")
    rejected = manifest.details.get("rejected_items", 0)
    lines.append(f"rejected {rejected} inputs while converting")
    return lines


@dataclass(frozen=True)
class AuditResult:
    """What one epoch looked like over all ranks."""

    num_samples: int
    seen_once: int
    seen_more: list[str]
    """Keys seen more than once."""
    missing: int
    steps_per_rank: list[int]

    @property
    def exact(self) -> bool:
        """Every sample once, and the same number of steps on every rank."""
        return self.seen_once == self.num_samples and len(set(self.steps_per_rank)) == 1

    def __str__(self) -> str:
        return (
            f"{self.seen_once} of {self.num_samples} samples seen exactly once, {len(self.seen_more)} more than once, "
            f"{self.missing} never; {min(self.steps_per_rank)} to {max(self.steps_per_rank)} steps per rank: "
            f"{'exact' if self.exact else 'NOT EXACT'}"
        )


def audit(shards: ShardSet, world_size: int, num_workers: int, epoch: int = 0, seed: int = 0) -> AuditResult:
    """Reads one epoch as ``world_size`` ranks with ``num_workers`` workers each would, and counts every key.

    The global batch is one sample per rank. The epoch's end seldom falls on a batch's end: the batches that hold its
    first and last samples are read whole, and positions of the neighbouring epochs are left out of the count.

    Raises:
        ValueError: there is no such number of ranks or workers.
    """
    if world_size < 1 or num_workers < 0:
        raise ValueError(f"--audit {world_size} {num_workers}: give at least 1 rank and at least 0 workers")
    total = len(shards)
    config = DataConfig(
        train=str(shards.folder),
        num_history_frames=1,
        num_future_frames=max(1, shards.schema.num_frames - 1),
        num_workers=num_workers,
    )
    first_step, last_step = epoch * total // world_size, -(-(epoch + 1) * total // world_size)
    counts: Counter[str] = Counter()
    steps = []
    for rank in range(world_size):
        stream = TrainStream(
            shards, config, seed, world_size, 1, rank, world_size, start_position=first_step * world_size
        )
        batches = list(_take(stream, last_step - first_step))
        steps.append(len(batches))
        for key, position in batches:
            if epoch * total <= position < (epoch + 1) * total:
                counts[key] += 1
    once = sum(count == 1 for count in counts.values())
    more = [key for key, count in counts.items() if count > 1]
    return AuditResult(total, once, more, total - len(counts), steps)


def _take(stream: TrainStream, count: int) -> Iterator[tuple[str, int]]:
    for batch in islice(iter(stream), count):
        yield batch["key"][0], int(batch["sample_index"][0])


def save_pictures(shards: ShardSet, path: Path, num_samples: int = 4, num_frames: int = 8, seed: int = 0) -> None:
    """Writes a picture of random samples: frames side by side, or curves of series, whose frames have one pixel.

    Args:
        shards: to draw from.
        path: of the picture; its ending says of which kind.
        num_samples: rows; each of them per channel unless the channels are colours.
        num_frames: frames in a row, evenly spaced.
        seed: chooses the samples.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    chosen = random_permutation(seed, 0, 0, len(shards))[:num_samples]
    samples = [shards.read(shards.address(int(number))) for number in chosen]
    is_series = shards.schema.shape[1:] == (1, 1)
    figure = _draw_series(shards, samples) if is_series else _draw_frames(shards, samples, num_frames)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_frames(shards: ShardSet, samples: list[Sample], num_frames: int) -> Any:
    """Up to ``num_frames`` frames, evenly spaced: a row per sample (RGB) or per sample and channel."""
    from matplotlib import pyplot as plt

    channels = [None] if shards.schema.is_rgb else list(range(shards.schema.shape[0]))
    rows = [(sample, channel) for sample in samples for channel in channels]
    shown = np.unique(np.linspace(0, shards.schema.num_frames - 1, num_frames).round().astype(int))
    size = (1.6 * len(shown), 1.7 * len(rows))
    figure, axes = plt.subplots(len(rows), len(shown), figsize=size, squeeze=False, layout="constrained")
    for (sample, channel), row_axes in zip(rows, axes, strict=True):
        for frame, axis in zip(shown, row_axes, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"frame {frame}", fontsize=7)
            _draw(axis, shards, sample.frames[frame], channel)
        name = "" if channel is None else f"\n{dict(enumerate(shards.schema.channels)).get(channel, channel)}"
        row_axes[0].set_ylabel(f"{sample.key}{name}", fontsize=6)
    return figure


def _draw_series(shards: ShardSet, samples: list[Sample]) -> Any:
    """Curves over frames, a row per sample and a column for each of the first channels, in stored units."""
    from matplotlib import pyplot as plt

    names = dict(enumerate(shards.schema.channels))
    num_channels = min(shards.schema.shape[0], MAX_CURVES)
    size = (2.0 * num_channels + 0.6, 1.6 * len(samples))
    figure, axes = plt.subplots(len(samples), num_channels, figsize=size, squeeze=False, layout="constrained")
    for sample, row_axes in zip(samples, axes, strict=True):
        for channel, axis in enumerate(row_axes):
            axis.plot(sample.frames[:, channel, 0, 0], linewidth=1)
            axis.set_title(str(names.get(channel, channel)), fontsize=7)
            axis.tick_params(labelsize=6)
        row_axes[0].set_ylabel(sample.key, fontsize=6)
    return figure


def _draw(axis: Any, shards: ShardSet, frame_CHW: np.ndarray, channel: int | None) -> None:
    """One frame: colours as they are, or one channel in a scale common to all samples, around 0 where it has signs."""
    low, high = shards.manifest.statistics.min, shards.manifest.statistics.max
    if channel is None:
        bounds = [end for pair in shards.schema.bounds for end in pair if end is not None]
        ends = bounds or ([0, 255] if shards.schema.dtype == "uint8" else [*low, *high])
        axis.imshow(((frame_CHW.transpose(1, 2, 0) - min(ends)) / ((max(ends) - min(ends)) or 1.0)).clip(0, 1))
        return
    bound = max(abs(low[channel]), abs(high[channel]))
    signed = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
    positive = {"cmap": "viridis", "vmin": low[channel], "vmax": high[channel]}
    axis.imshow(frame_CHW[channel].astype(np.float32), **(signed if low[channel] < 0 else positive))
