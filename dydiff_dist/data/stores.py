"""Where shards lie: byte ranges of named files in a folder.

A store is picklable, so that worker processes can hold it; open files are each process's own.
"""

from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Protocol

from dydiff_dist.files import plain_name, read_at, read_document_bytes

MAX_OPEN_FILES = 64
"""Shards held open by one process; a shuffle window seldom spans more."""


class Store(Protocol):
    """Files by name, each a plain file name. ``OSError`` stands for whatever kept a file from being read, and
    ``ValueError`` for a name that is not plain."""

    def exists(self) -> bool:
        """Whether the folder itself is there."""

    def size(self, name: str) -> int:
        """Bytes of a file; ``FileNotFoundError`` if it is missing."""

    def read(self, name: str) -> bytes:
        """A whole document; ``FileNotFoundError`` if it is missing, ``OSError`` or ``ValueError`` if it is too large
        for one."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on, fewer where the file ends."""

    def where(self, name: str) -> str:
        """How to name a file to the user."""

    def forget(self, name: str) -> bool:
        """Whether a second read of a damaged file may give something else; drops what was kept of it."""


class LocalStore:
    """A folder of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "_open": OrderedDict()}

    def exists(self) -> bool:
        return self.folder.is_dir()

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def read(self, name: str) -> bytes:
        return read_document_bytes(self._path(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return read_at(self._file(name), offset, size)

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def forget(self, name: str) -> bool:
        return False

    def _path(self, name: str) -> Path:
        return self.folder / plain_name(name)

    def _file(self, name: str) -> BinaryIO:
        """The file, open; the one used longest ago is closed when too many are."""
        file = self._open.pop(name, None)
        if file is None:
            file = open(self._path(name), "rb", buffering=0)  # noqa: SIM115 - it stays open, see MAX_OPEN_FILES
        self._open[name] = file
        if len(self._open) > MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file
