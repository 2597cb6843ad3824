"""The protocols by which shards that lie elsewhere are read, each so that no server can hold a reader for ever.

``http(s)://`` is read by Python's own client, everything else by fsspec and the package it needs for that store. A
server that is silent runs into the timeout; one that sends a byte now and then, into the floor of the rate.
"""

import contextlib
import http.client
import io
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from dydiff_dist.files import plain_name
from dydiff_dist.quoting import first_line, shortened

PIECE_BYTES = 2**18
"""Bytes taken from a connection at once; what arrived before it breaks is kept."""

MAX_HEAD_BYTES = 2**20
"""Of an answer's head."""

MAX_FRAMING = 16
"""Bytes that a body may take on the line per byte of its content."""

RETRIED_STATUS = (408, 429, 500, 502, 503, 504)

FSSPEC_PIECE_BYTES = 2**24

Result = TypeVar("Result")


class NetworkError(OSError):
    """A read that may go well when tried again."""


class Files(Protocol):
    """The protocol of one kind of store; names are plain file names.

    Both raise ``NetworkError`` where another try may go well, and where none will ``FileNotFoundError`` or another
    ``OSError``.
    """

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """``size`` bytes from ``offset`` on as they arrive, without gaps; may end early."""


class HttpFiles:
    """Files of a web server that answers ranges."""

    def __init__(self, url: str, timeout_sec: float, min_bytes_per_sec: float):
        self.url, self.timeout_sec = url, timeout_sec
        self._opener = urllib.request.OpenerDirector()  # without the handlers of files and FTP, for redirections
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            _PacedHandler(partial(_Pace, timeout_sec, min_bytes_per_sec)),
        ):
            self._opener.add_handler(handler)

    def size(self, name: str) -> int:
        """Bytes of a file, as the answer to HEAD says."""
        with self._request(name, "HEAD", {}) as response:
            length = response.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise OSError(f"the server does not say how large it is (Content-Length {shortened(length)!r})")
        return int(length)

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """The body of one GET with a range, at most ``PIECE_BYTES`` at once."""
        with self._request(name, "GET", {"Range": f"bytes={offset}-{offset + size - 1}"}) as response:
            if response.status != 206 and offset > 0:
                raise OSError(f"the server does not answer ranges (status {response.status})")
            response.pace.allow(MAX_FRAMING * size + MAX_HEAD_BYTES)
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
        url = f"{self.url}/{quote(plain_name(name))}"
        try:
            request = urllib.request.Request(url, headers=headers, method=method)
            return self._opener.open(request, timeout=self.timeout_sec)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise FileNotFoundError(f"{url} does not exist") from None
            kind = NetworkError if error.code in RETRIED_STATUS else OSError
            raise kind(f"the server answered {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: it redirects to no URL
            raise NetworkError(_reason(error)) from None


class _Pace:
    """Counts what one connection brings, and gives it up where that is too little in time, or more than was asked."""

    def __init__(self, window_sec: float, min_bytes_per_sec: float):
        self.window_sec, self.min_bytes_per_sec = window_sec, min_bytes_per_sec
        self._bytes, self._sec = 0, 0.0
        self.allow(MAX_HEAD_BYTES)

    def allow(self, num_bytes: int) -> None:
        """So many bytes more may come."""
        self._left = num_bytes

    def read(self, receive: Callable[[], int]) -> int:
        """What ``receive`` returns, a number of bytes; only the time within it counts.

        Raises:
            NetworkError: too few bytes in a window of ``window_sec``, or more than allowed.
        """
        start = time.monotonic()
        count = receive()
        self._sec += time.monotonic() - start
        self._bytes += count
        self._left -= count
        if self._left < 0:
            raise NetworkError("the server sends more than it was asked for")
        if self._sec >= self.window_sec and count:
            if self._bytes < self.min_bytes_per_sec * self._sec:
                raise NetworkError(
                    f"only {self._bytes} bytes came in {self._sec:.1f} s, below data.remote.min_bytes_per_sec "
                    f"{self.min_bytes_per_sec:g}"
                )
            self._bytes, self._sec = 0, 0.0
        return count


class _PacedStream(io.RawIOBase):
    """A connection's incoming bytes, counted."""

    def __init__(self, raw: io.RawIOBase, pace: _Pace):
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._pace.read(lambda: self._raw.readinto(buffer) or 0)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    """An answer of which every byte is counted: head, framing and body."""

    def __init__(self, sock: Any, *arguments: Any, pace: _Pace, **options: Any):
        super().__init__(sock, *arguments, **options)
        self.pace = pace
        self.fp = io.BufferedReader(_PacedStream(self.fp.detach(), pace))


class _PacedHandler(urllib.request.AbstractHTTPHandler):
    """Opens connections whose answers are counted, each by a ``_Pace`` of its own."""

    def __init__(self, make_pace: Callable[[], _Pace]):
        super().__init__()
        self._make_pace = make_pace

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._paced(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._paced(http.client.HTTPSConnection), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _paced(self, kind: type[http.client.HTTPConnection]) -> Any:
        def connect(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            connection = kind(*arguments, **options)
            connection.response_class = partial(_PacedResponse, pace=self._make_pace())  # type: ignore[assignment]
            return connection

        return connect


class FsspecFiles:
    """Files of a store that fsspec knows."""

    def __init__(self, url: str, timeout_sec: float, min_bytes_per_sec: float):
        self.timeout_sec, self.min_bytes_per_sec = timeout_sec, min_bytes_per_sec
        try:
            import fsspec

            self.system, self.root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"{url} needs a package that is not installed: {first_line(error)}") from None
        except Exception as error:  # of the store's own package
            raise ValueError(f"{url} can't be opened: {first_line(error)}") from None

    def size(self, name: str) -> int:
        """Bytes of a file."""
        path = f"{self.root}/{plain_name(name)}"
        return self._in_time(0, lambda: int(self.system.size(path)))

    def pieces(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """``FSSPEC_PIECE_BYTES`` a request, up to the first that brings less than was asked for."""
        for start in range(offset, offset + size, FSSPEC_PIECE_BYTES):
            end = min(start + FSSPEC_PIECE_BYTES, offset + size)
            read = partial(self.system.cat_file, f"{self.root}/{plain_name(name)}", start=start, end=end)
            piece = self._in_time(end - start, read)
            yield piece
            if len(piece) < end - start:  # the next one would not follow on it
                return

    def _in_time(self, num_bytes: int, action: Callable[[], Result]) -> Result:
        with _as_network_error():
            return in_time(action, num_bytes, self.timeout_sec, self.min_bytes_per_sec)


def in_time(action: Callable[[], Result], num_bytes: int, timeout_sec: float, min_bytes_per_sec: float) -> Result:
    """What ``action`` returns, which is to bring so many bytes. It runs in a thread, as the stores' packages have no
    limit for a whole request; one that takes too long is left behind.

    Raises:
        NetworkError: it takes longer than the timeout and the floor of the rate allow.
        Exception: whatever ``action`` raises.
    """
    results: list[Result] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(action())
        except Exception as error:
            failures.append(error)

    limit_sec = timeout_sec + num_bytes / min_bytes_per_sec if min_bytes_per_sec else None
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_sec)
    if results:
        return results[0]
    raise failures[0] if failures else NetworkError(f"no answer in {limit_sec:.1f} s for {num_bytes} bytes")


@contextlib.contextmanager
def _as_network_error() -> Iterator[None]:
    """Stores raise errors of their own packages; what is not about a missing file or a missing right may pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise PermissionError(_reason(error)) from None
    except Exception as error:
        raise NetworkError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    reason = getattr(error, "reason", None) or error
    return first_line(reason) if isinstance(reason, BaseException) else shortened(str(reason))
