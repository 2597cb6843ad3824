"""Turning a source into shards: planning, parallel writing, restarting, and what the user is told of it.

A source (``source.py``) splits its work into shard tasks. Each finished shard leaves a record (``shard_jobs.py``), so a
conversion that was killed goes on with the shards that are missing, damaged, or made from inputs that have changed,
and the result is the same bytes. The manifests are written last, when all shards stand (``split_manifests.py``).
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dydiff_dist.data.inputs import describe_aside, input_state
from dydiff_dist.data.manifest import Manifest, read_document
from dydiff_dist.data.members import PLAIN, EncodingConfig
from dydiff_dist.data.shard_jobs import FirstSample, ShardJob, ShardRecord, json_hash, write_shard_of
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source
from dydiff_dist.data.split_manifests import Records, agreed_sample, bad_items, planned_aside, write_manifests
from dydiff_dist.data.standing import leftovers, prepare_folder, remove, standing_records
from dydiff_dist.data.workers import run_in_processes, run_on_cluster
from dydiff_dist.files import hold_lock

MIN_ITEMS_TO_JUDGE = 20
"""Items seen before the rate of bad ones may stop a conversion that goes on."""
DEFAULT_BAD_RATE = 0.05
"""Share of bad inputs that is taken, where the user does not say."""

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
    rewritten: Counter[str] = field(default_factory=Counter)
    """Shards that stood and were written anew, by reason."""
    not_read: list[LeftOut] = field(default_factory=list)
    """What lay among the inputs and is none, by name."""
    missing_splits: dict[str, str] = field(default_factory=dict)
    """Why a split was not written, and which option changes that."""
    remarks: list[str] = field(default_factory=list)
    """What the user should look at."""

    @classmethod
    def of_records(
        cls, records: Records, num_reused: int, num_elsewhere: int, rewritten: Counter[str]
    ) -> ConversionReport:
        """What a part's shards came to, before there are manifests."""
        return cls(
            manifests={},
            num_written=len(records) - num_reused,
            num_reused=num_reused,
            num_elsewhere=num_elsewhere,
            bad_items=bad_items(records),
            left_out=sum((Counter(record.left_out) for record in records.values()), Counter()),
            rewritten=rewritten,
            not_read=planned_aside(records, LeftOut),
        )

    def describe(self) -> list[str]:
        """What was done, line by line; bad items are counted, not listed."""
        lines = [f"left out {count}: {reason}" for reason, count in self.left_out.items()]
        lines += [f"wrote {count} shards anew: {reason}" for reason, count in self.rewritten.items()]
        if self.num_reused:
            lines.append(f"reused {self.num_reused} shards that stood complete, wrote {self.num_written}")
        if self.num_elsewhere:
            lines.append(
                f"{self.num_elsewhere} shards are left to other parts; the last one to finish writes the manifests"
            )
        lines += [f"{_in_words(read_document(path, Manifest))} -> {path}" for path in self.manifests.values()]
        lines += [f"no {split} split: {reason}" for split, reason in self.missing_splits.items()]
        if self.bad_items:
            lines.append(f"rejected {len(self.bad_items)}, the first {self.bad_items[0].name}")
        return lines + self.remarks + describe_aside(self.not_read)


def _in_words(manifest: Manifest) -> str:
    """A split in one line."""
    frames, covariance = manifest.frames, manifest.statistics.frame_autocovariance
    shape = "×".join(map(str, (frames.num_frames, *frames.shape)))
    actions = f", {frames.num_actions} actions" if frames.num_actions else ""
    lags = sorted({1, frames.num_frames - 1} - {0}) if frames.num_frames > 1 else []
    size = sum(shard.bytes for shard in manifest.shards)
    if covariance[0] > 0:
        memory = ", ".join(f"{covariance[lag] / covariance[0]:.3f} at lag {lag}" for lag in lags)
        memory = f"frame autocorrelation {memory}" if memory else "one frame"
    else:
        memory = "all values are 0 in network units"
    return (
        f"{manifest.split}: {manifest.num_samples} samples {shape} {frames.dtype}{actions}, {len(manifest.shards)} "
        f"shards, {size / 1e6:,.1f} MB; {memory}"
    )


