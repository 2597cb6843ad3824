"""Turning a source into shards: planning, parallel writing, restarting, statistics, manifest.

A source splits its work into shard tasks. Each finished shard leaves a record (its entry, moments and rejected
items), so a conversion that was killed goes on with the shards that are missing, and the result is the same bytes.
The manifest of a split is written last, when all its shards stand.
"""

import fcntl
import hashlib
import json
import multiprocessing
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dydiff_dist import __version__
from dydiff_dist.data.manifest import (
    MANIFEST_NAME,
    FrameSchema,
    LatentsSchema,
    Manifest,
    ShardEntry,
    document_bytes,
    read_document,
    write_atomically,
)
from dydiff_dist.data.shard_writer import Sample, index_path, write_shard
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.strict_config import StrictConfig

MIN_ITEMS_TO_JUDGE = 20
"""Items seen before the rate of bad ones may stop a conversion."""


@dataclass(frozen=True)
class BadItem:
    """An input that could not be converted, by name, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class ShardTask:
    """The input of one shard; ``items`` are plain JSON values that the source understands."""

    split: str
    name: str
    items: tuple[Any, ...]
    estimated_bytes: int


class Source(ABC):
    """What a converter provides. Instances are picklable: shards are written in other processes."""

    name: str
    """As on the command line."""
    config: StrictConfig
    """The options, for the fingerprint and the manifest."""

    @abstractmethod
    def plan(self) -> list[ShardTask]:
        """All shards of all splits, in a fixed order."""

    @abstractmethod
    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        """The samples of one shard, in a fixed order."""

    @abstractmethod
    def schema(self, sample: Sample) -> FrameSchema:
        """The schema of the data set, given any of its samples."""

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Fixed (shift, scale) per channel, or None to take mean and standard deviation of the training split."""
        return None

    def latents(self, split: str) -> LatentsSchema | None:
        """What the manifest of ``split`` says of an autoencoder; None where frames are the data themselves."""
        return None

    def expect(self, tasks: list[ShardTask]) -> None:  # noqa: B027 - most sources have nothing to do here
        """Hears which shards this process is about to read, in order, so that a source may read ahead."""

    def measured_frames(self, sample: Sample) -> np.ndarray:
        """What the statistics are taken of, in place of the stored frames: those of data with ``sample_scaling``
        divided by the sample's scale."""
        return sample.frames

    def details(self) -> dict[str, Any]:
        """Facts for the manifest beyond the options."""
        return {}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """What the plan comes to, line by line, for the user to check before the work starts."""
        return []


class ShardRecord(StrictConfig):
    """What a finished shard leaves behind for a restart."""

    fingerprint: str
    entry: ShardEntry
    frames: FrameSchema | None
    """None for a shard without samples."""
    moments: dict[str, Any]
    bad_items: tuple[tuple[str, str], ...]
    """(name, reason) of rejected inputs."""


@dataclass
class ConversionReport:
    """What a conversion did."""

    manifests: dict[str, Path]
    num_written: int
    num_reused: int
    num_elsewhere: int
    """Shards that other parts have still to write; the manifests come with the last of them."""
    bad_items: list[BadItem]


def convert(
    source: Source,
    out: Path,
    num_processes: int = 1,
    max_bad_rate: float = 0.05,
    on_shard: Callable[[ShardTask, int, bool], None] = lambda task, num_samples, reused: None,
    part: tuple[int, int] = (0, 1),
) -> ConversionReport:
    """Writes the shards of ``source`` under ``out/SPLIT/`` and, when all of them stand, a manifest per split.

    Args:
        source: what to convert.
        out: folder of the splits; made if absent.
        num_processes: shards written at the same time.
        max_bad_rate: share of bad inputs above which the conversion stops.
        on_shard: hears of each shard of this part: task, samples, whether it stood already.
        part: (i, n) takes every n-th shard from the i-th on, for n jobs that share ``out``; the job that finishes last
            writes the manifests.

    Raises:
        ValueError: ``out`` holds shards made with other options, disk space is short, another process writes this part,
            or too many inputs are bad.
    """
    number, count = part
    if not 0 <= number < count:
        raise ValueError(f"part {number}/{count} does not exist; parts count from 0 to {count - 1}")
    tasks = source.plan()
    with _only_writer(out, part):
        return _convert(source, tasks, tasks[number::count], out, num_processes, max_bad_rate, on_shard)


def _convert(
    source: Source,
    tasks: list[ShardTask],
    own_tasks: list[ShardTask],
    out: Path,
    num_processes: int,
    max_bad_rate: float,
    on_shard: Callable[[ShardTask, int, bool], None],
) -> ConversionReport:
    """Writes what is missing of ``own_tasks``, and the manifests once all ``tasks`` stand."""
    fingerprints = {task: _fingerprint(source, task) for task in tasks}
    standing = _standing_records(out, {task: fingerprints[task] for task in own_tasks})
    missing = [task for task in own_tasks if task not in standing]
    _check_disk(out, sum(task.estimated_bytes for task in missing))
    for task, record in standing.items():
        on_shard(task, record.entry.num_samples, True)
    for task in missing:
        _prepare_folder(out, task)
    records = dict(standing)
    jobs = [(source, task, out, fingerprints[task]) for task in missing]
    for task, record in _run(jobs, num_processes):
        records[task] = record
        _check_bad_rate(records, max_bad_rate)
        on_shard(task, record.entry.num_samples, False)
    bad_items = [BadItem(*item) for task in own_tasks for item in records[task].bad_items]
    finished = _standing_records(out, fingerprints) if len(own_tasks) < len(tasks) else records
    manifests = {}
    if len(finished) == len(tasks):
        manifests = _write_manifests(source, out, [(task, finished[task]) for task in tasks])
    return ConversionReport(manifests, len(missing), len(standing), len(tasks) - len(finished), bad_items)


