"""One shard of a conversion: what identifies its content, writing it, and the record that it leaves for a restart.

Every sample of every source is checked here: shapes and types that fit together, the same in the whole data set, no NaN
or infinity in any array, and a key of its own. One that fails is rejected, named and counted; the others go on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationError

from dydiff_dist.data.inputs import printable
from dydiff_dist.data.manifest import FrameSchema, SealedDocument, ShardEntry, document_bytes
from dydiff_dist.data.members import PLAIN, EncodingConfig, all_finite
from dydiff_dist.data.shard_writer import Sample, plain_key, write_shard
from dydiff_dist.data.source import BadItem, LeftOut, ShardTask, Source, array_facts, reading
from dydiff_dist.files import write_bytes
from dydiff_dist.quoting import shortened
from dydiff_dist.strict_config import describe_error

NUM_LOOKED_AT = 3
"""Inputs of each split that are read to know what its samples are like."""


class ShardRecord(SealedDocument):
    """What a finished shard leaves behind for a restart."""

    remedy: ClassVar[str] = "delete it, and give the command that made the shards again"

    fingerprint: str
    """Of the options that its content follows from."""
    inputs: str = ""
    """Of what it was read from; empty where an earlier version wrote it, whose ``fingerprint`` covers the items."""
    entry: ShardEntry
    frames: FrameSchema | None
    """None for a shard without samples."""
    moments: dict[str, Any]
    bad_items: tuple[tuple[str, str], ...]
    """(name, reason) of rejected inputs and samples."""
    left_out: dict[str, int] = {}
    """Inputs that the options leave out, by reason."""
    num_inputs: int = 0
    """Inputs that were to be read, where the source reads them one by one."""
    num_lost_inputs: int = 0
    """Those of them that could not be read to their end."""


@dataclass(frozen=True)
class FirstSample:
    """The sample that the others of a data set must be like."""

    where: str
    """Its input, for messages."""
    schema: FrameSchema


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written. Picklable: it may be written by another process or machine."""

    source: Source[Any]
    task: ShardTask
    out: Path
    encoding: EncodingConfig
    like: FirstSample | None = None
    """What all samples must be like, where that is known before; else each shard's own first sample counts."""
    inputs: str = ""
    """What the inputs are now, as ``ShardRecord.inputs``."""

    @property
    def tar_path(self) -> Path:
        """Where the shard is to stand."""
        return self.out / self.task.split / self.task.name

    @property
    def record_path(self) -> Path:
        """Where its ``ShardRecord`` is to stand."""
        return self.tar_path.parent / ".records" / (self.tar_path.stem + ".json")

    @cached_property
    def fingerprint(self) -> str:
        """Identifies source, options but for defaults, the shard's name, and any encoding but the plain: with the
        inputs they decide the content."""
        items = [self.task.items] if self.source.refuses_other_inputs else []
        return self._hash(self.source.config.model_dump(mode="json", exclude_defaults=True), *items)

    @cached_property
    def earlier_fingerprint(self) -> str:
        """As an earlier version made it, which knew of the inputs no more than the plan's items."""
        return self._hash(self.source.config.model_dump(mode="json"), self.task.items)

    def _hash(self, options: dict[str, Any], *more: Any) -> str:
        content = [self.source.name, options, self.task.split, self.task.name, *more]
        if self.encoding != PLAIN:
            content.append(self.encoding.model_dump(mode="json"))
        return json_hash(content)


