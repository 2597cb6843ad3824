"""What a source of data provides, and how it gets a name on the command line.

A source plans its shards and reads the samples of one; everything else (parallel writing, restarts, statistics,
manifests) is ``convert.py``'s. The sources that come with the package are in ``sources/``; one of your own, in any
module, is there for ``tools/make_shards.py --import MODULE`` once ``register_source`` has named it.
"""

import errno
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from dydiff_dist.data.manifest import FrameSchema, Independent, LatentsSchema
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.quoting import first_line
from dydiff_dist.strict_config import StrictConfig

logger = logging.getLogger(__name__)

_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
"""The machine has no more of something: no fault of what is read."""

Config = TypeVar("Config", bound=StrictConfig)
Result = TypeVar("Result")
SourceClass = TypeVar("SourceClass", bound="type[Source[Any]]")


@dataclass(frozen=True)
class BadItem:
    """An input, or a sample of one, that could not be converted, by name, with the reason."""

    name: str
    reason: str
    is_whole_input: bool = False
    """Whether nothing (more) of an input could be read, as ``reading`` finds it; else one sample is bad."""


@dataclass(frozen=True)
class LeftOut:
    """An input that the options leave out, or that is no input at all: no fault of its own. Counted by reason."""

    reason: str
    name: str = ""
    """Of what was left out, where the report is to name it: a file that the user may have meant to be read."""


@dataclass(frozen=True)
class ShardTask:
    """The input of one shard; ``items`` are plain JSON values that the source understands."""

    split: str
    name: str
    items: tuple[Any, ...]
    estimated_bytes: int
    aside: tuple[BadItem | LeftOut, ...] = ()
    """What planning found and gave to no shard; it is reported with this one (``split_tasks``)."""


class Source(ABC, Generic[Config]):
    """What a converter provides; see ``register_source`` for a whole one.

    Instances are picklable: shards are written in other processes.
    """

    name: str
    """As on the command line and in manifests; ``register_source`` sets it."""
    unlike_hint: str = "convert them to one kind first"
    """What to do where the samples of two splits differ."""
    refuses_other_inputs: bool = False
    """Whether other items in a shard's task are refused in a standing folder, as other options are, for a source whose
    options don't say what it reads. Else such a shard is written anew."""
    config: Config
    """The options. With the items of a task they decide the bytes of its shard."""

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def plan(self) -> list[ShardTask]:
        """All shards of all splits, in a fixed order; ``shard_tasks`` cuts items into shards.

        Raises:
            FileNotFoundError, ValueError: there is nothing to convert, or the options do not fit.
        """

    def read_item(self, item: Any) -> Iterator[Sample | BadItem | LeftOut]:
        """The samples of one item of a task, in a fixed order; most sources have this in place of ``read``.

        Whatever it raises makes the item a rejected input, named and counted, while the others go on (``reading``).
        """
        raise AssertionError(f"source {self.name!r} needs read_item or read")

    def item_name(self, item: Any) -> str:
        """What the report calls an item: its file and the place in it."""
        return str(item[0] if isinstance(item, tuple | list) else item)

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem | LeftOut]:
        """The samples of one shard, in a fixed order: those of its items, one after the other.

        A source that reads its items together has a ``read`` of its own; it yields a ``BadItem`` for each input that it
        can't read.
        """
        for item in task.items:
            yield from reading(self.item_name(item), self.read_item(item))

    def item_files(self, item: Any) -> Iterable[Path]:
        """Files (or folders that stand for one) that an item is read from: where one of them changes, a conversion that
        is started again writes its shard anew."""
        return ()

    def independent(self, split: str) -> Independent | None:
        """What counts as one independent observation among the samples of a split; None where nothing is known."""
        return None

    def split_hint(self, split: str) -> str:
        """Why the plan has no shard of ``split``, and which option changes that."""
        return "this source makes none"

    @abstractmethod
    def schema(self, sample: Sample) -> FrameSchema:
        """The schema of the data set, given any of its samples; ``schema_of`` fills in what the arrays say."""

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Fixed (shift, scale) per channel, or None to take mean and standard deviation of the training split."""
        return None

    def latents(self, split: str) -> LatentsSchema | None:
        """What the manifest of ``split`` says of an autoencoder; None where frames are the data themselves."""
        return None

    def expect(self, tasks: list[ShardTask]) -> None:
        """Called with the shards that this process is about to read, in order, so that a source may read ahead."""

    def measured_frames(self, sample: Sample) -> np.ndarray:
        """What the statistics are taken of, (S, C, H, W), in place of the stored frames: those of data with
        ``sample_scaling`` divided by the sample's scale."""
        return sample.frames

    def details(self) -> dict[str, Any]:
        """Facts for the manifest beyond the options, JSON types."""
        return {}

    def summary(self, tasks: list[ShardTask]) -> list[str]:
        """What the plan comes to, line by line, for the user to check before the work starts."""
        return []