def parse_part(text: str) -> tuple[int, int]:
    """A part of a conversion, ``i/n``, as two numbers.

    Raises:
        ValueError: not of this form.

    Examples:
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
    max_bad_rate: float | None = None,
    on_shard: OnShard = lambda task, num_samples, reused: None,
    part: tuple[int, int] = (0, 1),
    cluster: str | None = None,
    encoding: EncodingConfig = PLAIN,
    tasks: list[ShardTask] | None = None,
    on_bad_item: Callable[[BadItem], None] = lambda item: None,
) -> ConversionReport:
    """Writes the shards of ``source`` under ``out/SPLIT/`` and, when all of them stand, a manifest per split.

    A shard that stands is kept if its checksum, its options and its inputs are what they were.

    Args:
        source: what to convert.
        out: folder of the splits; made if absent.
        num_processes: shards written at the same time.
        max_bad_rate: share of bad inputs, rounded up to whole ones, above which the conversion stops: as soon as
            ``MIN_ITEMS_TO_JUDGE`` are seen, and at the latest before the manifests. None is ``DEFAULT_BAD_RATE``, of
            so many inputs or more.
        on_shard: called for each shard of this part, see ``OnShard``.
        part: (i, n) takes every n-th shard from the i-th on, for n jobs that share ``out``; the job that finishes last
            writes the manifests.
        cluster: address of a Dask scheduler whose workers write the shards in place of processes of this machine.
        encoding: how frames are stored.
        tasks: ``source.plan()``, where the caller has it already.
        on_bad_item: called for each rejected input or sample as soon as it is known.

    Raises:
        ValueError: a number that can't be, ``out`` holds shards made with other options, disk space is short, another
            process writes this part, the splits don't agree, or too many inputs are bad.
        OSError: ``out`` can't be written.
    """
    number, count = part
    _check_options(number, count, max_bad_rate, num_processes)
    tasks = tasks or source.plan()
    jobs = _jobs(source, tasks, out, encoding, agreed_sample(source, tasks))
    for item in planned_aside(jobs[number::count], BadItem):
        on_bad_item(item)
    busy = f"another conversion is writing to {out}; wait for it or give another --out"
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out / f".lock-{number}-of-{count}", busy):
        run = _Run(out, num_processes, cluster, max_bad_rate, on_shard, on_bad_item)
        return _write_part(run, jobs, jobs[number::count])


def _write_part(run: _Run, jobs: list[ShardJob], own_jobs: list[ShardJob]) -> ConversionReport:
    """Writes a part's shards, and the manifests if those of all parts stand then."""
    stale = leftovers(run.out, jobs)
    records, num_reused, rewritten = run.write_missing(own_jobs)
    finished = standing_records(jobs, 0)[0] if len(own_jobs) < len(jobs) else records
    report = ConversionReport.of_records(records, num_reused, len(jobs) - len(finished), rewritten)
    if len(finished) == len(jobs):
        _check_bad_rate(finished, run.max_bad_rate, at_end=True)
        # parts that end at the same time write the manifests one after the other
        with hold_lock(run.out / ".lock-manifests"):
            remove(stale)
            first, ordered = jobs[0], {job: finished[job] for job in jobs}
            found = write_manifests(first.source, run.out, first.encoding, ordered)
            report.manifests, report.missing_splits, report.remarks = found
    return report


def _check_options(number: int, count: int, max_bad_rate: float | None, num_processes: int) -> None:
    if num_processes < 1:
        raise ValueError(f"--processes is {num_processes}; give at least 1")
    if not 0 <= number < count:
        raise ValueError(f"part {number}/{count} does not exist; parts count from 0 to {count - 1}")
    if max_bad_rate is not None and not 0 <= max_bad_rate <= 1:
        raise ValueError(f"--max-bad-rate is {max_bad_rate}; give a share from 0 to 1")