def _run(jobs: list[tuple], num_processes: int) -> Iterator[tuple[ShardTask, ShardRecord]]:
    """Runs the jobs and yields (task, record) as they finish."""
    if num_processes <= 1 or len(jobs) <= 1:
        if jobs:
            jobs[0][0].expect([job[1] for job in jobs])
        for job in jobs:
            yield job[1], _write_task(*job)
        return
    # A fresh interpreter per process: forking a process that already runs torch's threads can deadlock.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(num_processes, len(jobs)), context, initializer=_init_process) as pool:
        futures = {pool.submit(_write_task, *job): job[1] for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            # Without this the shards in the making would be finished first, minutes after Ctrl-C or an error.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _init_process() -> None:
    """One thread per process, as several share the cores and OpenMP's spinning threads would fight for them; and Ctrl-C
    is the parent's to handle."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_task(source: Source, task: ShardTask, out: Path, fingerprint: str) -> ShardRecord:
    """Writes one shard and its record."""
    bad_items: list[tuple[str, str]] = []
    schemas: list[FrameSchema] = []
    tar_path = out / task.split / task.name

    def good_samples() -> Iterator[Sample]:
        for item in source.read(task):
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

    entry, moments = write_shard(tar_path, good_samples(), source.measured_frames)
    record = ShardRecord(
        fingerprint=fingerprint,
        entry=entry,
        frames=schemas[0] if schemas else None,
        moments=moments.to_json(),
        bad_items=tuple(bad_items),
    )
    write_atomically(_record_path(tar_path), document_bytes(record))
    return record


def _check_sample(sample: Sample, schema: FrameSchema) -> None:
    """Internal check: what a converter yields is what its schema says."""
    assert sample.frames.shape == (schema.num_frames, *schema.shape), (sample.key, sample.frames.shape, schema)
    assert sample.frames.dtype == np.dtype(schema.dtype), (sample.key, sample.frames.dtype, schema)
    assert (sample.actions is None) == (schema.num_actions == 0), sample.key
    assert (sample.logvar is not None) == schema.has_logvar, sample.key


def _write_manifests(source: Source, out: Path, finished: list[tuple[ShardTask, ShardRecord]]) -> dict[str, Path]:
    """Merges the records into one manifest per split. All splits are normalised by the training split's statistics."""
    by_split: dict[str, list[ShardRecord]] = {}
    for task, record in finished:
        by_split.setdefault(task.split, []).append(record)
    moments = {split: _merged_moments(records) for split, records in by_split.items()}
    reference = moments.get("train") or next(iter(moments.values()))
    for split, merged in moments.items():
        if merged.num_samples == 0:
            raise ValueError(
                f"split {split!r} has no sample: all of its inputs were rejected; see the list of bad items"
            )
    shift, scale = source.normalisation() or _standardisation(reference)
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
                "rejected_items": sum(len(record.bad_items) for record in records),
                **source.details(),
            },
        )
        path = out / split / MANIFEST_NAME
        write_atomically(path, document_bytes(manifest))
        manifests[split] = path
    return manifests


def _merged_moments(records: list[ShardRecord]) -> FrameMoments:
    merged = FrameMoments()
    for record in records:
        merged.merge(FrameMoments.from_json(record.moments))
    return merged


def _standardisation(moments: FrameMoments) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale that give each channel mean 0 and variance 1; a constant channel keeps scale 1."""
    mean, std = moments.mean_and_std()
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _fingerprint(source: Source, task: ShardTask) -> str:
    """Identifies the content that a shard must have: source, options, inputs."""
    content = [source.name, source.config.model_dump(mode="json"), task.split, task.name, task.items]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _standing_records(out: Path, fingerprints: dict[ShardTask, str]) -> dict[ShardTask, ShardRecord]:
    """Records of shards that stand complete in ``out``; an error if they were made with other options or inputs."""
    records = {}
    for task, fingerprint in fingerprints.items():
        tar_path = out / task.split / task.name
        if not _record_path(tar_path).exists():
            continue
        record = read_document(_record_path(tar_path), ShardRecord)
        if record.fingerprint != fingerprint:
            raise ValueError(
                f"{out} holds shards made with other options or from other inputs; give another --out, or remove that "
                "folder first"
            )
        stands = tar_path.exists() and tar_path.stat().st_size == record.entry.bytes and index_path(tar_path).exists()
        if stands:
            records[task] = record
    return records


@contextmanager
def _only_writer(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """Holds a lock on a part of ``out``; the system drops it when the process ends, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f".lock-{part[0]}-of-{part[1]}", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another conversion is writing to {out}; wait for it or give another --out") from None
        yield


def _prepare_folder(out: Path, task: ShardTask) -> None:
    """Makes the folder of a shard and removes what a killed conversion left of it half-written."""
    folder = out / task.split
    (folder / ".records").mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    stem = Path(task.name).stem
    for leftover in [*folder.glob(f"{stem}.*.tmp"), *folder.glob(f".records/{stem}.*.tmp")]:
        leftover.unlink()


def _record_path(tar_path: Path) -> Path:
    return tar_path.parent / ".records" / (tar_path.stem + ".json")


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
