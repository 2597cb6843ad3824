"""Shards on a web server or in an object store: ranged reads that survive a bad network, and an optional local cache.

``http(s)://`` is read by Python's own client, everything else (``s3://``, ``gs://``, …) by fsspec and the package it
needs for that store. fsspec's own reader of web servers and its caches would do in a good network; ours keeps what
arrived before a connection broke, goes on with a download that another process began, and bounds the cache's size.
Credentials come from the store's own environment; they never stand in a URL here, a log or a manifest.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from dydiff_dist.files import commit_file, hold_lock
from dydiff_dist.strict_config import StrictConfig

logger = logging.getLogger(__name__)

PIECE_BYTES = 2**18
"""Bytes taken from a connection at once; what arrived before it breaks is kept."""

MAX_BACK_OFF_SEC = 30.0

RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class RemoteConfig(StrictConfig):
    """How shards that lie elsewhere are read."""

    attempts: Annotated[int, Field(ge=1)] = 6
    """Tries in a row that may bring nothing before a read fails; a try that brings bytes starts the count again."""
    timeout_sec: Annotated[float, Field(gt=0)] = 20.0
    """Time without a byte after which a connection counts as dead."""
    back_off_sec: Annotated[float, Field(ge=0)] = 0.5
    """Wait before the second try; it doubles with each further one, up to half a minute."""
    cache_dir: str | None = None
    """Folder in which shards that were read are kept; None reads samples straight from the store."""
    cache_max_bytes: Annotated[int, Field(ge=0)] = 100 * 2**30
    """Size of the cache; shards used longest ago are dropped beyond it."""


class NetworkError(OSError):
    """A read that may go well when tried again."""


class Files(Protocol):
    """The protocol of one kind of store."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """The bytes from ``offset`` on as they arrive; may end early."""


class RemoteStore:
    """Files below a URL, as a store of shards."""

    def __init__(self, url: str, config: RemoteConfig):
        parts = urlsplit(url)
        if parts.query or "@" in parts.netloc:
            raise ValueError(
                f"{parts.scheme}://{parts.hostname or ''}{parts.path} was given with credentials or a query; give the "
                "plain URL, and credentials through the environment of the store"
            )
        self.url = url.rstrip("/")
        self.config = config
        self._cache = None if config.cache_dir is None else _Cache(Path(config.cache_dir), config.cache_max_bytes, self)
        self._files: Files | None = None

    def __getstate__(self) -> dict:
        # Connections do not survive a fork or a pickle.
        return {**self.__dict__, "_files": None}

    def exists(self) -> bool:
        """Taken for granted: there is no folder to ask for; a missing manifest says the same."""
        return True

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def size(self, name: str) -> int:
        failures = 0
        while True:
            try:
                return self.files.size(name)
            except NetworkError as error:
                failures += 1
                self._wait(name, str(error), failures)

    def read(self, name: str) -> bytes:
        return b"".join(self.pieces(name, 0, self.size(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        if self._cache is None:
            return b"".join(self.pieces(name, offset, size))
        with open(self._cache.get(name), "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def forget(self, name: str) -> bool:
        """Drops a file from the cache, so that it is fetched anew. True: a second read may give something else."""
        if self._cache is not None:
            self._cache.path(name).unlink(missing_ok=True)
        return True

    @property
    def files(self) -> Files:
        """The connection of this process."""
        if self._files is None:
            is_http = self.url.startswith(("http://", "https://"))
            self._files = HttpFiles(self.url, self.config.timeout_sec) if is_http else FsspecFiles(self.url)
        return self._files

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """Exactly ``size`` bytes in pieces, over as many connections as it takes: one that breaks is taken up where it
        broke.

        Raises:
            OSError: ``attempts`` connections in a row brought nothing.
        """
        received = 0
        failures = 0
        while received < size:
            problem = "the connection ended early"
            try:
                for piece in self.files.pieces(name, offset + received, size - received):
                    received += len(piece)
                    failures = 0
                    yield piece
            except NetworkError as error:
                problem = str(error)
            if received < size:
                failures += 1
                self._wait(name, problem, failures)

    def _wait(self, name: str, problem: str, failures: int) -> None:
        """Waits before the next try, or raises ``OSError`` after the last one."""
        if failures >= self.config.attempts:
            raise OSError(f"{problem}, {failures} times in a row") from None
        pause = min(self.config.back_off_sec * 2 ** (failures - 1), MAX_BACK_OFF_SEC)
        logger.warning("%s: %s; try %d in %.1f s", self.where(name), problem, failures + 1, pause)
        time.sleep(pause)


class _Cache:
    """Whole shards of a store in a folder of this machine, which its processes share; those used longest ago go."""

    def __init__(self, folder: Path, max_bytes: int, store: RemoteStore):
        self.folder, self.max_bytes, self.store = folder, max_bytes, store
        # a folder of its own per URL, by hash: URLs make poor file names
        self.own_folder = folder / hashlib.sha256(store.url.encode()).hexdigest()[:16]

    def path(self, name: str) -> Path:
        """Where a file is kept."""
        return self.own_folder / name

    def get(self, name: str) -> Path:
        """The file, fetched first if it is not there. One process fetches, the others wait for it."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(path.name + ".lock")):
            if not path.exists():
                self._download(name, path)
            os.utime(path)
        return path

    def _download(self, name: str, path: Path) -> None:
        """Fetches a whole file beside its final name; a part that an earlier process left is continued."""
        part = path.with_name(path.name + ".part")
        size = self.store.size(name)
        self._make_room(size, path)
        with open(part, "ab") as file:
            if file.tell() > size:
                file.truncate(0)
            for piece in self.store.pieces(name, file.tell(), size - file.tell()):
                file.write(piece)
        commit_file(part, path)

    def _make_room(self, needed: int, wanted: Path) -> None:
        """Drops the files used longest ago until the cache can take ``needed`` bytes."""
        with hold_lock(self.folder / ".lock"):
            kept = []
            for file in self.folder.glob("*/*.tar"):
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


