"""What stands in a checkpoint's folder, how it is sealed, checked and read. Knows nothing of engines or other ranks.

``step_000100/`` holds

- ``rank_00000.safetensors``, …: one file for each rank that wrote, tensors ``ENGINE/KIND/PARAMETER`` (flat ranges);
- ``layout.json``: which range of which parameter lies in which file, how often the optimizer had updated it, and every
  parameter's shape;
- ``complete.json``: the run's position and configuration, counters, versions, and the size of every file;
- ``SHA256SUMS``: of all the others, in the form that ``sha256sum -c`` checks. It is written last.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dydiff_dist.engine.partitions import Piece
from dydiff_dist.files import (
    FileRecord,
    file_sha256,
    flush_to_disk,
    parse_json,
    plain_name,
    read_document_bytes,
    write_json,
    write_text,
)
from dydiff_dist.quoting import quoted

FACTS, LAYOUT, SUMS = "complete.json", "layout.json", "SHA256SUMS"
LATEST = "latest"
BUFFER = "buffer"
"""Kind of the networks' buffers, whole and in rank 0's file."""
FORMAT_VERSION = 2
_NAME = re.compile(r"step_(\d{6,})")


class DamagedError(Exception):
    """A checkpoint, or a file of one, that is not what was written."""


def folder_name(step: int) -> str:
    """Name of the checkpoint after ``step`` steps."""
    return f"step_{step:06d}"


def step_of(folder: Path) -> int:
    """Steps that a checkpoint's folder name says."""
    return int(folder.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Every folder in a run's ``checkpoints/`` that is named like a checkpoint, oldest first."""
    return sorted((path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)), key=step_of)


def tensor_key(engine: str, kind: str, name: str) -> str:
    """The name of a parameter's range in a file: ``model/average.ema/blocks.0.weight``."""
    return f"{engine}/{kind}/{name}"


def rank_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"rank_{rank:05d}.safetensors"


def marker_file(rank: int) -> str:
    """Name of the note by which a rank says, while a checkpoint is being written, that its file is on the disk."""
    return f"rank_{rank:05d}.done.json"


def write_marker(folder: Path, rank: int, record: FileRecord, pieces: dict[str, dict[str, list]]) -> None:
    """Says that a rank's file is down.

    Args:
        folder: of the checkpoint that is being written.
        rank: the writer's.
        record: of its file.
        pieces: engine -> parameter -> [start, length, optimizer steps or null].
    """
    write_json(folder / marker_file(rank), {"bytes": record.num_bytes, "sha256": record.sha256, "pieces": pieces})


