"""Inputs as they lie on a disk: which files of a folder are read and which are not, whether a file has changed, and
keys of samples that follow from file names of any kind.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dydiff_dist.data.shard_writer import plain_key
from dydiff_dist.data.source import BadItem, LeftOut
from dydiff_dist.files import file_sha256

SPLITS = ("train", "valid", "test")
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in small letters -> the split whose inputs they hold."""

HASHED_BYTES = 2**20
"""Files up to this size are known by their content, larger ones by size and time of change."""

MAX_STEM_BYTES = 56
"""What a file's name may take of a sample's key; numbers and an ending follow."""


@dataclass
class InputFiles:
    """What a folder holds: names relative to it, with / between folders, in order."""

    files: list[str] = field(default_factory=list)
    aside: list[BadItem | LeftOut] = field(default_factory=list)
    """What is no input, by name and reason, for ``source.split_tasks``."""

    def first_fault(self) -> str:
        """The first bad input, to end an error with; "" where there is none."""
        first = next((item for item in self.aside if isinstance(item, BadItem)), None)
        return "" if first is None else f"; {printable(first.name)}: {printable(first.reason)}"

    def by_split(self) -> dict[str, list[str]] | None:
        """The files by split, where folders of the root are named for splits (``SPLIT_FOLDERS``), else None. Files
        beside those folders go ``aside``."""
        folders = {name.split("/")[0] for name in self.files if "/" in name}
        if not any(folder.lower() in SPLIT_FOLDERS for folder in folders):
            return None
        found: dict[str, list[str]] = {split: [] for split in SPLITS}
        for name in self.files:
            split = SPLIT_FOLDERS.get(name.split("/")[0].lower()) if "/" in name else None
            if split is None:
                self.aside.append(LeftOut("it lies beside the folders of the splits (train, valid, test)", name))
            else:
                found[split].append(name)
        return found


def find_files(root: Path, suffixes: Sequence[str], option: str = "--root", folder_suffix: str = "") -> InputFiles:
    """The files under a folder that end with one of ``suffixes``, in capitals or not, through links too.

    Args:
        root: the folder; all folders in it are searched, each once however many links lead to it.
        suffixes: in small letters, like ".npy".
        option: names the folder in errors.
        folder_suffix: folders that end so (".zarr") are inputs as a whole; "" means none are.

    Returns:
        the files; ``aside`` names the others: of other kinds, hidden, links to nothing, folders that can't be listed.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; {option} must be the folder of the inputs")
    found = InputFiles()
    seen: set[tuple[int, int]] = set()
    for name in _walk(root, "", folder_suffix, seen, found.aside):
        path, suffix = root / name, Path(name).suffix.lower()
        if path.is_symlink() and not path.exists():
            found.aside.append(BadItem(name, "it is a link to nothing", is_whole_input=True))
        elif Path(name).name.startswith("."):
            found.aside.append(LeftOut("it is hidden", name))
        elif suffix not in suffixes and not (folder_suffix and suffix == folder_suffix):
            found.aside.append(
                LeftOut(f"files {f'ending with {suffix}' if suffix else 'without ending'} are not read", name)
            )
        elif not (path.is_file() or path.is_dir()):
            found.aside.append(BadItem(name, "it is neither a file nor a folder", is_whole_input=True))
        else:
            found.files.append(name)
    if not found.files:
        others = f"; it holds {first_names([item.name for item in found.aside])}" if found.aside else ""
        raise FileNotFoundError(f"{root} holds no {', '.join(suffixes)} file; give another {option}{others}")
    found.files.sort()
    return found


def _walk(
    root: Path, inside: str, folder_suffix: str, seen: set[tuple[int, int]], aside: list[BadItem | LeftOut]
) -> Iterator[str]:
    """Names of all that is no folder to be searched, below ``root / inside``."""
    try:
        state = os.stat(root / inside)
        if (state.st_dev, state.st_ino) in seen:
            aside.append(LeftOut("it is another name of a folder that is read already", inside))
            return
        seen.add((state.st_dev, state.st_ino))
        names = sorted(os.listdir(root / inside))
    except OSError as error:
        aside.append(BadItem(inside or str(root), f"it cannot be listed: {error.strerror}", is_whole_input=True))
        return
    for name in names:
        whole = f"{inside}/{name}" if inside else name
        is_input = folder_suffix and Path(name).suffix.lower() == folder_suffix
        if not is_input and not name.startswith(".") and (root / whole).is_dir():
            yield from _walk(root, whole, folder_suffix, seen, aside)
        else:
            yield whole


def describe_aside(left_out: Iterable[LeftOut]) -> list[str]:
    """A line per reason, with a count and the first names."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        by_reason.setdefault(item.reason, []).append(item.name)
    return [f"not read: {len(names)} ({first_names(names)}): {reason}" for reason, names in by_reason.items()]


def first_names(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(printable(name) for name in names[:3]) + more


def printable(text: str) -> str:
    """The text in one line that any terminal and any JSON takes: what is no character is written as an escape."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def unique_stems(names: Iterable[str]) -> dict[str, str]:
    """What the keys of each input's samples begin with: its name without suffix, folders joined by hyphens.

    Keys go on with numbers after hyphens. So that no two inputs can come to the same key, names that would are told
    apart by a hash: those alike but for suffix, dots, folders or length, and those that another one with a number would
    equal. Names that are not plain ASCII, or long, are shortened to ASCII and have the hash too.

    Examples:
        >>> unique_stems(["train/a.npy", "b.npy"])
        {'train/a.npy': 'train-a', 'b.npy': 'b'}
        >>> sorted(unique_stems(["a.npy", "a.npz", "a-0001.npy"]).values())
        ['a-0001_14b0aa886b', 'a_153e3be11d', 'a_c454143b31']
    """
    listed = list(names)
    plain = {name: Path(name).with_suffix("").as_posix().replace(".", "_").replace("/", "-") for name in listed}
    stems = {name: plain_key(stem, MAX_STEM_BYTES) for name, stem in plain.items()}
    counts: dict[str, int] = {}
    for stem in stems.values():
        counts[stem] = counts.get(stem, 0) + 1
    for name, stem in stems.items():
        shorter = stem
        is_continued = False
        while match := re.fullmatch(r"(.+)-\d+", shorter):
            shorter = match[1]
            is_continued |= shorter in counts
        if counts[stem] > 1 or is_continued:
            stems[name] = plain_key(plain[name], MAX_STEM_BYTES, told_apart_by=name)
    return stems


def input_state(path: Path) -> list[str | int]:
    """What tells whether an input is still the one that was read: the hash of a small file, size and time of a large
    one, number, bytes and latest time of the files in a folder; plain JSON values."""
    try:
        state = path.stat()
        if path.is_dir():
            states = [os.stat(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names]
            times = max((each.st_mtime_ns for each in states), default=0)
            return [len(states), sum(each.st_size for each in states), times]
        return [file_sha256(path)] if state.st_size <= HASHED_BYTES else [state.st_size, state.st_mtime_ns]
    except OSError as error:
        return [f"unreadable: {error.errno}"]
