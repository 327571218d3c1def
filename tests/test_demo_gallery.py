"""In a real browser: what a reader does with pictures, and what the page says when the program goes away."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
import torch
from test_demo_browser import END, READY, STEP, fill, opened, page, place, url

from clipag_plug.demo.jobs import Channel, Mailbox
from clipag_plug.images import png_bytes

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"
)
IDLE = f"{END} && !document.body.classList.contains('busy')"
CARDS = "document.querySelectorAll('#cards li').length"
# A file let fall onto the middle of the page.
DROP = """(() => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(%s)], "dropped.png", { type: "image/png" }));
  const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.getElementById("gallery").dispatchEvent(drop);
})()"""


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Mailbox]:
    """The lines to open pages, those that open from now on."""
    opened: list[Mailbox] = []
    start = Channel.open

    def watched(channel: Channel, *arguments: object) -> Mailbox | None:
        box = start(channel, *arguments)  # type: ignore[arg-type]
        opened.extend([box] if box else [])
        return box

    monkeypatch.setattr(Channel, "open", watched)
    return opened


def painted(page: chromium.Browser, button: str = "#go") -> None:
    page.click(button)
    page.wait("document.body.classList.contains('busy')")
    page.wait(IDLE, 180)


def test_four_compared_varied_liked_and_deleted(page: chromium.Browser) -> None:
    fill(page, "a lemon", 2)
    painted(page, "#four")
    assert page.run("document.querySelectorAll('canvas').length") == 4
    page.click("#compare")
    page.wait("document.getElementById('view').open")
    page.wait("[...document.querySelectorAll('#over img')].every((e) => e.naturalWidth >= 224)")
    assert page.run("document.querySelectorAll('#view-right option').length") == 4
    cut = "getComputedStyle(document.querySelector('#over img')).clipPath"
    before = page.run(cut)
    page.run("document.getElementById('wipe').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", windowsVirtualKeyCode=39)
    page.wait(f"{cut} !== {before!r}")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Escape", windowsVirtualKeyCode=27)
    page.wait("!document.getElementById('view').open")
    painted(page, "figure[data-side=c] [data-act=variations]")
    assert page.run("document.querySelectorAll('canvas').length") == 4
    before = page.run(CARDS)
    page.click("#like")
    page.wait("document.getElementById('like').getAttribute('aria-pressed') === 'true'")
    page.click("#liked")
    page.wait(f"{CARDS} === 1")
    page.click("#liked")
    page.click("#delete")
    page.wait(f"{CARDS} === {before - 1}")
    assert page.run("document.getElementById('title').textContent") == "What shall it be?"
    page.click("#notice button")
    page.wait(f"{CARDS} === {before}")
    assert page.messages == []


def test_a_picture_of_ours_that_is_dropped_brings_its_settings(page: chromium.Browser) -> None:
    options = {"model": "clip-mini", "seed": 77, "steps": 9, "preset": "natural"}
    ours = png_bytes(torch.rand(3, 24, 24), {"prompt": "a dropped pear", "options": options})
    page.run(DROP % list(ours))
    page.wait("document.getElementById('prompt').value === 'a dropped pear'")
    values = "['seed', 'steps', 'preset', 'model-a', 'model-b'].map((id) => document.getElementById(id).value)"
    assert page.run(values) == ["77", "9", "natural", "clip-mini", ""]
    page.run(DROP % list(png_bytes(torch.rand(3, 24, 24))))
    page.wait("document.body.dataset.tab === 'style'")
    page.wait("document.getElementById('dropped').naturalWidth === 24")
    assert page.messages == []


def test_a_picture_is_sent_to_style_explain_and_draw(page: chromium.Browser) -> None:
    fill(page, "a pear", 1)
    painted(page)
    page.click("figure[data-side=b] [data-act=restyle]")
    page.wait(
        "document.body.dataset.tab === 'style' && document.getElementById('dropped').naturalWidth >= 224"
    )
    page.click("figure[data-side=a] [data-act=explain]")
    page.wait("document.body.dataset.tab === 'explain'")
    assert page.run("document.getElementById('texts').value") == "a pear"
    page.click("#draw")
    page.wait("document.body.dataset.tab === 'draw'")
    assert page.run("document.getElementById('prompt').value") == "a pear"


@contextlib.contextmanager
def program(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`clipag demo` as a process of its own, killed at the end."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "clipag_plug", "demo", "--port", str(port), "-q"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    found = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert found.stdout is not None
        yield found, int(found.stdout.readline().strip().rpartition(":")[2].strip("/"))
    finally:
        found.kill()
        found.wait(20)


@pytest.mark.long
def test_a_program_that_is_killed_and_comes_back_is_noticed(
    opened: chromium.Browser, tmp_path: Path
) -> None:
    with program(tmp_path) as (_, port):
        opened.go(f"http://127.0.0.1:{port}/")
        opened.wait(READY, 180)
        fill(opened, "a long one", 2000)
        opened.click("#go")
        opened.wait(f"{STEP} >= 1", 180)
        assert "a long one · clipag" in opened.run("document.title")
    opened.wait("document.getElementById('status').textContent.startsWith('not connected')")
    with program(tmp_path, port):
        opened.wait("document.getElementById('problem').textContent.includes('started anew')")
        assert opened.run("document.querySelectorAll('.busy').length") == 0
        opened.wait(READY, 180)
    opened.messages.clear()


def test_a_line_that_breaks_is_mended(boxes: list[Mailbox], page: chromium.Browser) -> None:
    fill(page, "a long one", 2000)
    page.click("#go")
    step = page.wait(f"{STEP} >= 1 && {STEP}", 180)
    for box in list(boxes):
        box.close()
    page.wait(f"{STEP} > {step} + 2", 180)
    page.click("#stop")
    page.wait(IDLE, 180)
    assert page.run("document.getElementById('problem').hidden")


ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "x" * 99,
    "\ud800",
    "constructor",
    "../..",
    [],
    [None],
    [{"a": 1}],
    {},
]
ODD += [float("nan"), ["a dog", 3], [0.5, "x", None], {"models": "x", "texts": {}, "picture": 3}]


def records(rng: random.Random) -> list[dict[str, object]]:
    """Records of finished runs, each with some fields that hold what they never should."""
    found = []
    for kind in ("paint", "draw", "style", "explain") * 12:
        side = {"key": "a", "model": "clipag-mini", "judge": "lemon 1 %", "size": [40, 30]}
        side |= {"frames": 4, "columns": 2, "seed": 1, "cosines": [0.1], "shown": "448x448"}
        side["files"] = ["image.png", "frames.jpg", "recipe.json", "map-1.png"]
        request = {"models": ["clipag-mini"], "prompt": "a lemon", "seed": 1}
        record = {"kind": kind, "title": "a lemon", "seed": 1, "created": 1e9, "texts": ["a dog"]}
        record |= {"request": request, "sides": [side]}
        for _ in range(rng.randint(1, 4)):
            place = rng.choice([record, side, side, request])
            place[rng.choice(list(place))] = rng.choice(ODD)  # type: ignore[index]
        found.append(record)
    return found


def test_no_record_breaks_the_page(page: chromium.Browser, place: Path) -> None:
    rng, root = random.Random(0), place / "runs"
    picture = png_bytes(torch.rand(3, 30, 40))
    folders = [root / f"odd-{number}" for number in range(48)] + [root / "caf\udce9"]
    for folder, record in zip(folders, [*records(rng), {"title": "x", "sides": []}]):
        (folder / "a").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        for name in rng.sample(["image.png", "map-1.png", "frames.jpg"], rng.randint(1, 3)):
            (folder / "a" / name).write_bytes(picture)
        for name in ("a/image.png", "picture.png", "a/recipe.json")[: rng.randint(0, 3)]:
            (folder / name).write_bytes(b"{" if name.endswith("json") else picture)
    page.reload()
    page.wait(READY)
    page.wait(f"{CARDS} >= 8")
    page.run("document.getElementById('more').click()")
    number = page.run("document.querySelectorAll('#cards [data-run^=odd]').length")
    assert number >= 16  # what can be shown of them is
    for each in range(number):
        page.run(f"document.querySelectorAll('#cards [data-run^=odd]')[{each}].click()")
        page.wait("document.getElementById('actions').offsetParent !== null")
        page.run(
            "(() => { const f = document.getElementById('frame'); f.value = 1;"
            " f.dispatchEvent(new Event('input')); document.getElementById('use').click(); })()"
        )
    page.wait("[...document.images].every((e) => e.complete)")
    assert page.messages == []
    page.click("[data-go=paint]")
    fill(page, "a lemon", 1)
    painted(page)
    for folder in folders:
        shutil.rmtree(folder)
