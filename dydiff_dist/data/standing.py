"""What stands of an earlier conversion into the same folder: which shards are kept, and which go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dydiff_dist.data.manifest import MANIFEST_NAME, read_document
from dydiff_dist.data.shard_jobs import ShardJob, ShardRecord
from dydiff_dist.data.shard_writer import index_path
from dydiff_dist.data.source import ShardTask
from dydiff_dist.data.split_manifests import Records
from dydiff_dist.files import file_sha256, remove_partials

OnStanding = Callable[[ShardJob, ShardRecord, bool], None]


def standing_records(
    jobs: list[ShardJob], num_threads: int, tell: OnStanding = lambda job, record, reused: None
) -> tuple[Records, Counter[str]]:
    """Records of shards that stand as they were written, from the inputs as they are now; and why others do not.

    Args:
        jobs: the shards.
        num_threads: that read the shards to verify their checksums; 0 looks at their sizes alone.
        tell: called for each that stands.

    Raises:
        ValueError: a shard was made with other options.
    """
    records: Records = {}
    rewritten: Counter[str] = Counter()
    for job in jobs:
        if not job.record_path.exists():
            continue
        try:
            record = read_document(job.record_path, ShardRecord)
        except ValueError:
            rewritten["their records were damaged"] += 1
            continue
        if record.fingerprint != (job.fingerprint if record.inputs else job.earlier_fingerprint):
            if not record.entry.num_samples:
                continue  # nothing came of it, so there is nothing to keep apart
            raise ValueError(_other_options(job.out))
        if record.inputs == job.inputs:
            records[job] = record
        else:
            rewritten["their inputs changed" if record.inputs else "an earlier version wrote them"] += 1
    standing: Records = {}
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        stand = pool.map(lambda job: _stands(job, records[job], num_threads > 0), records)
        for (job, record), is_whole in zip(records.items(), stand, strict=True):
            if is_whole:
                standing[job] = record
                tell(job, record, True)
    if len(standing) < len(records):
        rewritten["they were missing, cut off or altered"] = len(records) - len(standing)
    return standing, rewritten


def _stands(job: ShardJob, record: ShardRecord, verify: bool) -> bool:
    """Whether a shard and its index are there as they were written."""
    entry, index = record.entry, index_path(job.tar_path)
    if not entry.num_samples:
        return not job.tar_path.exists()
    if not job.tar_path.exists() or job.tar_path.stat().st_size != entry.bytes or not index.exists():
        return False
    return not verify or (file_sha256(index) == entry.index_sha256 and file_sha256(job.tar_path) == entry.sha256)


def leftovers(out: Path, jobs: list[ShardJob]) -> list[ShardJob]:
    """Shards in ``out`` that an earlier conversion with these options wrote and the plan no longer has.

    Raises:
        ValueError: one was made with other options.
    """
    planned = {job.record_path for job in jobs}
    found = []
    for path in sorted(out.glob("*/.records/*.json")):
        if path in planned:
            continue
        task = ShardTask(path.parts[-3], f"{path.stem}.tar", (), 0)
        job = ShardJob(jobs[0].source, task, out, jobs[0].encoding)
        try:
            record = read_document(path, ShardRecord)
        except ValueError:
            continue
        if not record.inputs:  # of an earlier version, which did not say of which options
            continue
        if record.entry.num_samples and record.fingerprint != job.fingerprint:
            raise ValueError(_other_options(out))
        found.append(job)
    return found


def remove(jobs: list[ShardJob]) -> None:
    """Removes shards with their records, and the manifests of their splits, which list them."""
    for job in jobs:
        for path in (job.tar_path.with_name(MANIFEST_NAME), job.tar_path, index_path(job.tar_path), job.record_path):
            path.unlink(missing_ok=True)


def _other_options(out: Path) -> str:
    return (
        f"{out} holds shards made with other options, or by an earlier version that had others; give another --out, or "
        "remove that folder first"
    )


def prepare_folder(job: ShardJob) -> None:
    """Makes the folder of a shard and removes what a killed conversion left of it half-written."""
    job.record_path.parent.mkdir(parents=True, exist_ok=True)
    job.tar_path.with_name(MANIFEST_NAME).unlink(missing_ok=True)
    for path in (job.tar_path, index_path(job.tar_path), job.record_path):
        remove_partials(path)
