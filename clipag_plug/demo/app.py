"""The HTTP side of the page: a Starlette application with a fixed table of addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..options.explain import METHODS
from ..options.generate import PRESETS
from ..options.tools import Demo
from ..version import __version__
from ..vocabulary import suggestions, unheard
from .gallery import Gallery, kind_of
from .guard import Guard
from .jobs import Channel, Queue, QueueFullError
from .live import encoded, live
from .requests import LONGEST_TEXT, MOST_MAPS, PAIR, SIZES, read
from .studio import Studio
from .uploads import UploadError, Uploads

log = logging.getLogger(__name__)
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = (
    "index.html",
    "page.css",
    "page.js",
    "form.js",
    "dom.js",
    "paint.js",
    "look.js",
    "live.js",
    "view.js",
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
JSON_LIMIT = 64 * 1024  # bytes of a request
DRAINED = 32 * 2**20  # bytes beyond a limit that are read and dropped
PATIENCE = 120.0  # s that a body may take to arrive
SENDING = 3  # uploads that may arrive at one time; the others wait with theirs


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
        self._sending = asyncio.Semaphore(SENDING)
        table: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("/api/state", "GET", lambda request: self.state()),
            ("/api/runs", "GET", lambda request: self.gallery.runs()),
            ("/api/words", "GET", lambda request: words(request.query_params.get("text", ""))),
            ("/api/runs/{run}/star", "POST", self._star),
            ("/api/runs/{run}/delete", "POST", self._delete),
            ("/api/runs/{run}/restore", "POST", self._restore),
            ("/download", "GET", self._download),
            ("/runs/{path:path}", "GET", self._file),
            ("/uploads/{name}", "GET", self._upload),
            ("/api/uploads", "POST", self._add_upload),
            ("/api/jobs", "POST", self._submit),
            ("/api/jobs/{number}/stop", "POST", self._stop),
            ("/{name:path}", "GET", self._page),
        ]
        routes: list[BaseRoute] = [WebSocketRoute("/api/live", self._live)]
        routes += [
            Route(path, self._answer(handle), methods=[verb]) for path, verb, handle in table
        ]
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
            upload = request.url.path == "/api/uploads" and request.method == "POST"
            try:
                # An upload is in memory until it is decoded, so only a few may be under way.
                async with self._sending if upload else contextlib.nullcontext():
                    if request.method == "POST":
                        request.state.body = await self._body(request, upload)
                    found = await run_in_threadpool(handle, request)
            except FileNotFoundError as error:
                return _failure(404, "this is gone; reload the page" if error.errno else str(error))
            except UploadError as error:
                return _failure(error.status, str(error))
            except QueueFullError as error:
                return _failure(429, str(error))
            except (ValueError, RecursionError) as error:
                return _failure(400, str(error))
            except OSError as error:
                log.warning("%s %s: %s", request.method, request.url.path, error)
                return _failure(503, f"the disk did not do it: {error.strerror}")
            return found if isinstance(found, Response) else _json(found)

        return endpoint

    async def _body(self, request: Request, upload: bool) -> bytes:
        most = self.uploads.most_bytes if upload else JSON_LIMIT
        too_large = self.uploads.too_large() if upload else f"a request may have {most} bytes"
        parts, size = [], 0
        try:
            async with asyncio.timeout(PATIENCE):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    # Closing on a sender makes it lose the answer, so read on for a while.
                    elif size > most + DRAINED:
                        break
        except ClientDisconnect as error:
            raise ValueError("the sender went away") from error
        except TimeoutError as error:
            raise UploadError("sending this took too long; try again", 408) from error
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
        return Response(file.read_bytes(), media_type=kind_of(file.name), headers=HEADERS)

    def _star(self, request: Request) -> dict[str, Any]:
        """{"on": true} marks a run as liked."""
        asked = json.loads(request.state.body)
        on = isinstance(asked, dict) and asked.get("on") is True
        self.gallery.star(request.path_params["run"], on)
        return {"starred": on}

    def _delete(self, request: Request) -> dict[str, Any]:
        return {"kept": self.gallery.delete(request.path_params["run"])}

    def _restore(self, request: Request) -> dict[str, Any]:
        return {"id": self.gallery.restore(request.path_params["run"])}

    def _download(self, request: Request) -> Response:
        """Everything of the gallery, or of ?run=RUN, as one ZIP file."""
        run = request.query_params.get("run")
        archive = self.gallery.archive([run] if run else None)
        name = f"{run or 'clipag'}.zip"
        gone = BackgroundTask(archive.unlink, missing_ok=True)
        return FileResponse(
            archive, headers=HEADERS, media_type="application/zip", filename=name, background=gone
        )

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

    async def _live(self, socket: WebSocket) -> None:
        await live(socket, self.channel, self.guard)

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


def _json(content: Any, status: int = 200) -> Response:
    return Response(encoded(content), status, HEADERS, "application/json")


def _failure(status: int, sentence: str) -> Response:
    # What is left of the body has not been read: the connection cannot be used again.
    answer = _json({"error": " ".join(sentence.split())}, status)
    answer.headers["Connection"] = "close"
    return answer
