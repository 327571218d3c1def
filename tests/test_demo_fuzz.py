"""Two thousand requests that no page would send: never a 500, never a traceback, and the page still paints."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_helpers import bomb, paint
from PIL import Image
from websockets.sync.client import connect

COUNT = int(os.environ.get("CLIPAG_FUZZ", "2000"))
GROWTH = 300 * 2**20  # bytes
pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent

ODD: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        10**9,
        2**70,
        1.5,
        "",
        " ",
        "x" * 400,
        "\ud800",
        "\0",
        "../..",
        "/etc/passwd",
    ),
    *([], [None], ["clipag-mini"] * 3, {}, {"a": {"b": []}}, "clip-mini", ["nobody"], float("nan")),
]
FIELDS = (
    *("prompt", "models", "seed", "steps", "preset", "size", "picture", "strength", "count"),
    *("strokes", "texts", "method", "output", "image", "__class__", ""),
)
PIECES = (
    *(
        "/",
        "api",
        "runs",
        "jobs",
        "uploads",
        "state",
        "words",
        "live",
        "download",
        "star",
        "delete",
    ),
    *("restore", "stop", "1", "..", ".", "%2e%2e", "%2f", "%00", "%ff", "\u00e9", "a", "image.png"),
    *(
        "run.json",
        "?text=a",
        "?run=..",
        "?run=%2e%2e",
        "#x",
        ";",
        "\\",
        "//",
        "index.html",
        "x" * 300,
    ),
)
METHODS = (
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "BREW",
    "get",
    "G T",
    "",
)
HOSTS = ("", "evil.example", "127.0.0.1.evil.example", "localhost:99999", "[::1", "a@b", "x" * 300)
LINES = (
    *("Origin: https://evil.example", "Origin: null", "Content-Type: text/plain", "Cookie: a=b"),
    *(
        "Transfer-Encoding: chunked",
        "Content-Length: -1",
        "Content-Length: 5",
        "Expect: 100-continue",
    ),
    *(
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Range: bytes=0-1",
        "X: " + "y" * 5000,
        ": z",
        "q",
    ),
    *("Sec-Fetch-Site: cross-site", "Connection: close, keep-alive", "Content-Encoding: gzip"),
)


PROMISED = re.compile(rb"Transfer-Encoding|Length: 5|Expect")


def broken_pictures(rng: random.Random) -> list[bytes]:
    """Forty kinds of files that are no whole picture, or no picture of ours."""
    found = [
        b"",
        b"\0",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"<svg/>",
        bomb(50_000, 50_000),
    ]
    found += [bomb(0, 5), bomb(2**31 - 1, 1), b"\0\0\0\x18ftypheic" + bytes(90), b"P6 9 9 255\n"]
    noise = Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        noise.save(file, kind)
        whole = file.getvalue()
        flipped = bytearray(whole)
        for _ in range(20):
            flipped[rng.randrange(len(flipped))] ^= 255
        found += [whole[: len(whole) // 2], whole[:30], bytes(flipped), whole[20:]]
        found.append(whole[:40] + bytes(len(whole) - 80) + whole[-40:])
    assert len(found) >= 40
    return found


def request(rng: random.Random, port: int, pictures: list[bytes]) -> bytes:
    """One request of the grammar, as bytes."""
    host, lines, body = f"127.0.0.1:{port}", [], b""
    what = rng.random()
    if what < 0.3:  # a job with something wrong in it
        asked = paint(steps=1)
        for _ in range(rng.randint(1, 3)):
            asked["request"][rng.choice(FIELDS)] = rng.choice(ODD)
        asked["kind"] = rng.choice(["paint", "draw", "style", "explain", "rm", 3])
        asked = rng.choice([asked, asked, asked, {"again": rng.choice(ODD)}, rng.choice(ODD)])
        body = json.dumps(asked).encode()
        method, path, kind = "POST", "/api/jobs", "application/json"
        if rng.random() < 0.3:
            body = rng.choice(
                [body[:-3], b"[" * 30_000, b"{" + body, body * 2000, b"\xff\xfe", b"NaN"]
            )
    elif what < 0.5:
        method, path, kind = "POST", "/api/uploads", "application/octet-stream"
        body = rng.choice(pictures)
    else:
        method = rng.choice(METHODS)
        path = "/" + "/".join(rng.choices(PIECES, k=rng.randint(0, 5)))
        kind = rng.choice(["application/json", "text/html", "", "\u00e9"])
        body = rng.choice([b"", b"{}", b'{"on": true}', rng.randbytes(50)])
        if rng.random() < 0.3:
            host = rng.choice(HOSTS)
        lines = rng.sample(LINES, rng.randint(0, 3))
    lines += [f"Host: {host}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    rng.shuffle(lines)
    version = rng.choice(["HTTP/1.1"] * 9 + ["HTTP/9.9"])
    head = "\r\n".join([f"{method} {path} {version}", *lines, "Connection: close", "", ""])
    return head.encode("utf-8", "replace") + body


def ask(port: int, data: bytes) -> bytes:
    """The answer to a request, or nothing where its sender promised more than it sent: then it hangs up."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sender:
        sender.settimeout(2 if PROMISED.search(data[:8000]) else 60)
        sender.sendall(data)
        while part := sender.recv(65536):
            answer += part
    return answer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    """Port and number of a `clipag demo`, and the file of what it says."""
    said = tmp_path / "said.txt"
    command = [sys.executable, "-m", "clipag_plug", "demo", "--port", "0", "--upload-limit", "0.5"]
    with said.open("w") as errors:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        program = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert program.stdout is not None
            port = int(program.stdout.readline().strip().rpartition(":")[2].strip("/"))
            yield port, program.pid, said
        finally:
            program.kill()
            program.wait(20)


