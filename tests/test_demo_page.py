"""The demo's page: all of it from here, open before torch is loaded, and on the loopback unless told otherwise."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from demo_helpers import Client, client

from clipag_plug.demo.app import PAGE
from clipag_plug.options.tools import Demo


def test_the_page_and_its_parts_come_from_here_alone(client: Client) -> None:
    for name in ("", *PAGE):
        status, body, headers = client.ask("GET", f"/{name}")
        assert status == 200 and headers["Content-Type"].startswith(("text/", "image/svg+xml"))
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text


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
    light = "import sys; from clipag_plug.demo.app import App; from clipag_plug.options.tools import Demo; "
    light += "App(Demo()).state(); assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", light], cwd=tmp_path, env={"PYTHONPATH": str(root)}, check=True
    )


def test_words_are_completed_and_unknown_ones_named(client: Client) -> None:
    def asked(text: str) -> dict[str, list[str]]:
        return client.get(f"/api/words?text={quote(text)}")

    found = asked("a photo of a gold")
    assert "a photo of a goldfish" in found["suggestions"]
    assert not asked("a photo of a goldfish")["unheard"]
    assert asked("a red pan")["suggestions"][0] == "a red panda"
    assert asked("a zyxqian")["unheard"] == ["zyxqian"]
    assert asked("") == asked("é" * 5000) | {"suggestions": [], "unheard": []}


def test_the_default_is_the_loopback() -> None:
    assert Demo().host == "127.0.0.1"
