"""The HTTP side of the page: a Starlette application with a fixed table of addresses."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..options.demo import Demo
from ..options.explain import METHODS
from ..options.generate import PRESETS
from ..version import __version__
from ..vocabulary import suggestions, unheard
from .gallery import FILES, MOST_MAPS, Gallery, UploadError, Uploads
from .jobs import Channel, Mailbox, Queue, QueueFullError
from .requests import LONGEST_TEXT, PAIR, SIZES, read
from .studio import Studio

log = logging.getLogger(__name__)
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = (
    "index.html",
    "page.css",
    "page.js",
    "dom.js",
    "paint.js",
    "look.js",
    "gallery.js",
    "icon.svg",
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOCAL = ("localhost", "127.0.0.1", "::1")
JSON_LIMIT = 64 * 1024  # bytes of a request
DRAINED = 32 * 2**20  # bytes beyond a limit that are read and dropped
HEARTBEAT = 10.0  # s between two signs of life of the live stream


class Guard:
    """Refuses requests by another name, or sent by another page.

    A name that is rebound to this machine (DNS rebinding) arrives as that name in Host, and a form on another site
    arrives with that site in Origin.
    """

    def __init__(self, host: str, allow: Sequence[str] = ()) -> None:
        self.names = {name.casefold() for name in (*LOCAL, host, *allow)}
        self.open = not (
            host == "localhost" or (_address(host) and ipaddress.ip_address(host).is_loopback)
        )
        if self.open:
            self.names.add(socket.gethostname().casefold())

    def refusal(self, headers: Any, *, changes: bool) -> str:
        """Why a request is refused, or nothing. changes: whether it asks for more than a look."""
        host = headers.get("host") or ""
        name = hostname(host)
        if not (name in self.names or (self.open and _address(name))):
            return (
                f"this page does not answer to the name {host!r}; open it by its address, "
                "or start it with: clipag demo --allow NAME"
            )
        origin = headers.get("origin")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if (origin and origin.partition("://")[2] != host) or (
            elsewhere and headers.get("sec-fetch-mode") != "navigate"  # a link may lead here
        ):
            return "another site sent this request"
        kind = (headers.get("content-type") or "").partition(";")[0].strip()
        # What a form can send without asking first (the types of the CORS protocol) is not accepted.
        if changes and kind not in ("application/json", "application/octet-stream"):
            return "send application/json, or application/octet-stream for a picture"
        return ""


def hostname(host: str) -> str:
    """The name in a Host header without its port and the brackets of IPv6; nothing where it is malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]/@\s]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).casefold() if match else ""


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class App:
    """Everything behind the page, and `asgi`, the application that a server runs."""

    def __init__(self, options: Demo) -> None:
        self.options = options
        self.gallery = Gallery(options.output)
        most = int(options.upload_limit * 2**20), int(options.pixel_limit * 1e6)
        self.uploads = Uploads(self.gallery.root / ".uploads", *most)
        self.studio = Studio(self.gallery, self.uploads, options.models, options.device)
        self.channel = Channel()
        self.channel.publish("start", "start", id=secrets.token_hex(8))
        self.queue = Queue(self.channel, options.queue)
        self.guard = Guard(options.host, options.allow)
        table: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("/api/state", "GET", lambda request: self.state()),
            ("/api/runs", "GET", lambda request: self.gallery.runs()),
            ("/api/words", "GET", lambda request: words(request.query_params.get("text", ""))),
            ("/api/events", "GET", self._events),
            ("/runs/{path:path}", "GET", self._file),
            ("/uploads/{name}", "GET", self._upload),
            ("/api/uploads", "POST", self._add_upload),
            ("/api/jobs", "POST", self._submit),
            ("/api/jobs/{number}/stop", "POST", self._stop),
            ("/{name:path}", "GET", self._page),
        ]
        routes = [Route(path, self._answer(handle), methods=[verb]) for path, verb, handle in table]
        failures = {HTTPException: self._fail, Exception: self._fail}
        self.asgi = Starlette(routes=routes, exception_handlers=failures)

    def close(self) -> None:
        """Stops what runs, which still saves its pictures, and ends the live streams."""
        self.queue.close()
        self.channel.close()

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

    def _answer(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """The endpoint of a handler: guarded, off the event loop, its result as JSON, its errors as one sentence."""

        async def endpoint(request: Request) -> Response:
            refused = self.guard.refusal(request.headers, changes=request.method == "POST")
            if refused:
                return _failure(403, refused)
            try:
                if request.method == "POST":
                    request.state.body = await self._body(request)
                found = await run_in_threadpool(handle, request)
            except FileNotFoundError as error:
                return _failure(404, str(error))
            except UploadError as error:
                return _failure(error.status, str(error))
            except QueueFullError as error:
                return _failure(429, str(error))
            except (ValueError, RecursionError) as error:
                return _failure(400, str(error))
            return found if isinstance(found, Response) else _json(found)

        return endpoint

    async def _body(self, request: Request) -> bytes:
        upload = request.url.path == "/api/uploads"
        most = self.uploads.most_bytes if upload else JSON_LIMIT
        too_large = self.uploads.too_large() if upload else f"a request may have {most} bytes"
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif (
                    size > most + DRAINED
                ):  # closing on a sender makes it lose the answer, so read on for a while
                    break
        except ClientDisconnect as error:
            raise ValueError("the sender went away") from error
        if size > most:
            raise UploadError(too_large, 413)
        return b"".join(parts)

    def _page(self, request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        if name not in PAGE:
            raise FileNotFoundError("there is no such page; go to /")
        data = resources.files(__package__).joinpath("page", name).read_bytes()
        return Response(data, media_type=KINDS[name.rpartition(".")[2]], headers=HEADERS)

    def _file(self, request: Request) -> Response:
        run, *parts = request.path_params["path"].split("/")
        file = self.gallery.file(run, *parts)
        return Response(file.read_bytes(), media_type=FILES[file.name], headers=HEADERS)

    def _upload(self, request: Request) -> Response:
        data = self.uploads.path(request.path_params["name"]).read_bytes()
        return Response(data, media_type="image/png", headers=HEADERS)

    def _add_upload(self, request: Request) -> Response:
        return _json(self.uploads.add(request.state.body), 201)

    def _submit(self, request: Request) -> Response:
        """{"kind": "paint", "request": {...}} or {"again": RUN} -> the job."""
        asked = json.loads(request.state.body)
        if not isinstance(asked, dict):
            raise ValueError("a request must be a JSON object")
        if "again" in asked:
            task = self.studio.again(str(asked["again"]))
        else:
            task = self.studio.task(read(str(asked.get("kind")), asked.get("request")))
        return _json(self.queue.submit(task).to_dict(), 201)

    def _stop(self, request: Request) -> dict[str, Any]:
        number = request.path_params["number"]
        if not self.queue.stop(number):
            raise FileNotFoundError("there is no such job")
        return {"id": number}

    def _events(self, request: Request) -> Response:
        return StreamingResponse(
            stream(self.channel, self.channel.open()),
            media_type="text/event-stream",
            headers=HEADERS,
        )

    async def _fail(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "there is no such address", 405: f"{request.method} is not answered here"}
            return _failure(error.status_code, words.get(error.status_code, error.detail))
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return _failure(500, type(error).__name__)


def words(text: str) -> dict[str, list[str]]:
    """Known things that would end a prompt, and its words where the bundled guides know none of them."""
    text = text[:LONGEST_TEXT]
    return {"suggestions": suggestions(text), "unheard": unheard(text)}


async def stream(channel: Channel, box: Mailbox) -> AsyncIterator[str]:
    """Server-sent events (WHATWG HTML, section 9.2); a comment now and then finds out who is gone."""
    try:
        yield ": open\n\n"
        while (messages := await run_in_threadpool(box.take, HEARTBEAT)) is not None:
            yield (
                "".join(f"data: {_encoded(message)}\n\n" for message in messages)
                or ": still here\n\n"
            )
    finally:
        channel.leave(box)


def _encoded(content: Any) -> str:
    return json.dumps(content, allow_nan=False)  # ASCII: half a surrogate pair is escaped, too


def _json(content: Any, status: int = 200) -> Response:
    return Response(_encoded(content), status, HEADERS, "application/json")


def _failure(status: int, sentence: str) -> Response:
    # What is left of the body has not been read: the connection cannot be used again.
    answer = _json({"error": " ".join(sentence.split())}, status)
    answer.headers["Connection"] = "close"
    return answer