def post(port: int, path: str, content: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def paints(port: int) -> None:
    """The page is told of a picture from its first step to its end; whatever else was queued is taken out."""
    with connect(f"ws://127.0.0.1:{port}/api/live", open_timeout=60) as page:
        mine = ""
        while True:
            message = json.loads(page.recv(timeout=300))
            if message["kind"] != "queue":
                continue
            for job in message["jobs"]:
                if (
                    job["id"] != mine
                    and job["kind"] != "warm-up"
                    and job["state"] in ("waiting", "running")
                ):
                    post(port, f"/api/jobs/{job['id']}/stop", {})
            if not mine:
                status, job = post(port, "/api/jobs", paint(steps=1))
                assert status == 201, job
                mine = job["id"]
            states = [job["state"] for job in message["jobs"] if job["id"] == mine]
            if states and states[0] not in ("waiting", "running"):
                assert states == ["done"]
                return


def memory(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except OSError:
        pytest.skip("no /proc to read the memory of a process from")


def test_no_request_breaks_the_page(server: tuple[int, int, Path]) -> None:
    port, process, said = server
    rng = random.Random(0)
    pictures = broken_pictures(rng)
    paints(port)
    before, most = memory(process), 0
    seen: dict[str, int] = {}
    for number in range(COUNT):
        data = request(rng, port, pictures)
        answer = ask(port, data)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ")[1].decode() if head else "none"
        seen[status] = seen.get(status, 0) + 1
        assert status != "500" and b"Traceback" not in answer, data[:500]
        if status[0] in "45" and body and b"HEAD" not in data[:6]:
            assert b"application/json" in head.lower() or status in ("426",), (
                data[:300],
                answer[:500],
            )
        most = max(most, memory(process))
        if number % 100 == 99:
            paints(port)
    print(seen, f"{(most - before) / 2**20:.0f} MiB at most above the start")
    assert most - before < GROWTH
    assert "Traceback" not in said.read_text(), said.read_text()[-3000:]
    assert {"200", "400", "403", "404", "405", "415"} <= set(seen)
