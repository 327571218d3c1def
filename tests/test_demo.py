"""The demo's server: what it answers, what it refuses, and that nothing of the machine can be read through it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

from clipag_plug.demo.events import Channel
from clipag_plug.demo.guard import Guard, hostname
from clipag_plug.demo.jobs import Job, Queue, QueueFullError, Task
from clipag_plug.demo.requests import Look, Paint, read
from clipag_plug.demo.server import PAGE, App, Server
from clipag_plug.demo.uploads import UploadError, Uploads
from clipag_plug.images import read_image, write_image
from clipag_plug.options.demo import Demo
from clipag_plug.synthesis import synthesize


class Client:
    """Speaks HTTP to one server, as a page of it would."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_address[1]
        self.app = server.app

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.headers.items())
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
    server = Server(App(Demo(port=0, **options)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Client(server)
    finally:
        server.shutdown()
        server.app.queue.close()
        server.app.channel.close()
        server.server_close()
        thread.join(5)


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


def test_the_page_and_its_parts_come_from_here_alone(client: Client) -> None:
    for path, (_, kind) in PAGE.items():
        status, body, headers = client.ask("GET", path)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text


def test_a_painting_is_what_the_api_paints_and_can_be_repeated(client: Client) -> None:
    status, job = client.post("/api/jobs", paint(models=["clip-mini", "clipag-mini"], seed=3))
    assert status == 201
    run = client.finish(job)
    assert run["id"].endswith("a-goldfish-3") and run["state"] == "done"
    assert [side["model"] for side in run["sides"]] == ["clip-mini", "clipag-mini"]
    for side in run["sides"]:
        expected = synthesize("a goldfish", model=side["model"], seed=3, steps=2, device=None)
        found = read_image(client.app.gallery.file(run["id"], side["key"], "image.png"))
        assert (found - expected.image).abs().max() <= 0.5 / 255 + 1e-6
        for name in side["files"]:
            assert client.ask("GET", f"/runs/{quote(run['id'])}/{side['key']}/{name}")[0] == 200
    status, job = client.post("/api/jobs", {"again": run["id"]})
    again = client.finish(job)
    assert again["id"] != run["id"]
    first, second = (client.app.gallery.file(r["id"], "b", "image.png") for r in (run, again))
    assert first.read_bytes() == second.read_bytes()
    assert [each["id"] for each in client.get("/api/runs")][:2] == [again["id"], run["id"]]


def test_the_trajectory_begins_at_the_start_and_ends_near_the_end(client: Client) -> None:
    from PIL import Image

    run = client.finish(client.post("/api/jobs", paint(steps=3))[1])
    side = run["sides"][0]
    sheet = Image.open(client.app.gallery.file(run["id"], "a", "frames.jpg"))
    assert side["frames"] == 4 and sheet.size == (side["columns"] * 224, 224)


def test_pictures_of_the_command_line_are_in_the_gallery_too(
    client: Client, tmp_path: Path
) -> None:
    from clipag_plug.cli import main

    folder = client.app.gallery.root / "by-hand"
    assert main(["generate", "a lemon", "--steps", "1", "-o", str(folder)]) == 0
    run = client.app.gallery.get("by-hand")
    assert (run["title"], run["sides"][0]["model"]) == ("a lemon", "clipag-mini")
    assert client.ask("GET", "/runs/by-hand/image.png")[0] == 200
    again = client.finish(client.post("/api/jobs", {"again": "by-hand"})[1])
    repeated = client.app.gallery.file(again["id"], "a", "image.png")
    assert repeated.read_bytes() == (folder / "image.png").read_bytes()


def test_an_upload_is_explained_and_repainted(client: Client) -> None:
    status, upload = client.post("/api/uploads", png(60, 30))
    assert (status, upload["width"], upload["height"]) == (201, 60, 30)
    assert client.ask("GET", f"/uploads/{upload['id']}")[0] == 200
    asked = {"picture": upload["id"], "texts": ["a dog", "grass"], "models": ["clipag-mini"]}
    run = client.finish(client.post("/api/jobs", {"kind": "explain", "request": asked})[1])
    assert run["texts"] == ["a dog", "grass"] and len(run["sides"][0]["cosines"]) == 2
    maps = [client.app.gallery.file(run["id"], "a", f"map-{n}.png") for n in (1, 2)]
    sizes = {tuple(read_image(path).shape) for path in maps}
    assert sizes == {(3, 192, 384)}  # the picture's aspect
    style = paint(picture=upload["id"], size="160", prompt="an oil painting")
    styled = client.finish(client.post("/api/jobs", style)[1])
    assert styled["sides"][0]["size"] == [160, 160]
    asked_style = {"prompt": "a coral reef", "picture": upload["id"], "models": ["clipag-mini"]}
    job = client.post("/api/jobs", {"kind": "style", "request": {**asked_style, "steps": 1}})[1]
    assert client.finish(job)["sides"][0]["size"] == [256, 128]  # the picture's aspect
    own = {"kind": "explain", "request": {**asked, "picture": f"{styled['id']}/a"}}
    assert client.finish(client.post("/api/jobs", own)[1])["kind"] == "explain"


def test_a_drawing_can_be_downloaded_as_strokes(client: Client) -> None:
    from clipag_plug.strokes import strokes_from_svg

    asked = {"prompt": "a lemon", "models": ["clipag-mini"], "steps": 2, "strokes": 9}
    run = client.finish(client.post("/api/jobs", {"kind": "draw", "request": asked})[1])
    address = f"/runs/{quote(run['id'])}/a/drawing.svg"
    status, body, headers = client.ask("GET", address)
    assert (status, headers["Content-Type"]) == (200, "image/svg+xml")
    _, _, strokes = strokes_from_svg(io.BytesIO(body))
    assert len(strokes) == 9
    again = client.finish(client.post("/api/jobs", {"again": run["id"]})[1])
    path = client.app.gallery.file(again["id"], "a", "drawing.svg")
    assert path.read_bytes() == body


TRAVERSALS = [
    *("/../secret.txt", "/runs/../secret.txt", "/runs/..%2fsecret.txt", "/runs/%2e%2e/secret.txt"),
    *("/runs/../image.png", "/runs/%2e%2e/image.png", "/runs/./image.png", "/runs//image.png"),
    *("/runs/..\\image.png", "/runs/RUN/../../image.png", "/runs/RUN/%2e%2e/%2e%2e/image.png"),
    *("/runs/RUN/a/..%2f..%2f..%2fimage.png", "/runs/RUN/a/b/image.png", "/runs/RUN/c/image.png"),
    *("/runs//etc/passwd", "/etc/passwd", "//etc/passwd", "/runs/RUN/a/image.png%00.txt"),
    *("/runs/.uploads/image.png", "/uploads/../secret.txt", "/uploads/..%2fRUN%2fa%2fimage"),
    *("/uploads/0123456789abcdef", "/uploads/%2fetc%2fpasswd", "/page/../server.py", "/server.py"),
    *("/runs/RUN/a/link.png", "/runs/RUN/b/image.png", "/index.html", "/runs", "/runs/RUN"),
]


def test_no_other_file_can_be_read(client: Client) -> None:
    run = client.finish(client.post("/api/jobs", paint(prompt="a secret"))[1])
    folder = client.app.gallery.root / run["id"]
    outside = client.app.gallery.root.parent
    (folder / "a" / "link.png").symlink_to(outside / "secret.txt")
    (folder / "b").mkdir()
    (folder / "b" / "image.png").symlink_to(outside / "image.png")  # a known name, another place
    for path in TRAVERSALS:
        status, body, _ = client.ask("GET", path.replace("RUN", run["id"]))
        assert status == 404 and b"secret" not in body.replace(b"a-secret", b""), path
    assert client.ask("GET", f"/runs/{run['id']}/a/image.png")[0] == 200


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("../secret.txt", "no such run"),
        ("/etc/passwd", "no such run"),
        ("../../etc", "no such"),
        ("0123456789abcdef", "choose it again"),
        (".uploads/a", "no such run"),
    ],
)
def test_a_request_can_name_no_path(client: Client, picture: str, words: str) -> None:
    for kind, rest in (("paint", {"prompt": "x"}), ("explain", {"texts": ["x"]})):
        asked = {"models": ["clipag-mini"], "picture": picture, **rest}
        status, answer = client.post("/api/jobs", {"kind": kind, "request": asked})
        assert status == 404 and words in answer["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (paint(prompt=" "), "prompt is empty"),
        (paint(prompt="x" * 301), "at most 300"),
        (paint(steps=0), "--steps"),
        (paint(steps=10**9), "--steps"),
        (paint(steps="many"), "must be of type int"),
        (paint(models=["/etc/passwd"]), "not offered"),
        (paint(models=["clipag"]), "clipag demo --models clipag"),
        (paint(models=[]), "choose one or two"),
        (paint(size="9999"), "must be one of"),
        (paint(output="/tmp/x"), "no option 'output'"),
        (paint(image="/etc/passwd"), "no option 'image'"),
        (paint(seed=-1), "--seed"),
        ({"kind": "explain", "request": {"texts": ["x"]}}, "choose one first"),
        ({"kind": "explain", "request": {"picture": "x", "texts": []}}, "give 1 to 6"),
        ({"kind": "rm", "request": {}}, "there is no job 'rm'"),
        ({"kind": "paint", "request": "x"}, "JSON object"),
        ([], "JSON object"),
    ],
)
def test_a_wrong_request_is_one_sentence(client: Client, content: Any, words: str) -> None:
    status, answer = client.post("/api/jobs", content)
    assert status == 400 and words in answer["error"] and "\n" not in answer["error"]


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises many pixels, in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 415, "no picture"),
        (b"hello", 415, "choose a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no picture"),
        (b"GIF89a" + bytes(100), 415, "no picture"),
        (png()[:60], 415, "damaged"),
        (png(4, 4), 415, "smaller than 8"),
        (png(400, 400), 413, "400 x 400 pixels; at most 0.1 megapixels"),
        (bomb(30_000, 30_000), 413, "megapixels"),
        (bytes(300_000), 413, "larger than 0.25 MiB"),
    ],
)
def test_a_wrong_upload_is_refused(client: Client, data: bytes, status: int, words: str) -> None:
    found, answer = client.post("/api/uploads", data)
    assert (found, words in answer["error"]) == (status, True), answer


