"""What the demo makes is what the API makes, can be downloaded and repeated, and is whole or not there."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from demo_helpers import Client, client, paint, png

from clipag_plug.bench.judges import Judge
from clipag_plug.clip import load_model
from clipag_plug.images import read_image
from clipag_plug.paint import synthesize
from clipag_plug.vocabulary import bundled_vocabulary


def test_a_painting_is_what_the_api_paints_and_can_be_repeated(client: Client) -> None:
    status, job = client.post("/api/jobs", paint(models=["clip-mini", "clipag-mini"], seed=3))
    assert status == 201
    run = client.finish(job)
    judge = Judge(load_model("judge-mini", "cpu"), "judge-mini", bundled_vocabulary().class_names)
    assert run["id"].endswith("a-goldfish-3") and run["state"] == "done"
    assert [side["model"] for side in run["sides"]] == ["clip-mini", "clipag-mini"]
    for side in run["sides"]:
        expected = synthesize("a goldfish", model=side["model"], seed=3, steps=2, device=None)
        found = read_image(client.app.gallery.file(run["id"], side["key"], "image.png"))
        large = expected.enlarged(448).image
        assert found.shape[-1] == 448 and (found - large).abs().max() <= 0.5 / 255 + 1e-6
        assert side["shown"] == "448x448, resampled from 224x224"
        shares = judge.logits(judge.enlarged(expected.image[None]))[0].softmax(0)
        name = judge.classes[int(shares.argmax())]
        assert side["judge"] == f"{name} {float(shares.max()):.0%}"
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
    assert client.finish(job)["sides"][0]["size"] == [256, 128]  # its own is smaller
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


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    from clipag_plug.demo.gallery import Gallery

    def write(folder: Path) -> list[dict[str, Any]]:
        (folder / "image.png").write_bytes(b"half")
        raise OSError("disk full")

    gallery = Gallery(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        gallery.add({"title": "a fox", "seed": 0}, write)
    assert list(tmp_path.iterdir()) == [] and gallery.runs() == []


def test_four_of_one_model_and_variations_of_one(client: Client) -> None:
    run = client.finish(client.post("/api/jobs", paint(count=4, seed=5, steps=1))[1])
    assert [(side["key"], side["seed"]) for side in run["sides"]] == list(zip("abcd", range(5, 9)))
    alone = client.finish(client.post("/api/jobs", paint(seed=7, steps=1))[1])
    paths = [
        client.app.gallery.file(*ids, "image.png") for ids in ((run["id"], "c"), (alone["id"], "a"))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    varied = paint(count=3, steps=1, picture=f"{run['id']}/b", strength=0.4)
    found = client.finish(client.post("/api/jobs", varied)[1])
    pictures = [
        client.app.gallery.file(found["id"], key, "image.png").read_bytes() for key in "abc"
    ]
    assert len(set(pictures)) == 3 and found["sides"][0]["size"] == [224, 224]
    status, answer = client.post("/api/jobs", paint(count=2, models=["clip-mini", "clipag-mini"]))
    assert status == 400 and "choose one" in answer["error"]


def test_liked_deleted_brought_back_and_downloaded(client: Client) -> None:
    run = client.finish(client.post("/api/jobs", paint(steps=1, prompt="a keepsake"))[1])["id"]
    stray = client.app.gallery.root / run / "a" / "notes.txt"
    stray.write_text("mine")
    address = f"/api/runs/{quote(run)}"
    assert client.post(f"{address}/star", {"on": True}) == (200, {"starred": True})
    assert client.app.gallery.get(run)["starred"]
    client.post(f"{address}/star", {"on": False})
    assert not client.app.gallery.get(run)["starred"]
    status, body, headers = client.ask("GET", f"/download?run={quote(run)}")
    assert (status, headers["Content-Type"]) == (200, "application/zip")
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    assert {f"{run}/run.json", f"{run}/a/image.png"} <= set(names)
    assert not any("notes" in name for name in names)
    assert run in "".join(zipfile.ZipFile(io.BytesIO(client.ask("GET", "/download")[1])).namelist())
    assert client.post(f"{address}/delete", {})[0] == 200
    assert run not in [each["id"] for each in client.get("/api/runs")]
    assert client.ask("GET", f"/runs/{quote(run)}/a/image.png")[0] == 404
    assert client.post(f"{address}/delete", {})[0] == client.post(f"{address}/star", {})[0] == 404
    assert client.post(f"{address}/restore", {})[0] == 200
    assert client.app.gallery.get(run)["id"] == run and stray.read_text() == "mine"
    for name in ("..", ".uploads", "%2e%2e", "no-such"):
        assert client.post(f"/api/runs/{name}/delete", {})[0] in (404, 405)
        assert client.post(f"/api/runs/{name}/restore", {})[0] in (404, 405)


def test_every_painting_command_is_in_the_gallery(client: Client) -> None:
    from clipag_plug.cli import main

    root = client.app.gallery.root
    short = ["--steps", "1", "-q", "--seed", "3"]
    assert main(["generate", "a lemon", "-n", "2", *short, "-o", str(root / "two")]) == 0
    assert main(["clipdraw", "a pear", "--preset", "demo", *short, "-o", str(root / "drawn")]) == 0
    two, drawn = client.app.gallery.get("two"), client.app.gallery.get("drawn")
    assert [side["seed"] for side in two["sides"]] == [3, 4] and drawn["kind"] == "draw"
    for run in (two, drawn):
        for side in run["sides"]:
            assert client.ask("GET", f"/runs/{run['id']}/{side['image']}")[0] == 200
    for run in ("two", "drawn"):
        status, answer = client.post("/api/jobs", {"again": run})
        assert status == 400 and "does not repeat" in answer["error"]