def reading(name: str, results: Iterator[Result]) -> Generator[Result | BadItem, None, None]:
    """``results``, with whatever ends them early as a ``BadItem``: what was read before stands.

    Libraries that meet a damaged file raise anything: OSError, RuntimeError, EOFError, struct.error, zlib.error, and a
    length that was damaged even MemoryError. So there is no list of them: everything is held against the input but
    failed assertions, which are bugs, and a machine out of files or disk.

    Args:
        name: of the input.
        results: what is read of it, by a source or while it plans.
    """
    try:
        yield from results
    except AssertionError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        logger.debug("%s is rejected", name, exc_info=True)
        yield BadItem(name, reason_of(error), is_whole_input=True)


def reason_of(error: Exception) -> str:
    """Why an input can't be read, in one line for the user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return error.args[0] if " " in error.args[0] else f"it has no {error.args[0]!r}"
    return (
        first_line(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {first_line(error)}"
    )


@dataclass(frozen=True)
class SourceKind:
    """A source as the command line knows it."""

    source: type[Source[Any]]
    config: type[StrictConfig]
    """The class of the options: each field is an option, its docstring the help."""
    summary: str
    """One line of help."""


SOURCES: dict[str, SourceKind] = {}
"""All registered sources by name."""


def register_source(name: str, config: type[StrictConfig], summary: str) -> Callable[[SourceClass], SourceClass]:
    """Makes a source known to ``tools/make_shards.py``; decorates its class.

    Args:
        name: on the command line; also set as the class's ``name``.
        config: the class of its options: each field is an option, its docstring the help.
        summary: one line of help.

    Raises:
        ValueError: another source has this name.

    Examples:
        >>> class WavesConfig(StrictConfig):
        ...     num_samples: int = 8
        >>> @register_source("waves", WavesConfig, "Travelling waves of one channel.")
        ... class WavesSource(Source[WavesConfig]):
        ...     def plan(self):
        ...         return shard_tasks("train", ((number, 2048) for number in range(self.config.num_samples)), 4)
        ...
        ...     def read_item(self, number):
        ...         phase = np.arange(6)[:, None, None, None] + np.arange(16) + number
        ...         yield Sample(f"wave-{number}", np.sin(phase / 4).astype(np.float32))
        ...
        ...     def schema(self, sample):
        ...         return schema_of(sample, channels=("height",), units="m")
        >>> [task.name for task in SOURCES["waves"].source(WavesConfig()).plan()]
        ['train-000000.tar', 'train-000001.tar']
    """

    def register(source: SourceClass) -> SourceClass:
        """Lists the class under ``name``, which a module that is imported again may do again."""
        place = (source.__module__, source.__qualname__)
        standing = SOURCES.get(name)
        if standing and place != (standing.source.__module__, standing.source.__qualname__):
            raise ValueError(f"two sources are called {name!r}; give {'.'.join(place)} another name")
        source.name = name
        SOURCES[name] = SourceKind(source, config, summary)
        return source

    return register


def shard_tasks(split: str, items: Iterable[tuple[Any, int]], per_shard: int) -> list[ShardTask]:
    """Cuts (item, estimated bytes of its samples) into tasks of ``per_shard`` items, named SPLIT-000000.tar and so on;
    none where there are no items."""
    listed = list(items)
    groups = [listed[first : first + per_shard] for first in range(0, len(listed), per_shard)]
    return [
        ShardTask(split, f"{split}-{shard:06d}.tar", tuple(item for item, _ in group), sum(size for _, size in group))
        for shard, group in enumerate(groups)
    ]


def split_tasks(
    by_split: Mapping[str, Iterable[tuple[Any, int]]], per_shard: int, aside: Iterable[BadItem | LeftOut] = ()
) -> list[ShardTask]:
    """The ``shard_tasks`` of each split, one split after the other. What planning found and gave to none of them,
    ``aside``, is reported with the first."""
    tasks = [task for split, items in by_split.items() for task in shard_tasks(split, items, per_shard)]
    return [replace(task, aside=tuple(aside)) for task in tasks[:1]] + tasks[1:]


def split_of(name: str, valid_fraction: float, test_fraction: float = 0.0) -> str:
    """The split of an input by a hash of its name: train, valid or test.

    By a hash and not by an index, so that the split of an input stays when others are added.
    """
    place = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big") / 2**64
    if place < test_fraction:
        return "test"
    return "valid" if place < test_fraction + valid_fraction else "train"


def schema_of(sample: Sample, **facts: Any) -> FrameSchema:
    """The schema that follows from a sample's arrays, and ``facts``: further fields of ``FrameSchema``.

    Raises:
        ValueError: shards do not hold frames of this type.
    """
    return FrameSchema.model_validate({**array_facts(sample), **facts})


def array_facts(sample: Sample) -> dict[str, Any]:
    """The fields of ``FrameSchema`` that a sample's arrays decide."""
    return {
        "num_frames": sample.frames.shape[0],
        "shape": sample.frames.shape[1:],
        "dtype": str(sample.frames.dtype),
        "num_actions": 0 if sample.actions is None else sample.actions.shape[1],
        "has_logvar": sample.logvar is not None,
    }