def test_an_upload_keeps_pixels_and_nothing_else(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 20, 30), {"secret": "recipe"})
    uploads = Uploads(tmp_path / "uploads", 10**6, 10**6)
    found = uploads.add((tmp_path / "a.png").read_bytes())
    kept = uploads.path(found["id"])
    assert b"secret" not in kept.read_bytes()
    assert torch.equal(read_image(kept), read_image(tmp_path / "a.png"))
    with pytest.raises(UploadError):
        uploads.add(b"x" * (10**6 + 1))


def test_another_name_or_another_site_is_refused(client: Client) -> None:
    port = client.port
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::2]"):
        assert client.ask("GET", "/", Host=host)[0] == 403, host
    for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert client.ask("GET", "/", Host=host)[0] == 200, host
    body = json.dumps(paint()).encode()
    own = {"Host": f"localhost:{port}", "Content_Type": "application/json"}
    refused = [
        {**own, "Origin": "https://evil.example"},
        {**own, "Origin": "null"},
        {**own, "Sec_Fetch_Site": "cross-site"},
        {**own, "Content_Type": "text/plain"},
        {**own, "Content_Type": "multipart/form-data"},
        {"Host": f"localhost:{port}"},
    ]
    jobs = len(client.app.queue.jobs())
    for headers in refused:
        assert client.ask("POST", "/api/jobs", body, **headers)[0] == 403, headers
    assert len(client.app.queue.jobs()) == jobs
    assert client.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert client.ask("OPTIONS", "/api/jobs", Origin="https://evil.example")[0] == 501


