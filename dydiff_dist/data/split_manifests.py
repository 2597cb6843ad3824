"""The end of a conversion: records of shards become one manifest per split, once all splits are found to agree."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dydiff_dist import __version__
from dydiff_dist.data.inputs import SPLITS, printable
from dydiff_dist.data.manifest import MANIFEST_NAME, Manifest, ShardIndex, document_bytes, read_document
from dydiff_dist.data.members import EncodingConfig
from dydiff_dist.data.shard_jobs import FirstSample, ShardJob, ShardRecord, differences, first_sample
from dydiff_dist.data.shard_writer import index_path
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source
from dydiff_dist.data.statistics import FrameMoments
from dydiff_dist.files import remove_partials, write_bytes

SPREAD_RATIO = 30
"""Ratio between the spreads of two splits' values above which they are hardly in the same units."""

Records = dict[ShardJob, ShardRecord]
Kind = TypeVar("Kind", BadItem, LeftOut)


def planned_aside(jobs: Iterable[ShardJob], kind: type[Kind]) -> list[Kind]:
    """What planning gave to no shard, of one kind."""
    return [item for job in jobs for item in job.task.aside if isinstance(item, kind)]


def bad_items(records: Records) -> list[BadItem]:
    """What was rejected, in planning and then in the shards, in words that any terminal takes."""
    planned = planned_aside(records, BadItem)
    return [replace(item, name=printable(item.name), reason=printable(item.reason)) for item in planned] + [
        BadItem(*item) for record in records.values() for item in record.bad_items
    ]


def agreed_sample(source: Source[Any], tasks: list[ShardTask]) -> FirstSample | None:
    """What all samples must be like, from the first one of each split, before anything is written; None where to know
    that would cost more than a look.

    Raises:
        ValueError: the splits have samples of different kinds.
    """
    by_split: dict[str, list[ShardTask]] = {}
    for task in tasks:
        by_split.setdefault(task.split, []).append(task)
    found = {split: first_sample(source, own) for split, own in by_split.items()}
    known = {split: first for split, first in found.items() if first is not None}
    _check_splits(known, source.unlike_hint)
    return next(iter(known.values()), None)


def _check_splits(firsts: dict[str, FirstSample], hint: str) -> None:
    """One-line ``ValueError`` where the samples of two splits differ, by one of each."""
    pairs = list(firsts.items())
    for split, own in pairs[1:]:
        first_split, first = pairs[0]
        if own.schema != first.schema:
            raise ValueError(
                f"the splits differ: {split!r} ({own.where}) has {differences(own.schema, first.schema)} as "
                f"{first_split!r} ({first.where}); {hint}"
            )


def write_manifests(
    source: Source[Any], out: Path, encoding: EncodingConfig, records: Records
) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """Merges the records into one manifest per split, normalised alike, by the training split's statistics.

    Returns:
        the manifests by split; why there is none, for the other splits; what the user should look at.

    Raises:
        ValueError: the splits differ, two samples of a split have one key, or training has no sample.
    """
    by_split: dict[str, Records] = {}
    for job, record in records.items():
        by_split.setdefault(job.task.split, {})[job] = record
    full = {split: own for split, own in by_split.items() if any(record.entry.num_samples for record in own.values())}
    missing = {split: _why_empty(own) for split, own in by_split.items() if split not in full}
    if not full or "train" in missing:
        split = "train" if "train" in missing else next(iter(missing), "train")
        raise ValueError(f"split {split!r} has no sample: {missing.get(split, 'no shard was planned')}")
    missing |= {split: source.split_hint(split) for split in SPLITS if split not in by_split}
    _check_agreement(full, source.unlike_hint)
    moments = {
        split: FrameMoments.merged(FrameMoments.from_json(record.moments) for record in own.values())
        for split, own in full.items()
    }
    shift, scale = source.normalisation() or (moments.get("train") or next(iter(moments.values()))).standardisation()
    manifests = {}
    for split, own in full.items():
        manifest = _manifest(source, split, encoding, own, moments[split], shift, scale)
        manifests[split] = out / split / MANIFEST_NAME
        remove_partials(manifests[split])
        write_bytes(manifests[split], document_bytes(manifest))
    for split in missing:
        (out / split / MANIFEST_NAME).unlink(missing_ok=True)
    return manifests, missing, _remarks(moments)


