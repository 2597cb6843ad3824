"""Whole shards of a store in a folder of this machine, which its processes share; those used longest ago go.

The folder is the cache's own: it is made here, or empty, or bears the cache's tag, and nothing in it that the cache
would not have made is opened or removed.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from dydiff_dist.files import commit_file, hold_lock, plain_name, write_text

TAG_NAME = "CACHEDIR.TAG"
_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# Shards that dydiff_dist read from elsewhere; all of it can be deleted (https://bford.info/cachedir).
"""
_OWN_NAMES = re.compile(r"\.lock|\.?CACHEDIR\.TAG.*|[0-9a-f]{16}")
"""What earlier versions put into the folder, and the tag in the making by another process."""


class Origin(Protocol):
    """Where shards come from."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """Exactly so many bytes of it."""


class ShardCache:
    """The cache of one URL's shards.

    Args:
        folder: of the cache, for shards of any URLs; made where needed.
        max_bytes: of all shards in it.
        url: of the shards; what is kept of it lies in a folder of its own.
        origin: reads them.

    Raises:
        ValueError: the folder holds other things.
    """

    def __init__(self, folder: Path, max_bytes: int, url: str, origin: Origin):
        _take(folder)
        self.folder, self.max_bytes, self.origin = folder, max_bytes, origin
        # by hash: URLs make poor file names
        self.own_folder = folder / hashlib.sha256(url.encode()).hexdigest()[:16]

    def open(self, name: str) -> BinaryIO:
        """The file, unbuffered, fetched first if it is not there. One process fetches, the others wait for it.

        Raises:
            OSError: it can't be fetched or kept.
        """
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(f".{name}.lock")):
            while True:
                # Where it is missing, it was never fetched, or another process dropped it at once to make room.
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
                    return open(path, "rb", buffering=0)
                self._download(name, path)

    def forget(self, name: str) -> None:
        """Drops a file, so that it is fetched anew."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        """Where a file is kept; names that begin with a dot are the cache's own."""
        return self.own_folder / plain_name(name)

    def _download(self, name: str, path: Path) -> None:
        """Fetches a whole file beside its final name; a part that an earlier process left is continued."""
        part = path.with_name(f".{name}.part")
        size = self.origin.size(name)
        if size > self.max_bytes:
            raise OSError(f"it has {size} bytes, data.remote.cache_max_bytes is {self.max_bytes}; raise it")
        self._make_room(size, path)
        with open(part, "ab") as file:
            if file.tell() > size:
                file.seek(0)
                file.truncate()
            for piece in self.origin.pieces(name, file.tell(), size - file.tell()):
                file.write(piece)
        commit_file(part, path)

    def _make_room(self, needed: int, wanted: Path) -> None:
        """Drops the files used longest ago until the cache can take ``needed`` bytes."""
        with hold_lock(self.folder / ".lock"):
            kept = []
            for file in self.folder.glob("*/*.tar"):
                if re.fullmatch("[0-9a-f]{16}", file.parent.name):
                    with contextlib.suppress(FileNotFoundError):
                        kept.append((file.stat().st_mtime, file.stat().st_size, file))
            held = sum(size for _, size, _ in kept)
            for _, size, file in sorted(kept):
                if held + needed <= self.max_bytes:
                    return
                if file != wanted:
                    # Readers that have it open keep it until they close it.
                    file.unlink(missing_ok=True)
                    held -= size


def is_cache(folder: Path) -> bool:
    """Whether the folder bears the cache's tag."""
    try:
        return (folder / TAG_NAME).read_text() == _TAG
    except (OSError, ValueError):
        return False


def _take(folder: Path) -> None:
    """Makes the folder the cache's, unless it is somebody else's."""
    if is_cache(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not all(_OWN_NAMES.fullmatch(name) for name in os.listdir(folder)):
            raise ValueError(f"data.remote.cache_dir {folder} holds other things than cached shards; give a new folder")
        write_text(folder / TAG_NAME, _TAG)
    except OSError as error:
        raise ValueError(f"data.remote.cache_dir {folder} can't be used: {error.strerror}; give another") from None