def test_the_guard_opens_as_far_as_it_is_told() -> None:
    shut, opened = Guard("127.0.0.1"), Guard("0.0.0.0", ["Demo.Example"])
    for name in ("192.168.1.5", "demo.example"):
        assert shut.refusal({"Host": name}, changes=False)
        assert not opened.refusal({"Host": f"{name}:8600"}, changes=False)
    assert opened.refusal({"Host": "evil.example"}, changes=False)
    assert hostname("[::1]:8600") == "::1" and hostname("A.b:1") == "a.b"


def test_a_body_must_say_its_length(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as sender:
        sender.sendall(
            b"POST /api/uploads HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        assert b"411" in sender.recv(1000)


def test_the_command_opens_the_page_before_it_loads_torch(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    program = subprocess.Popen(
        [sys.executable, "-m", "clipag_plug", "demo", "--port", "0", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        port = int(program.stdout.readline().strip().rpartition(":")[2].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/api/state")
        assert json.loads(connection.getresponse().read())["pair"] == ["clip-mini", "clipag-mini"]
    finally:
        program.kill()
        program.wait(20)
    light = "import sys; from clipag_plug.demo.server import App; from clipag_plug.options.demo import Demo; "
    light += "App(Demo()).state(); assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", light], cwd=tmp_path, env={"PYTHONPATH": str(root)}, check=True
    )


def test_a_job_goes_before_the_rest_of_the_warm_up() -> None:
    slow = Slow()
    queue = Queue(Channel())
    queue.submit(Task("warm-up", "Loading", slow, yields=True))
    assert slow.begun.wait(10)
    queue.submit(Task("paint", "a goldfish", lambda job: "run"))
    until(queue, ["stopped", "done"])
    queue.close()


def test_the_default_is_the_loopback() -> None:
    assert Demo().host == "127.0.0.1"


class Slow:
    """Work that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.together = self.most = 0

    def __call__(self, job: Job) -> str:
        self.together += 1
        self.most = max(self.most, self.together)
        self.begun.set()
        while not (self.end.is_set() or job.stopping.is_set()):
            time.sleep(0.005)
        self.together -= 1
        return "run"


def until(queue: Queue, states: list[str]) -> None:
    end = time.monotonic() + 10
    while [job["state"] for job in queue.jobs()] != states:
        assert time.monotonic() < end, queue.jobs()
        time.sleep(0.005)


def test_one_job_at_a_time_and_the_others_wait_in_order() -> None:
    slow = Slow()
    queue = Queue(Channel(), most=2)
    jobs = [queue.submit(Task("paint", "1", slow))]
    assert slow.begun.wait(10)
    jobs += [queue.submit(Task("paint", title, slow)) for title in "23"]
    with pytest.raises(QueueFullError, match="2 jobs wait"):
        queue.submit(Task("paint", "4", slow))
    until(queue, ["running", "waiting", "waiting"])
    assert queue.stop(jobs[1].id) and not queue.stop("99")
    until(queue, ["stopped", "running", "waiting"])
    slow.end.set()
    until(queue, ["stopped", "done", "done"])
    assert slow.most == 1 and not queue.stop(jobs[0].id)
    queue.close()


def test_a_bug_fails_its_job_and_not_the_queue() -> None:
    def broken(job: Job) -> str:
        raise KeyError("x")

    queue = Queue(Channel())
    queue.submit(Task("paint", "broken", broken))
    queue.submit(Task("paint", "fine", lambda job: "run"))
    until(queue, ["failed", "done"])
    queue.close()


def test_stopping_keeps_the_picture_so_far(client: Client) -> None:
    _, job = client.post("/api/jobs", paint(steps=2000))
    end = time.monotonic() + 30
    while client.app.queue.jobs()[-1]["step"] < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert client.post(f"/api/jobs/{job['id']}/stop", {})[0] == 200
    run = client.finish(job)
    assert run["state"] == "stopped" and 2 <= run["sides"][0]["steps"] < 2000
    (_, recipe), *_ = client.app.gallery.recipes(run["id"])
    assert recipe["stopped_after"] == run["sides"][0]["steps"]


def test_a_page_that_opens_late_is_told_what_holds_and_the_newest_wins() -> None:
    channel = Channel(most=2)
    for step in range(3):
        channel.publish("preview-a", "preview", step=step)
    channel.publish("queue", "queue", jobs=[])
    box = channel.open()
    assert [m.get("step") for m in box.take(0) or []] == [2, None]
    for step in range(5):
        channel.publish("preview-a", "preview", step=step)
    assert [m["step"] for m in box.take(0) or []] == [4]
    channel.open()
    with pytest.raises(ValueError, match="2 pages are open"):
        channel.open()
    channel.leave(box)
    channel.forget("preview")
    assert [m["kind"] for m in channel.open().take(0) or []] == ["queue"]


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    from clipag_plug.demo.gallery import Gallery

    def write(folder: Path) -> list[dict[str, Any]]:
        (folder / "image.png").write_bytes(b"half")
        raise OSError("disk full")

    gallery = Gallery(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        gallery.add({"title": "a fox", "seed": 0}, write)
    assert list(tmp_path.iterdir()) == [] and gallery.runs() == []


def test_requests_hold_no_field_that_names_a_file() -> None:
    for values in ({"output": "x"}, {"image": "x"}, {"mask": "x"}, {"prior": "x"}, {"log": "x"}):
        with pytest.raises(ValueError, match="no option"):
            read("paint", {"prompt": "x", **values})
    assert isinstance(read("paint", {"prompt": "x"}), Paint)
    assert isinstance(read("explain", {"picture": "x", "texts": ["y"]}), Look)
