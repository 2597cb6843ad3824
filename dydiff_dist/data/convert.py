"""Turning a source into shards: planning, parallel writing, restarting, statistics, manifest.

A source (``source.py``) splits its work into shard tasks. Each finished shard leaves a record (its entry, moments and
rejected items), so a conversion that was killed goes on with the shards that are missing, and the result is the same
bytes. The manifest of a split is written last, when all its shards stand.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dydiff_dist import __version__
from dydiff_dist.data.manifest import (
    MANIFEST_NAME,
    FrameSchema,
    Manifest,
    SealedDocument,
    ShardEntry,
    document_bytes,
    read_document,
)
from dydiff_dist.data.members import PLAIN, EncodingConfig
from dydiff_dist.data.shard_writer import Sample, index_path, write_shard
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.data.workers import run_in_processes, run_on_cluster
from dydiff_dist.files import hold_lock, remove_partials, write_bytes

MIN_ITEMS_TO_JUDGE = 20
"""Items seen before the rate of bad ones may stop a conversion."""


class ShardRecord(SealedDocument):
    """What a finished shard leaves behind for a restart."""

    remedy: ClassVar[str] = "delete it, and give the command that made the shards again"

    fingerprint: str
    entry: ShardEntry
    frames: FrameSchema | None
    """None for a shard without samples."""
    moments: dict[str, Any]
    bad_items: tuple[tuple[str, str], ...]
    """(name, reason) of rejected inputs."""
    left_out: dict[str, int] = {}
    """Inputs that the options leave out, by reason."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written. Picklable: it may be written by another process or machine."""

    source: Source[Any]
    task: ShardTask
    out: Path
    encoding: EncodingConfig

    @property
    def tar_path(self) -> Path:
        return self.out / self.task.split / self.task.name

    @property
    def record_path(self) -> Path:
        return self.tar_path.parent / ".records" / (self.tar_path.stem + ".json")

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content that the shard must have: source, options, inputs, and any encoding but the plain."""
        options = self.source.config.model_dump(mode="json")
        content = [self.source.name, options, self.task.split, self.task.name, self.task.items]
        if self.encoding != PLAIN:
            content.append(self.encoding.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


OnShard = Callable[[ShardTask, int, bool], None]
"""Called for each shard: task, number of samples, whether it was written by an earlier conversion."""


@dataclass
class ConversionReport:
    """What one call of ``convert`` did; all numbers are of shards."""

    manifests: dict[str, Path]
    """By split; none as long as shards are left to other parts."""
    num_written: int
    num_reused: int
    """Written by an earlier conversion with the same options."""
    num_elsewhere: int
    """Shards that other parts have still to write; the manifests come with the last of them."""
    bad_items: list[BadItem]
    left_out: Counter[str]
    """Inputs that the options leave out, by reason."""

    def describe(self) -> list[str]:
        """What was done, line by line, without the bad items."""
        lines = [f"left out {count}: {reason}" for reason, count in self.left_out.items()]
        if self.num_reused:
            lines.append(f"reused {self.num_reused} shards that stood complete, wrote {self.num_written}")
        if self.num_elsewhere:
            lines.append(
                f"{self.num_elsewhere} shards are left to other parts; the last one to finish writes the manifests"
            )
        return lines + [f"{_in_words(read_document(path, Manifest))} -> {path}" for path in self.manifests.values()]


def _in_words(manifest: Manifest) -> str:
    """A split in one line."""
    frames, covariance = manifest.frames, manifest.statistics.frame_autocovariance
    shape = "×".join(map(str, (frames.num_frames, *frames.shape)))
    actions = f", {frames.num_actions} actions" if frames.num_actions else ""
    lags = sorted({1, frames.num_frames - 1} - {0}) if frames.num_frames > 1 else []
    memory = ", ".join(f"{covariance[lag] / covariance[0]:.3f} at lag {lag}" for lag in lags)
    size = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{manifest.split}: {manifest.num_samples} samples {shape} {frames.dtype}{actions}, {len(manifest.shards)} "
        f"shards, {size / 1e6:,.1f} MB; {f'frame autocorrelation {memory}' if memory else 'one frame'}"
    )


def parse_part(text: str) -> tuple[int, int]:
    """A part of a conversion, ``i/n``, as two numbers.

    Raises:
        ValueError: not of this form.

    Example:
        >>> parse_part("0/8")
        (0, 8)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--part is {text!r}; write i/n, for example 0/8 for the first of eight jobs")
    return int(number), int(count)