def _jobs(
    source: Source[Any], tasks: list[ShardTask], out: Path, encoding: EncodingConfig, like: FirstSample | None
) -> list[ShardJob]:
    """A job per task, with what identifies its inputs as they are now."""
    if not tasks:
        raise ValueError(f"source {source.name!r} planned no shard; is there anything to convert?")
    states: dict[Path, list[str | int]] = {}
    # without what samples of this kind don't have, so that a field which they never had rewrites no shard
    unset = {"latitudes"} if like is None or not like.schema.latitudes else set()
    schema = None if like is None else like.schema.model_dump(mode="json", exclude=unset)
    jobs = []
    for task in tasks:
        files = list(dict.fromkeys(path for item in task.items for path in source.item_files(item)))
        states |= {path: input_state(path) for path in files if path not in states}
        inputs = json_hash([task.items, [states[path] for path in files], schema])
        jobs.append(ShardJob(source, task, out, encoding, like, inputs))
    return jobs


@dataclass(frozen=True)
class _Run:
    """How missing shards are written, and who hears of it."""

    out: Path
    num_processes: int
    cluster: str | None
    max_bad_rate: float | None
    on_shard: OnShard
    on_bad_item: Callable[[BadItem], None]

    def write_missing(self, jobs: list[ShardJob]) -> tuple[Records, int, Counter[str]]:
        """Writes the shards that do not stand yet; the records of all in the plan's order, how many stood, and why some
        that stood are written anew."""
        records, rewritten = standing_records(jobs, self.num_processes, self._tell)
        num_reused = len(records)
        missing = [job for job in jobs if job not in records]
        _check_disk(self.out, sum(job.task.estimated_bytes for job in missing))
        for job in missing:
            prepare_folder(job)
        if missing and (self.num_processes == 1 or len(missing) == 1) and self.cluster is None:
            missing[0].source.expect([job.task for job in missing])
        for job, record in self._written(missing):
            records[job] = record
            self._tell(job, record)
            _check_bad_rate(records, self.max_bad_rate)
        return {job: records[job] for job in jobs}, num_reused, rewritten

    def _written(self, missing: list[ShardJob]) -> Iterable[tuple[ShardJob, ShardRecord]]:
        try:
            if self.cluster is None:
                yield from run_in_processes(write_shard_of, missing, self.num_processes)
            else:
                yield from run_on_cluster(write_shard_of, missing, self.cluster)
        except BrokenExecutor:
            raise ValueError(
                "a process that wrote a shard was ended from outside, or a library crashed in it: give fewer "
                "--processes if memory was short; with 1 the shard after the last one written has the cause"
            ) from None

    def _tell(self, job: ShardJob, record: ShardRecord, reused: bool = False) -> None:
        for item in record.bad_items:
            self.on_bad_item(BadItem(*item))
        self.on_shard(job.task, record.entry.num_samples, reused)


def _check_disk(out: Path, needed_bytes: int) -> None:
    """One-line error when the disk cannot hold what is still to be written."""
    parent = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise ValueError(
            f"about {needed_bytes / 1e9:.1f} GB are needed under {out}, {free / 1e9:.1f} GB are free; "
            "make room or give another --out"
        )


def _check_bad_rate(records: Records, max_bad_rate: float | None, at_end: bool = False) -> None:
    """Stops a conversion whose inputs are mostly unreadable: the cause is more likely a wrong option than bad files.

    Both shares are judged: of bad samples among all, and of inputs that could not be read among all inputs, as a lost
    file may have held many samples.
    """
    rate = DEFAULT_BAD_RATE if max_bad_rate is None else max_bad_rate
    judges_few = at_end and max_bad_rate is not None
    bad, num_aside = bad_items(records), len(planned_aside(records, BadItem))
    num_samples = sum(record.entry.num_samples for record in records.values())
    lost = sum(record.num_lost_inputs for record in records.values()) + num_aside
    inputs = sum(record.num_inputs for record in records.values()) + num_aside
    for count, total in ((len(bad), len(bad) + num_samples), (lost if inputs > num_aside else 0, inputs)):
        # the product may be off by a rounding error
        allowed = math.ceil(rate * total - 1e-9)
        if count > allowed and (judges_few or total >= MIN_ITEMS_TO_JUDGE):
            raise ValueError(
                f"{count} of {total} inputs are bad, more than the allowed rate {rate}; the first is "
                f"{bad[0].name}: {bad[0].reason}; mend them, or give another --max-bad-rate"
            )
