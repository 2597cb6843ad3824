"""Servers on loopback ports, and a proxy in front of them that breaks connections as told."""

import contextlib
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HOST = "127.0.0.1"


@dataclass
class FaultyProxy:
    """Passes requests on to ``upstream``; each GET takes the next fault from ``faults``, and works when none is left.

    Faults: "drop" resets the connection after a part, "short" ends it after a part, "stall" sends a part and then
    nothing, "503" answers so, "alter" changes a byte.
    """

    upstream: tuple[str, int]
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    """(file name, first byte) of each GET."""
    stall_sec: float = 1.0
    url: str = ""

    def handle(self, client: socket.socket) -> None:
        """Answers one request and closes."""
        with client:
            head = _read_head(client)
            fault = self._next_fault(head)
            if fault == "503":
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            self._send(client, self._ask(head), fault)

    def _next_fault(self, head: bytes) -> str | None:
        method, path = head.decode("latin-1").split()[:2]
        if method != "GET":
            return None
        wanted = re.search(rb"(?i)\r\nrange: bytes=(\d+)-", head)
        self.requests.append((path.split("?")[0].rsplit("/", 1)[-1], int(wanted[1]) if wanted else 0))
        return self.faults.pop(0) if self.faults else None

    def _ask(self, head: bytes) -> bytes:
        """The whole answer of the upstream server."""
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"connection:")]
        with socket.create_connection(self.upstream) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n")
            return b"".join(iter(lambda: server.recv(65536), b""))

    def _send(self, client: socket.socket, answer: bytes, fault: str | None) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault == "alter":
            body = bytes([body[0] ^ 1]) + body[1:]
        elif fault is not None:
            body = body[: len(body) // 3]
        client.sendall(head + b"\r\n\r\n" + body)
        if fault == "stall":
            time.sleep(self.stall_sec)
        if fault == "drop":
            # A linger of 0 s makes close() send a reset instead of an orderly end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def faulty_proxy(upstream: tuple[str, int]) -> Iterator[FaultyProxy]:
    """Runs a proxy while the block runs."""
    proxy = FaultyProxy(upstream)
    with socket.create_server((HOST, 0)) as listener:
        proxy.url = f"http://{HOST}:{listener.getsockname()[1]}"
        thread = threading.Thread(target=_accept, args=(listener, proxy), daemon=True)
        thread.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _accept(listener: socket.socket, proxy: FaultyProxy) -> None:
    def answer(client: socket.socket) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the reader has given up on a stalled connection
            proxy.handle(client)

    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def _read_head(client: socket.socket) -> bytes:
    """A request without a body: up to the empty line."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError("the client went away")
        head += piece
    return head


@contextlib.contextmanager
def nginx(folder: Path, work: Path) -> Iterator[tuple[str, int]]:
    """nginx serving ``folder``; skips where it is not installed. ``work`` is for its own files."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    work.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (work / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {work}/pid; error_log {work}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen {HOST}:{port}; root {folder}; }} }}\n"
    )
    command = [program, "-p", str(work), "-e", str(work / "error.log"), "-c", str(work / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        _wait_for(port, process)
        yield HOST, port
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(200):
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing answers on port {port}")


@contextlib.contextmanager
def python_server(folder: Path) -> Iterator[tuple[str, int]]:
    """A server of Python's own with ranges, for machines without nginx."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silence."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted:
                data = data[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield HOST, server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