def convert(
    source: Source[Any],
    out: Path,
    num_processes: int = 1,
    max_bad_rate: float = 0.05,
    on_shard: OnShard = lambda task, num_samples, reused: None,
    part: tuple[int, int] = (0, 1),
    cluster: str | None = None,
    encoding: EncodingConfig = PLAIN,
) -> ConversionReport:
    """Writes the shards of ``source`` under ``out/SPLIT/`` and, when all of them stand, a manifest per split.

    Args:
        source: what to convert.
        out: folder of the splits; made if absent.
        num_processes: shards written at the same time.
        max_bad_rate: share of bad inputs above which the conversion stops.
        on_shard: called for each shard of this part, see ``OnShard``.
        part: (i, n) takes every n-th shard from the i-th on, for n jobs that share ``out``; the job that finishes last
            writes the manifests.
        cluster: address of a Dask scheduler whose workers write the shards in place of processes of this machine.
        encoding: how frames are stored.

    Raises:
        ValueError: ``out`` holds shards made with other options, disk space is short, another process writes this part,
            or too many inputs are bad.
    """
    number, count = part
    if not 0 <= number < count:
        raise ValueError(f"part {number}/{count} does not exist; parts count from 0 to {count - 1}")
    jobs = [ShardJob(source, task, out, encoding) for task in source.plan()]
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another conversion is writing to {out}; wait for it or give another --out"
    with hold_lock(out / f".lock-{number}-of-{count}", busy):
        own_jobs = jobs[number::count]
        records, num_reused = _write_missing(own_jobs, out, num_processes, cluster, max_bad_rate, on_shard)
        finished = _standing_records(jobs) if len(own_jobs) < len(jobs) else records
        manifests = {}
        if len(finished) == len(jobs):
            # parts that end at the same time write the manifests one after the other
            with hold_lock(out / ".lock-manifests"):
                manifests = _write_manifests(source, out, encoding, {job.task: finished[job.task] for job in jobs})
    return ConversionReport(
        manifests,
        num_written=len(own_jobs) - num_reused,
        num_reused=num_reused,
        num_elsewhere=len(jobs) - len(finished),
        bad_items=[BadItem(*item) for record in records.values() for item in record.bad_items],
        left_out=sum((Counter(record.left_out) for record in records.values()), Counter()),
    )


def _write_missing(
    jobs: list[ShardJob],
    out: Path,
    num_processes: int,
    cluster: str | None,
    max_bad_rate: float,
    on_shard: OnShard,
) -> tuple[dict[ShardTask, ShardRecord], int]:
    """Writes the shards that do not stand yet; returns the records of all in the plan's order, and how many stood."""
    standing = _standing_records(jobs)
    missing = [job for job in jobs if job.task not in standing]
    _check_disk(out, sum(job.task.estimated_bytes for job in missing))
    for task, record in standing.items():
        on_shard(task, record.entry.num_samples, True)
    for job in missing:
        _prepare_folder(job)
    if missing and (num_processes <= 1 or len(missing) == 1) and cluster is None:
        missing[0].source.expect([job.task for job in missing])
    finished = (
        run_in_processes(_write_shard, missing, num_processes)
        if cluster is None
        else run_on_cluster(_write_shard, missing, cluster)
    )
    records = dict(standing)
    for job, record in finished:
        records[job.task] = record
        _check_bad_rate(records, max_bad_rate)
        on_shard(job.task, record.entry.num_samples, False)
    return {job.task: records[job.task] for job in jobs}, len(standing)


def _write_shard(job: ShardJob) -> ShardRecord:
    """Writes one shard and its record."""
    source, task = job.source, job.task
    bad_items: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    schemas: list[FrameSchema] = []

    def good_samples() -> Iterator[Sample]:
        for item in source.read(task):
            if isinstance(item, LeftOut):
                left_out[item.reason] += 1
                continue
            if isinstance(item, BadItem):
                bad_items.append((item.name, item.reason))
                continue
            schema = source.schema(item)
            _check_sample(item, schema)
            if not schemas:
                schemas.append(schema)
            elif schema != schemas[0]:
                bad_items.append((item.key, f"schema {schema} differs from the shard's {schemas[0]}"))
                continue
            yield item

    entry, moments = write_shard(job.tar_path, good_samples(), source.measured_frames, job.encoding)
    record = ShardRecord(
        fingerprint=job.fingerprint,
        entry=entry,
        frames=schemas[0].model_copy(update={"encoding": job.encoding.encoding}) if schemas else None,
        moments=moments.to_json(),
        bad_items=tuple(bad_items),
        left_out=dict(left_out),
    )
    write_bytes(job.record_path, document_bytes(record))
    return record


