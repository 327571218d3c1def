"""The HTTP side of the page: a fixed table of addresses, each answered in a few lines."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socket import AF_INET, AF_INET6, SHUT_WR
from typing import Any
from urllib.parse import unquote, urlsplit

from ..options.demo import Demo
from ..options.explain import METHODS
from ..options.generate import PRESETS
from ..version import __version__
from .events import Channel, stream
from .gallery import FILES, MOST_MAPS, Gallery
from .guard import Guard
from .jobs import Queue, QueueFullError
from .requests import LONGEST_TEXT, PAIR, SIZES, read
from .studio import Studio
from .uploads import UploadError, Uploads

log = logging.getLogger(__name__)
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "dom", "paint", "look", "gallery")
    },
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_JSON_LIMIT = 64 * 1024
_CONNECTIONS = 64


class App:
    """Everything the page needs, without the HTTP around it."""

    def __init__(self, options: Demo) -> None:
        self.options = options
        self.gallery = Gallery(options.output)
        most = int(options.upload_limit * 2**20), int(options.pixel_limit * 1e6)
        self.uploads = Uploads(self.gallery.root / ".uploads", *most)
        self.studio = Studio(self.gallery, self.uploads, options.models, options.device)
        self.channel = Channel()
        self.queue = Queue(self.channel, options.queue)
        self.guard = Guard(options.host, options.allow)

    def state(self) -> dict[str, Any]:
        """What the page needs to know once."""
        offered = [model["key"] for model in self.studio.models]
        return {
            "version": __version__,
            "models": self.studio.models,
            "pair": [key for key in PAIR if key in offered] or offered[:1],
            "presets": {name: preset["steps"] for name, preset in PRESETS.items()},
            "sizes": SIZES,
            "methods": METHODS,
            "longest": LONGEST_TEXT,
            "maps": MOST_MAPS,
            "bytes": self.uploads.most_bytes,
        }

    def submit(self, asked: dict[str, Any]) -> dict[str, Any]:
        """{"kind": "paint", "request": {...}} or {"again": RUN} -> the job."""
        if "again" in asked:
            task = self.studio.again(str(asked["again"]))
        else:
            task = self.studio.task(read(str(asked.get("kind")), asked.get("request")))
        return self.queue.submit(task).to_dict()


class Server(ThreadingHTTPServer):
    """A thread a connection, at most `_CONNECTIONS` of them."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, app: App) -> None:
        self.app = app
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        self.address_family = AF_INET6 if ":" in app.options.host else AF_INET
        super().__init__((app.options.host, app.options.port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One connection. Every error is a JSON object with one sentence."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "clipag", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get, changes=False)

    def do_POST(self) -> None:
        self._answer(self._post, changes=True)

    def _answer(self, respond: Any, *, changes: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        refused = self.server.app.guard.refusal(self.headers, changes=changes)
        if refused:
            return self._fail(HTTPStatus.FORBIDDEN, refused)
        try:
            respond(path)
        except FileNotFoundError as error:
            self._fail(HTTPStatus.NOT_FOUND, str(error))
        except UploadError as error:
            self._fail(HTTPStatus(error.status), str(error))
        except QueueFullError as error:
            self._fail(HTTPStatus.TOO_MANY_REQUESTS, str(error))
        except ValueError as error:
            self._fail(HTTPStatus.BAD_REQUEST, " ".join(str(error).split()))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            log.exception("%s %s", self.command, path)
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__)

    def _get(self, path: str) -> None:
        app = self.server.app
        if path in PAGE:
            name, kind = PAGE[path]
            data = resources.files(__package__).joinpath("page", name).read_bytes()
            self._send(data, kind)
        elif path == "/api/state":
            self._send_json(app.state())
        elif path == "/api/runs":
            self._send_json(app.gallery.runs())
        elif path == "/api/events":
            self._stream()
        elif path.startswith("/runs/"):
            run, *parts = path.removeprefix("/runs/").split("/")
            file = app.gallery.file(run, *parts)
            self._send(file.read_bytes(), FILES[file.name])
        elif path.startswith("/uploads/"):
            file = app.uploads.path(path.removeprefix("/uploads/"))
            self._send(file.read_bytes(), "image/png")
        else:
            raise FileNotFoundError("there is no such page; go to /")

    def _post(self, path: str) -> None:
        app = self.server.app
        if path == "/api/uploads":
            body = self._body(app.uploads.most_bytes, app.uploads.too_large())
            return self._send_json(app.uploads.add(body), HTTPStatus.CREATED)
        body = self._body(_JSON_LIMIT, f"a request may have {_JSON_LIMIT} bytes")
        if path == "/api/jobs":
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise ValueError("a request must be a JSON object")
            return self._send_json(app.submit(asked), HTTPStatus.CREATED)
        stop = re.fullmatch(r"/api/jobs/(\d{1,9})/stop", path)
        if stop and app.queue.stop(stop[1]):
            return self._send_json({"id": stop[1]})
        raise FileNotFoundError("there is no such job" if stop else "there is no such address")

    def _body(self, most: int, too_large: str) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise UploadError("a request must say its Content-Length", HTTPStatus.LENGTH_REQUIRED)
        if int(length) > most:
            raise UploadError(too_large, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the sender went away")
        return body

    def _stream(self) -> None:
        box = self.server.app.channel.open()
        try:
            self.close_connection = True
            self.send_response(HTTPStatus.OK)
            self._headers("text/event-stream; charset=utf-8", None)
            for part in stream(box):
                self.wfile.write(part)
        finally:
            self.server.app.channel.leave(box)

    def _send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        text = json.dumps(content, ensure_ascii=False)
        self._send(text.encode(), "application/json; charset=utf-8", status)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self._headers(kind, len(data))
        self.wfile.write(data)

    def _headers(self, kind: str, length: int | None) -> None:
        headers: Iterable[tuple[str, str]] = HEADERS.items()
        for name, value in (("Content-Type", kind), ("Cache-Control", "no-store"), *headers):
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _fail(self, status: HTTPStatus, sentence: str) -> None:
        # What is left of the body has not been read: the connection cannot be used again.
        self.close_connection = True
        try:
            self._send_json({"error": sentence}, status)
            self._linger()
        except OSError:
            log.debug("nobody read the answer %s", status)

    def _linger(self, seconds: float = 2.0) -> None:
        """Reads on for a while: closing on a sender makes it lose the answer (RFC 9112, section 9.6)."""
        self.connection.shutdown(SHUT_WR)
        self.connection.settimeout(0.2)
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.connection.recv(1 << 16):
            pass

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
