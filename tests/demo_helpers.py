"""What the tests of the demo share: a server in this process, a client that speaks to it, and requests."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from clipag_plug.demo.app import App
from clipag_plug.demo.command import settings
from clipag_plug.demo.guard import listen
from clipag_plug.options.tools import Demo


class Client:
    """Speaks HTTP to one server, as a page of it would."""

    def __init__(self, app: App, port: int) -> None:
        self.app, self.port = app, port

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def get(self, path: str) -> Any:
        status, body, _ = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        status, body, _ = self.ask("POST", path, data, Content_Type=kind)
        return status, json.loads(body)

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        """Waits until a job is over, and returns its run."""
        end = time.monotonic() + 240
        while time.monotonic() < end:
            found = next(each for each in self.app.queue.jobs() if each["id"] == job["id"])
            if found["state"] in ("done", "stopped"):
                return self.app.gallery.get(found["run"])
            assert found["state"] != "failed", found["message"]
            time.sleep(0.02)
        raise AssertionError("the job did not end")


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Client]:
    asked = Demo(**{"port": 0, **options})
    app, listening = App(asked), listen(asked)
    server = uvicorn.Server(settings(app))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield Client(app, listening.getsockname()[1])
    finally:
        app.close()
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("demo")
    (root / "secret.txt").write_text("secret")
    (root / "image.png").write_bytes(b"secret")
    with serving(output=str(root / "runs"), upload_limit=0.25, pixel_limit=0.1) as found:
        yield found


def png(width: int = 40, height: int = 30) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def paint(**changes: Any) -> dict[str, Any]:
    asked = {"prompt": "a goldfish", "models": ["clipag-mini"], "steps": 2, **changes}
    return {"kind": "paint", "request": asked}


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises many pixels, in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