def _check_sample(sample: Sample, schema: FrameSchema) -> None:
    """Internal check: what a converter yields is what its schema says."""
    assert sample.frames.shape == (schema.num_frames, *schema.shape), (sample.key, sample.frames.shape, schema)
    assert sample.frames.dtype == np.dtype(schema.dtype), (sample.key, sample.frames.dtype, schema)
    assert (sample.actions is None) == (schema.num_actions == 0), sample.key
    assert (sample.logvar is not None) == schema.has_logvar, sample.key


def _write_manifests(
    source: Source[Any], out: Path, encoding: EncodingConfig, finished: dict[ShardTask, ShardRecord]
) -> dict[str, Path]:
    """Merges the records into one manifest per split, normalised alike, by the training split's statistics."""
    by_split: dict[str, list[ShardRecord]] = {}
    for task, record in finished.items():
        by_split.setdefault(task.split, []).append(record)
    moments = {
        split: FrameMoments.merged(FrameMoments.from_json(record.moments) for record in records)
        for split, records in by_split.items()
    }
    reference = moments.get("train") or next(iter(moments.values()))
    for split, merged in moments.items():
        if merged.num_samples == 0:
            raise ValueError(
                f"split {split!r} has no sample: all of its inputs were rejected; see the list of bad items"
            )
    shift, scale = source.normalisation() or reference.standardisation()
    manifests = {}
    for split, records in by_split.items():
        schemas = [record.frames for record in records if record.frames is not None]
        if any(schema != schemas[0] for schema in schemas):
            raise ValueError(f"split {split!r} has shards of different schemas; convert them to one shape")
        entries = tuple(record.entry for record in records if record.entry.num_samples)
        manifest = Manifest(
            source=source.name,
            split=split,
            tool_version=__version__,
            frames=schemas[0],
            shift=tuple(shift),
            scale=tuple(scale),
            statistics=moments[split].summary(np.asarray(shift), np.asarray(scale)),
            num_samples=sum(entry.num_samples for entry in entries),
            shards=entries,
            latents=source.latents(split),
            details={
                "options": source.config.model_dump(mode="json"),
                "encoding": encoding.model_dump(mode="json"),
                "rejected_items": sum(len(record.bad_items) for record in records),
                "left_out_items": dict(sum((Counter(record.left_out) for record in records), Counter())),
                **source.details(),
            },
        )
        manifests[split] = out / split / MANIFEST_NAME
        remove_partials(manifests[split])
        write_bytes(manifests[split], document_bytes(manifest))
    return manifests


def _standing_records(jobs: list[ShardJob]) -> dict[ShardTask, ShardRecord]:
    """Records of shards that stand complete; an error if they were made with other options or inputs."""
    records = {}
    for job in jobs:
        if not job.record_path.exists():
            continue
        record = read_document(job.record_path, ShardRecord)
        if record.fingerprint != job.fingerprint:
            raise ValueError(
                f"{job.out} holds shards made with other options or from other inputs; give another --out, or "
                "remove that folder first"
            )
        tar_path = job.tar_path
        if tar_path.exists() and tar_path.stat().st_size == record.entry.bytes and index_path(tar_path).exists():
            records[job.task] = record
    return records


def _prepare_folder(job: ShardJob) -> None:
    """Makes the folder of a shard and removes what a killed conversion left of it half-written."""
    job.record_path.parent.mkdir(parents=True, exist_ok=True)
    job.tar_path.with_name(MANIFEST_NAME).unlink(missing_ok=True)
    for path in (job.tar_path, index_path(job.tar_path), job.record_path):
        remove_partials(path)


def _check_disk(out: Path, needed_bytes: int) -> None:
    """One-line error when the disk cannot hold what is still to be written."""
    parent = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise ValueError(
            f"about {needed_bytes / 1e9:.1f} GB are needed under {out}, {free / 1e9:.1f} GB are free; "
            "make room or give another --out"
        )


def _check_bad_rate(records: dict[ShardTask, ShardRecord], max_bad_rate: float) -> None:
    """Stops a conversion whose inputs are mostly unreadable: the cause is more likely a wrong option than bad files."""
    bad = [item for record in records.values() for item in record.bad_items]
    total = len(bad) + sum(record.entry.num_samples for record in records.values())
    if total >= MIN_ITEMS_TO_JUDGE and len(bad) > max_bad_rate * total:
        name, reason = bad[0]
        raise ValueError(
            f"{len(bad)} of {total} inputs are bad, more than the allowed rate {max_bad_rate}; the first is {name}: "
            f"{reason}"
        )
