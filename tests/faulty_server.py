"""A local HTTP server that serves one file and misbehaves as told."""

from __future__ import annotations

import http.server
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CONTENT = random.Random(0).randbytes(300_000)
TAG = '"v1"'


class Server(http.server.ThreadingHTTPServer):
    """faults: what the coming requests meet, one each; none left means a good answer."""

    daemon_threads = True
    content = CONTENT
    tag = TAG
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Callable[[Handler], None]] = []
        self.requests: list[tuple[str | None, int]] = []  # asked range, bytes sent
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pt"

    @property
    def sent(self) -> int:
        return sum(count for _, count in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
        (fault or Handler.answer)(self)

    def span(self) -> tuple[int, bool]:
        """Where the answer starts, and whether it is a partial one."""
        asked = self.headers.get("Range", "")
        fits = self.headers.get("If-Range", self.server.tag) == self.server.tag
        if not (self.server.ranges and asked and fits):
            return 0, False
        return int(asked.removeprefix("bytes=").split("-")[0]), True

    def answer(
        self, cut: int | None = None, length: int | None = None, body: bytes | None = None
    ) -> None:
        """The rest of the file; `cut` drops the connection at that offset of the whole file."""
        body = self.server.content if body is None else body
        start, partial = self.span()
        if start >= len(body):
            return self.fail(416)
        end = len(body) if cut is None else max(cut, start)
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start if length is None else length))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        # Noted before the last byte is out: the client may be done, and looking, right after it.
        self.server.requests.append((self.headers.get("Range"), end - start))
        self.wfile.write(body[start:end])
        if cut is not None or length is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def fail(self, code: int, **headers: str) -> None:
        self.server.requests.append((self.headers.get("Range"), 0))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def page(self, kind: str = "text/html; charset=utf-8") -> None:
        text = b"<!DOCTYPE html><html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.server.requests.append((self.headers.get("Range"), len(text)))
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