def seal(folder: Path, facts: dict[str, Any], engines: dict[str, dict[str, Any]], world_size: int) -> None:
    """Turns the ranks' files into a checkpoint, once all their markers are there.

    Args:
        folder: of the checkpoint that is being written.
        facts: what ``complete.json`` is to say, JSON types.
        engines: engine -> {"shapes": parameter -> shape, "kinds": [...], "buffers": [names]}.
        world_size: ranks that wrote.

    Raises:
        DamagedError: a file is not of the size that its rank wrote.
    """
    sums, sizes, files = {}, {}, {}
    for rank in range(world_size):
        marker, name = json.loads((folder / marker_file(rank)).read_text()), rank_file(rank)
        if (folder / name).stat().st_size != marker["bytes"]:
            raise DamagedError(f"{folder / name} is not of the size that was written")
        sums[name], sizes[name], files[name] = marker["sha256"], marker["bytes"], marker["pieces"]
    write_json(folder / LAYOUT, {"engines": engines, "files": files}, indent=None)
    sizes[LAYOUT] = (folder / LAYOUT).stat().st_size
    versions = {"format_version": FORMAT_VERSION, "torch": torch.__version__}
    write_json(folder / FACTS, {**versions, **facts, "world_size": world_size, "bytes": sizes})
    sums |= {name: file_sha256(folder / name) for name in (LAYOUT, FACTS)}
    for rank in range(world_size):
        (folder / marker_file(rank)).unlink()
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    flush_to_disk(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """``complete.json``, after the cheap checks: it is what was written, and every file is there and of its size.

    Raises:
        DamagedError: naming what is damaged.
        ValueError: a checkpoint of another format.
    """
    path = folder / FACTS
    try:
        data = read_document_bytes(path)
        # before the version, whose digit may be what is damaged; the first format had no sums
        is_sealed = (folder / SUMS).is_file()
        if is_sealed and hashlib.sha256(data).hexdigest() != _sums(folder).get(FACTS):
            raise DamagedError(f"{FACTS} differs from its SHA-256")
        facts = parse_json(data, FACTS, "")
        version, sizes = facts.get("format_version", 1), facts["bytes"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{FACTS} ({type(error).__name__})") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has checkpoint format {version!r}, this version reads {FORMAT_VERSION}; finish the run with the "
            "version that began it, or set output_dir to a new folder"
        )
    if not is_sealed:
        raise DamagedError(f"{SUMS} (missing)")
    for name, size in sizes.items():
        try:
            present = (folder / plain_name(name)).stat().st_size
        except ValueError:
            raise DamagedError(f"{FACTS} (names {quoted(name)}, outside of the folder)") from None
        except OSError as error:
            raise DamagedError(f"{name} ({error.strerror})") from None
        if present != size:
            raise DamagedError(f"{name} has {present} bytes, {size} were written")
    return facts


def damaged_files(folder: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """What is damaged, a few words each: the facts, or files, whose SHA-256 this rank checks its share of.

    Args:
        folder: of the checkpoint.
        rank: this process among those that divide the reading.
        world_size: how many they are.

    Raises:
        ValueError: a checkpoint of another format.
    """
    found = []
    try:
        read_facts(folder)
    except DamagedError as error:
        return [str(error)]
    for name, digest in sorted(_sums(folder).items())[rank::world_size]:
        try:
            if file_sha256(folder / name) != digest:
                found.append(f"{name} differs from its SHA-256")
        except OSError as error:
            found.append(f"{name} ({error.strerror})")
    return found


def replace_folder(partial: Path, final: Path) -> None:
    """Gives a written checkpoint its name; one of the same name, from before a fall-back, goes."""
    if final.exists():
        old = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old)
    else:
        partial.rename(final)
    flush_to_disk(final.parent)


class CheckpointReader:
    """Reads ranges of parameters from a sealed checkpoint, whichever ranks wrote them.

    Raises:
        DamagedError: the layout can't be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = read_facts(folder)
        try:
            layout = parse_json(read_document_bytes(folder / LAYOUT), LAYOUT, "")
            self._engines = layout["engines"]
            self._ranges = _by_parameter(layout["files"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{LAYOUT} ({type(error).__name__})") from None
        self._files: dict[str, Any] = {}

    @property
    def engines(self) -> list[str]:
        """Names of the engines it holds."""
        return list(self._engines)

    def kinds(self, engine: str) -> list[str]:
        """Kinds of state that it holds of an engine."""
        return self._engines[engine]["kinds"]

    def shapes(self, engine: str) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of an engine, by name."""
        return {name: tuple(shape) for name, shape in self._engines[engine]["shapes"].items()}

    def optimizer_steps(self, engine: str, name: str) -> int | None:
        """Updates that the optimizer had made of a parameter; None if none."""
        return max((steps for *_, steps in self._ranges[engine, name] if steps is not None), default=None)

    def buffers(self, engine: str) -> dict[str, Tensor]:
        """Buffers of an engine's network by name, on the CPU."""
        names, file = self._engines[engine]["buffers"], self._open(rank_file(0))
        return {name: file.get_tensor(tensor_key(engine, BUFFER, name)) for name in names}

    def read(self, engine: str, kind: str, piece: Piece) -> Tensor:
        """The elements of one range of a parameter, flat, on the CPU.

        Args:
            engine: whose parameter.
            kind: of state, as ``engine/state.py`` names them.
            piece: the range; its place in a partition doesn't matter.

        Raises:
            ValueError: the checkpoint has no such parameter or not all of the range.
        """
        parts, position, end = [], piece.start, piece.start + piece.length
        for start, length, file, _ in self._ranges.get((engine, piece.name), ()):
            if start <= position < start + length and position < end:
                stop = min(end, start + length)
                stored = self._open(file).get_slice(tensor_key(engine, kind, piece.name))
                parts.append(stored[position - start : stop - start])
                position = stop
        if position < end:
            raise ValueError(
                f"{self.folder} has no elements {position} to {end} of {kind} of {piece.name!r}; it is of another "
                "network, so set output_dir to a new folder"
            )
        return parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])

    def read_whole(self, engine: str, kind: str, name: str) -> Tensor:
        """A whole parameter in its shape, on the CPU; arguments and errors as of `read`."""
        shape = self.shapes(engine)[name]
        return self.read(engine, kind, Piece(name, 0, torch.Size(shape).numel(), 0, 0)).view(shape)

    def _open(self, name: str) -> Any:
        if name not in self.facts["bytes"]:
            raise DamagedError(f"{LAYOUT} (names {name!r}, which is no file of the checkpoint)")
        if name not in self._files:
            try:
                self._files[name] = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DamagedError(f"{name} ({error})") from None
        return self._files[name]


def _by_parameter(files: dict[str, dict]) -> dict[tuple[str, str], list[tuple[int, int, str, int | None]]]:
    """(engine, parameter) -> its (start, length, file, optimizer steps), in the order of its elements."""
    ranges: dict[tuple[str, str], list] = {}
    for file, engines in files.items():
        for engine, pieces in engines.items():
            for name, (start, length, steps) in pieces.items():
                ranges.setdefault((engine, name), []).append((start, length, file, steps))
    return {key: sorted(found, key=lambda entry: entry[0]) for key, found in ranges.items()}


def _sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 as sealed."""
    try:
        lines = read_document_bytes(folder / SUMS).decode().splitlines()
        return {plain_name(name): digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise DamagedError(f"{SUMS} ({type(error).__name__})") from None
