"""Fifty signals at any moment: all but SIGKILL leave the picture so far, and nothing is ever half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clipag_plug.images import read_image, read_recipe, write_image
from clipag_plug.pipelines.run import ENDING

COUNT = int(os.environ.get("CLIPAG_KILLS", "50"))
ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (*ENDING, signal.SIGKILL)
LINES = {
    "generate": ["a lemon", "--steps", "100000", "--views", "1"],
    "clipdraw": [
        "a lemon",
        "--canvas",
        "32",
        "--strokes",
        "4",
        "--steps",
        "100000",
        "--views",
        "1",
    ],
    "vqgan": ["a lemon", "--size", "32", "--steps", "100000", "--cuts", "1"],
    "style": ["a lemon", "-i", "../photo.png", "-p", "demo", "--steps", "100000", "--crops", "1"],
    "search": ["a lemon", "--budget", "100000", "--batch", "2"],
    "demo": ["--port", "0"],
}
# Says how many steps were done, so that a signal can be sent after any of them.
SCRIPT = """
import sys; sys.path.insert(0, %r); open("../begun", "w").close()
from clipag_plug.cli import main
def counted(stop, step=None):
    open("../steps", "a").write(".")
    old(stop, step)
try:
    from clipag_plug.pipelines import run
except KeyboardInterrupt:  # in what this test adds to the command
    sys.exit(130)
old, run.Stop.__call__ = run.Stop.__call__, counted
sys.exit(main(%r))
"""
pytestmark = pytest.mark.long


@pytest.mark.parametrize("number", range(COUNT))
def test_a_signal_at_any_moment(number: int, tmp_path: Path) -> None:
    rng = random.Random(number)
    name, what = list(LINES)[number % len(LINES)], rng.choice(SIGNALS)
    write_image(tmp_path / "photo.png", torch.rand(3, 64, 80))
    folder, steps = tmp_path / "work", tmp_path / "steps"
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT % (str(ROOT), [name, *LINES[name]])],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    after = 0
    try:
        if name == "demo":
            after = 1
            paint_on_the_page(process)
        elif rng.random() < 0.7:  # else while it starts
            after = rng.randint(1, 12)
            wait(lambda: steps.exists() and steps.stat().st_size >= after, process)
        else:
            wait((tmp_path / "begun").exists, process)
        time.sleep(rng.random())
        process.send_signal(what)
        code = process.wait(120)
    finally:
        process.kill()
        _, said = process.communicate()
    pictures = [path for path in folder.glob("**/*.png") if not path.name.startswith(".")]
    for path in pictures:
        assert read_image(path).isfinite().all()
    for path in folder.glob("**/*.json"):
        json.loads(path.read_text())
    if what == signal.SIGKILL:
        return
    assert "Traceback" not in said
    temporary = [p.name for p in folder.glob("**/.*") if p.name != ".uploads"]
    assert temporary == []
    if name == "demo":
        assert code == 0
    elif after:
        assert code == 128 + what, said
    if after:
        assert pictures and all(read_recipe(path)["stopped_after"] for path in pictures), said


def wait(done, process: subprocess.Popen[str]) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 180
    while not done():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def paint_on_the_page(process: subprocess.Popen[str]) -> None:
    """Asks for a picture that never ends, and waits until there is something of it."""
    import http.client

    from websockets.sync.client import connect

    assert process.stdout is not None
    port = int(process.stdout.readline().strip().rpartition(":")[2].strip("/"))
    asked = {"prompt": "a lemon", "models": ["clipag-mini"], "steps": 2000}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"kind": "paint", "request": asked})
    connection.request("POST", "/api/jobs", body, {"Content-Type": "application/json"})
    job = json.loads(connection.getresponse().read())["id"]
    with connect(f"ws://127.0.0.1:{port}/api/live", open_timeout=60) as page:
        while True:
            message = json.loads(page.recv(timeout=180))
            if message["kind"] == "preview" and message["job"] == job and message["step"] >= 1:
                return