def _manifest(
    source: Source[Any],
    split: str,
    encoding: EncodingConfig,
    records: Records,
    moments: FrameMoments,
    shift: Sequence[float],
    scale: Sequence[float],
) -> Manifest:
    entries = tuple(record.entry for record in records.values() if record.entry.num_samples)
    left_out = sum((Counter(record.left_out) for record in records.values()), Counter[str]())
    left_out.update(item.reason for item in planned_aside(records, LeftOut))
    return Manifest(
        source=source.name,
        split=split,
        tool_version=__version__,
        frames=next(record.frames for record in records.values() if record.frames is not None),
        shift=tuple(shift),
        scale=tuple(scale),
        statistics=moments.summary(np.asarray(shift), np.asarray(scale)),
        num_samples=sum(entry.num_samples for entry in entries),
        shards=entries,
        independent=source.independent(split),
        latents=source.latents(split),
        details={
            "options": _printable_tree(source.config.model_dump(mode="json")),
            "encoding": encoding.model_dump(mode="json"),
            "rejected_items": len(bad_items(records)),
            "left_out_items": dict(left_out),
            **source.details(),
        },
    )


def _printable_tree(tree: Any) -> Any:
    """JSON values with texts that a file can hold: a path may be of bytes that are no characters."""
    if isinstance(tree, dict):
        return {name: _printable_tree(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_printable_tree(value) for value in tree]
    return printable(tree) if isinstance(tree, str) else tree


def _check_agreement(by_split: dict[str, Records], hint: str) -> None:
    """All shards of all splits hold samples of one kind, and no key comes twice in a split."""
    firsts = {}
    for split, records in by_split.items():
        first, *others = (FirstSample(job.task.name, found.frames) for job, found in records.items() if found.frames)
        firsts[split] = first
        for other in others:
            if other.schema != first.schema:
                raise ValueError(
                    f"split {split!r} has shards of different schemas: {other.where} has "
                    f"{differences(other.schema, first.schema)} as {first.where}; {hint}"
                )
        seen: dict[str, str] = {}
        for job, record in records.items():
            keys = read_document(index_path(job.tar_path), ShardIndex).keys if record.entry.num_samples else ()
            for key in keys:
                if seen.setdefault(key, job.task.name) != job.task.name:
                    raise ValueError(
                        f"key {key!r} is in two shards, {seen[key]} and {job.task.name}; the source must give each "
                        "sample a key of its own"
                    )
    _check_splits(firsts, hint)


def _why_empty(records: Records) -> str:
    """Why no sample came of a split's shards."""
    bad = bad_items(records)
    left_out = [reason for record in records.values() for reason in record.left_out]
    if bad:
        return f"all of its inputs were rejected, {len(bad)} in all; the first is {bad[0].name}: {bad[0].reason}"
    return f"all of its inputs were left out: {left_out[0]}" if left_out else "its inputs hold none"


def _remarks(moments: dict[str, FrameMoments]) -> list[str]:
    """A line for each channel that never changes, and for each split whose values hardly have the units of the first: 0
    to 1 beside 0 to 255."""
    (first, reference), *others = moments.items()
    constant = np.flatnonzero(reference.mean_and_std()[1] == 0).tolist()
    remarks = [f"look: channel {n} is {reference.minimum[n]:.4g} in every sample of {first}" for n in constant]
    for split, own in others:
        one, other = own.mean_and_std()[1].max(), reference.mean_and_std()[1].max()
        if min(one, other) > 0 and not 1 / SPREAD_RATIO < one / other < SPREAD_RATIO:
            ranges = [f"{part.minimum.min():.4g} to {part.maximum.max():.4g}" for part in (own, reference)]
            remarks.append(
                f"look: {split} has values from {ranges[0]}, {first} from {ranges[1]}; if their units differ, convert "
                "them to the same"
            )
    return remarks