class HttpFiles:
    """Files of a web server that answers ranges."""

    def __init__(self, url: str, timeout_sec: float):
        self.url = url
        self.timeout_sec = timeout_sec

    def size(self, name: str) -> int:
        with self._request(name, "HEAD", {}) as response:
            length = response.headers.get("Content-Length")
        if length is None:
            raise OSError(f"{self.url}/{name}: the server does not say how large it is")
        return int(length)

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        with self._request(name, "GET", {"Range": f"bytes={offset}-{offset + size - 1}"}) as response:
            if response.status != 206 and offset > 0:
                raise OSError(f"{self.url}/{name}: the server does not answer ranges (status {response.status})")
            left = size
            while left > 0:
                try:
                    piece = response.read1(min(left, PIECE_BYTES))
                except (OSError, http.client.HTTPException) as error:
                    raise NetworkError(_reason(error)) from None
                if not piece:
                    return
                left -= len(piece)
                yield piece

    def _request(self, name: str, method: str, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(f"{self.url}/{name}", headers=headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout_sec)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise FileNotFoundError(f"{self.url}/{name} does not exist") from None
            kind = NetworkError if error.code in RETRIED_STATUS else OSError
            raise kind(f"the server answered {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(_reason(error)) from None


class FsspecFiles:
    """Files of any store that fsspec knows."""

    def __init__(self, url: str):
        try:
            import fsspec

            self.system, self.root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"{url} needs a package that is not installed: {error}") from None

    def size(self, name: str) -> int:
        with _as_network_error():
            return int(self.system.size(f"{self.root}/{name}"))

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        for start in range(offset, offset + size, 2**24):
            with _as_network_error():
                piece = self.system.cat_file(f"{self.root}/{name}", start=start, end=min(start + 2**24, offset + size))
            if not piece:
                return
            yield piece


@contextlib.contextmanager
def _as_network_error() -> Iterator[None]:
    """Stores raise errors of their own packages; what is not about a missing file or a missing right may pass."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise NetworkError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    return text.splitlines()[0]