def json_hash(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_sample(source: Source[Any], tasks: list[ShardTask]) -> FirstSample | None:
    """What the samples of ``tasks`` are like, by the first sample of a first, a middle and a last input, each of other
    files: what most of them are, as one may be the odd one. Where such an input can't be read, those of the first shard
    take its place. None where there is none, or where the source does not read its inputs one by one, so that a look
    would cost a shard."""
    if not tasks or not _reads_items(source):
        return None
    items = [item for task in tasks for item in task.items]
    found: dict[tuple[object, ...], FirstSample] = {}
    for item in (items[0], items[len(items) // 2], items[-1], *tasks[0].items):
        name = source.item_name(item)
        files: tuple[object, ...] = tuple(source.item_files(item)) or (name,)
        if files in found:
            continue
        with closing(reading(name, source.read_item(item))) as results:
            checked = (_checked(source, result) for result in results if isinstance(result, Sample))
            schema = next((schema for schema in checked if isinstance(schema, FrameSchema)), None)
        if schema is not None:
            found[files] = FirstSample(name, schema)
        if len(found) == NUM_LOOKED_AT:
            break
    schemas = [first.schema for first in found.values()]
    return max(found.values(), key=lambda first: schemas.count(first.schema), default=None)


def differences(found: FrameSchema, expected: FrameSchema) -> str:
    """What differs between two schemas, a few words per field; "" where nothing does."""
    names = FrameSchema.model_fields
    pairs = ((name, getattr(found, name), getattr(expected, name)) for name in names)
    unlike = (
        (name, shortened(f"{one or 'none'}, not {other or 'none'}")) for name, one, other in pairs if one != other
    )
    return "; ".join(f"{name} {words}" for name, words in unlike)


def write_shard_of(job: ShardJob) -> ShardRecord:
    """Writes one shard and its record.

    Raises:
        ValueError: the frames can't be encoded as asked for.
        OSError: it can't be written.
    """
    writer = _GoodSamples(job)
    entry, moments = write_shard(job.tar_path, iter(writer), job.source.measured_frames, job.encoding)
    record = ShardRecord(
        fingerprint=job.fingerprint,
        inputs=job.inputs,
        entry=entry,
        frames=writer.schema.model_copy(update={"encoding": job.encoding.encoding}) if writer.schema else None,
        moments=moments.to_json(),
        bad_items=tuple((printable(item.name), printable(item.reason)) for item in writer.bad_items),
        left_out={printable(reason): count for reason, count in writer.left_out.items()},
        num_inputs=len(job.task.items) if _reads_items(job.source) else 0,
        num_lost_inputs=sum(item.is_whole_input for item in writer.bad_items),
    )
    write_bytes(job.record_path, document_bytes(record))
    return record


class _GoodSamples:
    """The samples of a job that may be written; what may not is kept by reason."""

    def __init__(self, job: ShardJob):
        self.job = job
        self.schema: FrameSchema | None = None
        self.bad_items: list[BadItem] = []
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Sample]:
        job, keys = self.job, set[str]()
        like = job.like
        for name, result in _results(job.source, job.task):
            if isinstance(result, LeftOut):
                self.left_out[result.reason] += 1
                continue
            if isinstance(result, BadItem):
                self.bad_items.append(result)
                continue
            where = f"{name}, sample {result.key}" if name else result.key
            schema = _checked(job.source, result)
            if isinstance(schema, str):
                self.bad_items.append(BadItem(where, schema))
                continue
            like = like or FirstSample(where, schema)
            result.key = stored_key(result.key)
            if schema != like.schema:
                self.bad_items.append(BadItem(where, f"{differences(schema, like.schema)} as in {like.where}"))
            elif result.key in keys:
                self.bad_items.append(BadItem(where, f"an earlier sample has its key {result.key!r}"))
            else:
                keys.add(result.key)
                self.schema = schema
                yield result


def stored_key(key: str) -> str:
    """A sample's key as it is stored (``plain_key``), what stands after its last hyphen kept where that is plain."""
    group, hyphen, rest = key.rpartition("-")
    if not hyphen or plain_key(key) == key or len(rest) > 24 or plain_key(rest) != rest:
        return plain_key(key)
    return f"{plain_key(group, 60, told_apart_by=group)}-{rest}"


def _reads_items(source: Source[Any]) -> bool:
    return type(source).read is Source.read


def _results(source: Source[Any], task: ShardTask) -> Generator[tuple[str, Sample | BadItem | LeftOut], None, None]:
    """What a source yields, each with the name of its input, "" where it isn't known."""
    if not _reads_items(source):
        yield from (("", result) for result in source.read(task))
        return
    for item in task.items:
        name = source.item_name(item)
        yield from ((name, result) for result in reading(name, source.read_item(item)))


def _checked(source: Source[Any], sample: Sample) -> FrameSchema | str:
    """The schema of a sample that may be stored, or why it may not. Its arrays are brought to the machine's byte order,
    in which shards are."""
    for name in ("frames", "actions", "states", "logvar"):
        given = getattr(sample, name)
        if given is None:
            continue
        array = np.asarray(given)
        problem = _shape_problem(name, array, len(sample.frames))
        if problem:
            return problem
        with np.errstate(over="ignore"):  # what a stored float32 can't hold becomes infinite, and is found
            dtype = np.dtype(np.float32) if name in ("actions", "states") else array.dtype.newbyteorder("=")
            array = array.astype(dtype, copy=False)
        if not all_finite(array):
            return _not_finite(name, array)
        setattr(sample, name, array)
    try:
        schema = source.schema(sample)
    except ValidationError as error:
        return describe_error(error, FrameSchema)
    except ValueError as error:
        return str(error)
    problems = differences(schema.model_copy(update=array_facts(sample)), schema)
    return f"{problems} as the source says" if problems else schema


def _shape_problem(name: str, array: np.ndarray, num_frames: int) -> str | None:
    """What is wrong with an array's type or axes, in a line."""
    if array.dtype.kind not in "fiub":
        return f"its {name} are of type {array.dtype}, not numbers"
    axes = "(S, values)" if name in ("actions", "states") else "(S, C, H, W)"
    fits = array.ndim == len(axes.split(",")) and (name == "states" or (array.size > 0 and len(array) == num_frames))
    return None if fits else f"its {name} have shape {array.shape}; {axes} with S = {num_frames} frames is expected"


def _not_finite(name: str, array: np.ndarray) -> str:
    bad = ~np.isfinite(array)
    frame = int(np.argwhere(bad)[0, 0])
    return f"{int(bad.sum())} of {bad.size} {name} are missing, NaN or infinite, the first at frame {frame}"
