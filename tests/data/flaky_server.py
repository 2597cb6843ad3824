"""A web server on a loopback port that answers ranges and misbehaves as told."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FlakyServer:
    """Serves ``folder``; each GET takes the next fault from ``faults``, and works when none is left.

    Faults: "drop" resets the connection after a part, "short" ends it after a part, "stall" sends a part and then
    nothing, "503" answers so, "alter" changes a byte.
    """

    folder: Path
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    """(name, first byte) of each GET."""
    stall_sec: float = 1.0
    url: str = ""

    def next_fault(self) -> str | None:
        return self.faults.pop(0) if self.faults else None


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[FlakyServer]:
    """Runs the server while the block runs."""
    state = FlakyServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silence: the tests read ``requests``."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = state.folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(data) - 1)
            data = data[first : last + 1]
            fault = None
            if body:
                state.requests.append((path.name, first))
                fault = state.next_fault()
            if fault == "503":
                self.send_error(503)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self._send(data, fault)

        def _send(self, data: bytes, fault: str | None) -> None:
            if fault == "alter":
                data = bytes([data[0] ^ 1]) + data[1:]
            part = data if fault in (None, "alter") else data[: len(data) // 3]
            self.wfile.write(part)
            if fault == "stall":
                self.wfile.flush()
                time.sleep(state.stall_sec)
            if fault in ("drop", "short", "stall"):
                self.close_connection = True
            if fault == "drop":
                # A linger of 0 s makes close() send a reset instead of an orderly end.
                import socket
                import struct

                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
