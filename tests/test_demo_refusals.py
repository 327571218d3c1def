"""What the demo's server refuses, and that nothing of the machine can be read through it."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_helpers import Client, bomb, client, paint, png
from PIL import Image

from clipag_plug.demo.guard import Guard, hostname
from clipag_plug.demo.requests import Look, Paint, read, settings
from clipag_plug.demo.uploads import UploadError, Uploads
from clipag_plug.images import png_bytes, read_image, write_image

TRAVERSALS = [
    *("/../secret.txt", "/runs/../secret.txt", "/runs/..%2fsecret.txt", "/runs/%2e%2e/secret.txt"),
    *("/runs/../image.png", "/runs/%2e%2e/image.png", "/runs/./image.png", "/runs//image.png"),
    *("/runs/..\\image.png", "/runs/RUN/../../image.png", "/runs/RUN/%2e%2e/%2e%2e/image.png"),
    *("/runs/RUN/a/..%2f..%2f..%2fimage.png", "/runs/RUN/a/b/image.png", "/runs/RUN/c/image.png"),
    *("/runs//etc/passwd", "/etc/passwd", "//etc/passwd", "/runs/RUN/a/image.png%00.txt"),
    *("/runs/.uploads/image.png", "/uploads/../secret.txt", "/uploads/..%2fRUN%2fa%2fimage"),
    *("/uploads/0123456789abcdef", "/uploads/%2fetc%2fpasswd", "/page/../server.py", "/server.py"),
    *("/runs/RUN/a/link.png", "/runs/RUN/b/image.png", "/runs", "/runs/RUN"),
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


def test_requests_hold_no_field_that_names_a_file() -> None:
    for values in ({"output": "x"}, {"image": "x"}, {"mask": "x"}, {"prior": "x"}, {"log": "x"}):
        with pytest.raises(ValueError, match="no option"):
            read("paint", {"prompt": "x", **values})
    assert isinstance(read("paint", {"prompt": "x"}), Paint)
    assert isinstance(read("explain", {"picture": "x", "texts": ["y"]}), Look)


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


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 415, "no picture"),
        (b"hello", 415, "choose a PNG, JPEG, WebP or GIF"),
        (
            b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
            415,
            "a drawing in SVG",
        ),
        (b"\0\0\0\x18ftypheic" + bytes(100), 415, "a HEIC picture"),
        (b"\0\0\0\x18ftypavif" + bytes(100), 415, "an AVIF picture"),
        (b"GIF89a" + bytes(100), 415, "no picture"),
        (b"II*\0" + bytes(100), 415, "a TIFF"),
        (b"BM" + bytes(100), 415, "a BMP"),
        (b"%PDF-1.7" + bytes(100), 415, "a PDF"),
        (png()[:60], 415, "damaged"),
        (png(4, 4), 415, "smaller than 8"),
        (png(8, 2500), 415, "too narrow"),
        (png(400, 400), 413, "400 x 400 pixels; at most 0.1 megapixels"),
        (bomb(30_000, 30_000), 413, "megapixels"),
        (bytes(300_000), 413, "larger than 0.25 MiB"),
    ],
)
def test_a_wrong_upload_is_refused(client: Client, data: bytes, status: int, words: str) -> None:
    found, answer = client.post("/api/uploads", data)
    assert (found, words in answer["error"]) == (status, True), answer


def test_of_a_moving_picture_the_first_is_taken(client: Client) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    status, upload = client.post("/api/uploads", file.getvalue())
    assert (status, upload["width"], upload["height"]) == (201, 24, 16)
    kept = Image.open(io.BytesIO(client.ask("GET", f"/uploads/{upload['id']}")[1]))
    red, green, blue = kept.getpixel((3, 3))
    assert red > 250 and green < 5 and blue < 5


def test_a_picture_of_ours_gives_its_settings_and_a_foreign_one_none(client: Client) -> None:
    options = {"model": "clip-mini", "seed": 9, "steps": 70, "preset": "natural", "size": "224"}
    recipe = {"prompt": "a lemon", "options": {**options, "image": "/etc/passwd", "steps": 10**9}}
    found = settings(json.dumps(recipe))
    assert found == {
        "kind": "paint",
        "prompt": "a lemon",
        "model": "clip-mini",
        "seed": 9,
        "preset": "natural",
        "size": "224",
    }
    for odd in ("", "3", "{", "[]", "[" * 9999, '{"prompt": 3, "options": {}}'):
        assert settings(odd) == {}
    for options in (3, [], {"preset": [], "size": {}, "seed": True, "steps": 1.5}):
        known = settings(json.dumps({"prompt": "x", "options": options}))
        assert known in ({}, {"kind": "paint", "prompt": "x", "model": "None"})
    picture = png_bytes(torch.rand(3, 20, 20), recipe)
    assert client.post("/api/uploads", picture)[1]["settings"]["prompt"] == "a lemon"
    assert "settings" not in client.post("/api/uploads", png(21, 20))[1]


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
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "[::2]"):
        assert client.ask("GET", "/", Host=host)[0] == 403, host
    for host in (f"127.0.0.1:{port}.evil.example", "127.0.0.1:", "[::1", "a@localhost", ""):
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
    assert client.ask("OPTIONS", "/api/jobs", Origin="https://evil.example")[0] == 405


def test_the_guard_opens_as_far_as_it_is_told() -> None:
    shut, opened = Guard("127.0.0.1"), Guard("0.0.0.0", ["Demo.Example"])
    for name in ("192.168.1.5", "demo.example"):
        assert shut.refusal({"host": name}, changes=False)
        assert not opened.refusal({"host": f"{name}:8600"}, changes=False)
    assert opened.refusal({"host": "evil.example"}, changes=False)
    assert hostname("[::1]:8600") == "::1" and hostname("A.b:1") == "a.b"


RECORDS = [
    "Infinity",
    '{"title": "x", "sides": [{"key": "a", "model": "m", "loss": Infinity}], "created": NaN, "seed": 1e999}',
    '{"title": "x", "sides": [{"key": "a", "model": "m", "cosines": [NaN], "size": {"a": 1}}], "texts": 3}',
    '{"title": "\\ud800", "sides": [{"key": "a", "model": "\\udfff"}]}',
    '{"title": {}, "sides": [{"key": "a", "model": "m"}]}',
    '{"title": "x", "sides": [{"key": "../..", "model": "m"}, 3, null]}',
    '{"title": "x", "sides": "ab"}',
    '{"sides": []}',
    "[" * 100_000,
    '{"title": "x", "sides": [{"key": "a", "model": "m"}], "request": {"prompt": ""}}',
    '{"title": "x", "sides": [{"key": "a", "model": "m"}], "kind": "rm", "request": {}}',
    "[1, 2]",
    "null",
    "\x00",
]


@pytest.mark.parametrize("text", RECORDS)
def test_a_record_of_any_shape_does_not_matter(client: Client, text: str) -> None:
    folder = client.app.gallery.root / f"foreign-{RECORDS.index(text)}"
    (folder / "a").mkdir(parents=True)
    (folder / "run.json").write_text(text)
    for place in (folder, folder / "a"):
        (place / "image.png").write_bytes(png())
    runs = client.get(
        "/api/runs"
    )  # strict JSON: Python's NaN and Infinity would pass here, so look at the text
    status, body, _ = client.ask("GET", "/api/runs")
    assert status == 200 and b"NaN" not in body and b"Infinity" not in body
    for run in runs:
        assert isinstance(run["title"], str) and isinstance(run["created"], float | int)
        assert all(side["key"] in ("", "a", "b") for side in run["sides"])
    assert client.post("/api/jobs", {"again": folder.name})[0] in (400, 404)


def test_links_lead_nowhere(client: Client) -> None:
    outside = client.app.gallery.root.parent / "elsewhere"
    outside.mkdir()
    (outside / "run.json").write_text('{"title": "x", "sides": [{"key": "", "model": "m"}]}')
    (outside / "image.png").write_bytes(png())
    (client.app.gallery.root / "linked").symlink_to(outside)
    assert "linked" not in [run["id"] for run in client.get("/api/runs")]
    assert client.ask("GET", "/runs/linked/image.png")[0] == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "PIPE"},
        {"mask": "PIPE", "image": "PIPE"},
        {"target": "visual:PIPE.npy"},
        {"ensemble": ["/etc/passwd"]},
        {"model": "PIPE"},
        {"size": "8192"},
        {"variations": 10_000},
        {"steps": 10**9},
        {"no such": 1},
        {"steps": "many"},
    ],
)
def test_a_foreign_recipe_is_not_trusted(
    client: Client, tmp_path: Path, changes: dict[str, Any]
) -> None:
    pipe = tmp_path / "pipe.npy"  # whoever opens it waits for ever
    os.mkfifo(pipe)
    options = {"prompts": ["x"], "model": "clipag-mini", **changes}
    text = json.dumps(
        {"prompt": "x", "seed": 1, "size": "40x30", "stopped_after": None, "options": options}
    )
    recipe = {**json.loads(text.replace("PIPE.npy", "PIPE").replace("PIPE", str(pipe)))}
    folder = client.app.gallery.root / tmp_path.name
    folder.mkdir(parents=True)
    (folder / "image.png").write_bytes(png())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "files": {str(pipe): "0"}}))
    jobs = len(client.app.queue.jobs())
    status, answer = client.post("/api/jobs", {"again": folder.name})
    assert status == 400 and len(client.app.queue.jobs()) == jobs, answer


def test_a_foreign_recipe_opens_no_file(client: Client, tmp_path: Path) -> None:
    from clipag_plug.cli import main

    start = write_image(tmp_path / "start.png", torch.rand(3, 32, 32))
    folder = client.app.gallery.root / "with-a-picture"
    asked = ["a lemon", "--steps", "1", "--image", str(start), "-o", str(folder), "--quiet"]
    assert main(["generate", *asked]) == 0
    status, answer = client.post("/api/jobs", {"again": "with-a-picture"})
    assert status == 400 and "clipag generate --from" in answer["error"]


def test_half_a_character_and_endless_nesting_are_refused(client: Client) -> None:
    status, answer = client.post("/api/jobs", paint(prompt="a \ud800 fox"))
    assert status == 400 and "half a character" in answer["error"]
    body = b'{"kind":' * 8000
    status, answer = client.ask("POST", "/api/jobs", body, Content_Type="application/json")[:2]
    assert status == 400 and b"error" in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_one_sentence_in_json(client: Client, method: str) -> None:
    for path in ("/", "/api/jobs", "/runs/x"):
        status, body, headers = client.ask(method, path)
        assert status == 405 and headers["Content-Type"] == "application/json"
        assert method in json.loads(body)["error"]


def test_a_look_without_a_body(client: Client) -> None:
    status, body, _ = client.ask("HEAD", "/api/state")
    assert (status, body) == (200, b"")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /" + "x" * 100_000, 431),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 100_000, 431),
        ("\0\1\2\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_answered_in_json(client: Client, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as sender:
        sender.sendall(head.encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sender.recv(4096):
                answer += part
    assert f" {status} ".encode() in answer[:20] and b"application/json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert client.ask("GET", "/")[0] == 200


def test_pictures_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    import threading

    uploads = Uploads(tmp_path, 10**6, 10**6)
    inside, most, lock, decode = 0, 0, threading.Lock(), uploads.decode

    def watched(data: bytes) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        found = decode(data)
        with lock:
            inside -= 1
        return found

    uploads.decode = watched  # type: ignore[method-assign]
    threads = [threading.Thread(target=uploads.add, args=(png(30 + i, 40),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and len(list(tmp_path.glob("*.png"))) == 6


def test_stopping_before_the_first_step_writes_no_infinity(client: Client) -> None:
    asked = {"prompt": "a fox", "models": ["clipag-mini"], "steps": 500, "strokes": 2}
    for kind in ("draw", "paint"):
        request = {k: v for k, v in asked.items() if kind == "draw" or k != "strokes"}
        _, first = client.post("/api/jobs", {"kind": kind, "request": request})
        client.post(f"/api/jobs/{first['id']}/stop", {})
        assert b"Infinity" not in client.ask("GET", "/api/runs")[1]
