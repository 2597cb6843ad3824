"""Shards on a web server or in an object store: ranged reads that survive a bad network, and an optional local cache.

fsspec's own reader of web servers and its caches would do in a good network; ours keeps what arrived before a
connection broke, goes on with a download that another process began, and bounds the cache's size. Credentials come from
the store's own environment; they never stand in a URL here, a log or a manifest.
"""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from dydiff_dist.data.remote_cache import ShardCache, is_cache
from dydiff_dist.data.remote_files import PIECE_BYTES, Files, FsspecFiles, HttpFiles, NetworkError
from dydiff_dist.files import MAX_DOCUMENT_BYTES, plain_name, read_at
from dydiff_dist.quoting import shortened
from dydiff_dist.strict_config import StrictConfig

logger = logging.getLogger(__name__)

MAX_BACK_OFF_SEC = 30.0

PROTOCOLS = (
    *("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "tos", "hf", "dbfs"),
    *("hdfs", "arrow_hdfs", "webhdfs", "sftp", "ssh", "ftp", "smb", "webdav", "root", "box", "dropbox", "gdrive"),
    "memory",
)
"""Those of http and of fsspec that name a store. Others wrap another one, run what they read, or read this machine."""


class RemoteConfig(StrictConfig):
    """How shards that lie elsewhere are read."""

    attempts: Annotated[int, Field(ge=1)] = 6
    """Tries in a row that may fail before a read does; one that brings 256 KiB, or the rest, starts the count again."""
    timeout_sec: Annotated[float, Field(gt=0)] = 20.0
    """Time without a byte after which a connection counts as dead; also the window of ``min_bytes_per_sec``."""
    min_bytes_per_sec: Annotated[float, Field(ge=0)] = 10_000.0
    """A connection that brings less, over ``timeout_sec``, counts as dead too; 0 waits for ever."""
    back_off_sec: Annotated[float, Field(ge=0)] = 0.5
    """Wait before the second try; it doubles with each further one, up to half a minute."""
    cache_dir: str | None = None
    """Folder in which shards that were read are kept; None reads samples straight from the store."""
    cache_max_bytes: Annotated[int, Field(ge=0)] = 100 * 2**30
    """Size of the cache; shards used longest ago are dropped beyond it."""


def check_address(address: str) -> str:
    """Returns the folder or URL of shards if it is a plain one: a known protocol, none chained, no credentials.

    Raises:
        ValueError: it is not; credentials are not repeated.

    Examples:
        >>> check_address("s3://bucket/shards/train")
        's3://bucket/shards/train'
        >>> check_address("simplecache::http://me:secret@host/shards")
        Traceback (most recent call last):
            ...
        ValueError: simplecache::http://***@host/shards chains protocols; give the plain URL of the store
    """
    if "://" not in address:
        return address
    shown = shortened(address)
    if "::" in re.sub(r"\[[0-9a-fA-F:.]*\]", "", address):
        raise ValueError(f"{shown} chains protocols; give the plain URL of the store")
    protocol, _, rest = address.partition("://")
    if protocol.lower() not in PROTOCOLS:
        raise ValueError(f"{shown} has an unknown protocol; shards are read from {', '.join(PROTOCOLS)}")
    try:
        parts = urlsplit(address)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:  # a password with a slash in it, taken for a port
        port_is_right = False
    if not port_is_right or "?" in rest or "#" in rest or "@" in parts.netloc or "@" in rest.split("/")[0]:
        raise ValueError(
            f"{shown} was given with credentials or a query; give the plain URL, and credentials through the "
            "environment of the store"
        )
    return address


Address = Annotated[str, Field(min_length=1), AfterValidator(check_address)]
"""A field that holds a folder or URL of shards."""


def from_elsewhere(remote: RemoteConfig) -> RemoteConfig:
    """The settings as they stand in a model or in forecasts, which may have come from anywhere: they make no new cache
    folder on this machine, and use one that is a cache already."""
    keeps = remote.cache_dir is not None and is_cache(Path(remote.cache_dir))
    return remote if keeps else remote.model_copy(update={"cache_dir": None})


class RemoteStore:
    """Files below a URL, as a store of shards."""

    def __init__(self, url: str, config: RemoteConfig):
        protocol, _, rest = check_address(url).rstrip("/").partition("://")
        self.url = f"{protocol.lower()}://{rest}"
        self.config = config
        self._cache = None
        if config.cache_dir is not None:
            self._cache = ShardCache(Path(config.cache_dir), config.cache_max_bytes, self.url, self)
        self._files: Files | None = None

    def __getstate__(self) -> dict:
        # Connections do not survive a fork or a pickle.
        return {**self.__dict__, "_files": None}

    def exists(self) -> bool:
        """Taken for granted: there is no folder to ask for; a missing manifest says the same."""
        return True

    def where(self, name: str) -> str:
        """The file's URL, or that of the folder for ""."""
        return f"{self.url}/{plain_name(name)}" if name else self.url

    def size(self, name: str) -> int:
        """Bytes of a file; ``FileNotFoundError`` if it is missing, ``OSError`` after ``attempts`` tries."""
        failures = 0
        while True:
            try:
                return self.files.size(name)
            except NetworkError as error:
                failures += 1
                self._wait(name, str(error), failures)

    def read(self, name: str) -> bytes:
        """A whole document, never from the cache; ``OSError`` where it is larger than ``MAX_DOCUMENT_BYTES``."""
        size = self.size(name)
        if size > MAX_DOCUMENT_BYTES:
            raise OSError(f"the server says that it has {size} bytes, too many for a document")
        return b"".join(self.pieces(name, 0, size))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on, from the cache where there is one, which takes the whole file first."""
        if self._cache is None:
            return b"".join(self.pieces(name, offset, size))
        with self._cache.open(name) as file:
            return read_at(file, offset, size)

    def forget(self, name: str) -> bool:
        """Drops a file from the cache, so that it is fetched anew. True: a second read may give something else."""
        if self._cache is not None:
            self._cache.forget(name)
        return True

    @property
    def files(self) -> Files:
        """The connection of this process."""
        if self._files is None:
            kind = HttpFiles if self.url.startswith(("http://", "https://")) else FsspecFiles
            self._files = kind(self.url, self.config.timeout_sec, self.config.min_bytes_per_sec)
        return self._files

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """Exactly ``size`` bytes in pieces, over as many connections as it takes: one that breaks is taken up where it
        broke.

        Raises:
            OSError: ``attempts`` connections in a row brought too little.
        """
        received = 0
        failures = 0
        while received < size:
            problem, before = "the connection ended early", received
            try:
                for piece in self.files.pieces(name, offset + received, size - received):
                    received += len(piece)
                    yield piece
            except NetworkError as error:
                problem = str(error)
            if received < size:
                failures = 1 if received - before >= PIECE_BYTES else failures + 1
                self._wait(name, problem, failures)

    def _wait(self, name: str, problem: str, failures: int) -> None:
        """Waits before the next try, or raises ``OSError`` after the last one."""
        if failures >= self.config.attempts:
            raise OSError(f"{problem}, {failures} times in a row") from None
        pause = min(self.config.back_off_sec * 2 ** (failures - 1), MAX_BACK_OFF_SEC)
        logger.warning("%s: %s; try %d in %.1f s", self.where(name), problem, failures + 1, pause)
        time.sleep(pause)
