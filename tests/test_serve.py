"""`clipag serve`: gradients are autograd's, keys and order are the public client's, nonsense leaves it serving."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import random
import socket as network
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from clipag_plug import cli
from clipag_plug.demo.serve import LossServer
from clipag_plug.losses.rendering import SemanticLoss
from clipag_plug.model import CLIP
from clipag_plug.options.tools import Serve

EXAMPLE = Path(__file__).parent.parent / "examples" / "serve.html"
CONFIG = {"type": "config", "prompt": "a goldfish", "augs": 2, "seed": 3, "fill": [0.5, 0.5, 0.5]}


@pytest.fixture
def server(bundled_pair: dict[str, CLIP]) -> Iterator[TestClient]:
    made = LossServer(Serve(model="clipag-mini", device="cpu", clients=20))
    made.models["clipag-mini"] = bundled_pair["clipag-mini"]
    with TestClient(made.app) as client:
        yield client


def ask(socket: Any, picture: np.ndarray, step: int, number: int = 1) -> tuple[dict, bytes]:
    """What the client of texel-org/windfoil-paper sends, in its order, and what it then awaits."""
    height, width = picture.shape[:2]
    socket.send_text(
        json.dumps({"type": "grad", "id": number, "step": step, "w": width, "h": height})
    )
    socket.send_bytes(picture.tobytes())
    return json.loads(socket.receive_text()), socket.receive_bytes()


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.2, 1.2, (40, 48, 4)).astype(np.float32)


def test_loss_and_gradient_are_autograds_through_the_same_views(
    server: TestClient, bundled_pair: dict[str, CLIP]
) -> None:
    with server.websocket_connect("/") as socket:
        socket.send_text(json.dumps(CONFIG))
        ready = json.loads(socket.receive_text())
        assert ready == {"type": "ready", "device": "cpu", "model": "clipag-mini"}
        answer, data = ask(socket, picture(), 5)
        again, same = ask(socket, picture(), 5)
        other, _ = ask(socket, picture(), 6)
    loss = SemanticLoss(bundled_pair["clipag-mini"], "a goldfish", views=2, fill=[0.5] * 3, seed=3)
    leaf = torch.from_numpy(picture()).requires_grad_()
    value = loss(leaf[..., :3].clamp(0, 1).permute(2, 0, 1)[None], 5)
    value.backward()
    gradient = np.frombuffer(data, np.float32).reshape(40, 48, 4)
    assert answer["type"] == "result" and answer["id"] == 1
    assert answer["loss"] == pytest.approx(float(value), abs=1e-6)
    assert np.abs(gradient - leaf.grad.numpy()).max() < 1e-6 and gradient.any()
    assert (
        not gradient[..., 3].any() and not gradient[picture()[..., :3].min(2) > 1.0][..., :3].any()
    )
    assert (again, same) == (answer, data) and other["loss"] != answer["loss"]


def test_wrong_messages_are_answered_and_leave_it_serving(server: TestClient) -> None:
    rng = random.Random(0)
    bad: list[Any] = [
        "",
        "[]",
        "7",
        "{",
        '{"type": 3}',
        '{"type": "config"}',
        b"\x00\x01",
        "\u2028" * 9,
    ]
    bad += [json.dumps({**CONFIG, key: value}) for key, value in (
        ("prompt", 3), ("augs", -1), ("augs", 1e9), ("fill", "red"), ("fill", [1, 2]), ("prompt", []),
        ("prompt", ["x" * 2000]), ("seed", "nan"), ("prompt", {"a": "b"}))]  # fmt: skip
    with server.websocket_connect("/") as socket:
        for _ in range(500):
            message = rng.choice(bad)
            socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
            answer = json.loads(socket.receive_text())
            assert answer["type"] == "error" and answer["message"], message
            if isinstance(message, bytes):
                assert socket.receive_bytes() == b""
        socket.send_text(json.dumps(CONFIG))
        assert json.loads(socket.receive_text())["type"] == "ready"
        broken = picture()
        broken[3, 4, 1] = np.nan
        for wrong in ({"w": 0}, {"w": 1e9}, {"w": 10**6, "h": 10**6}, {"w": 7}, {"step": "x"}):
            header = {"type": "grad", "id": 2, "step": 0, "w": 48, "h": 40, **wrong}
            socket.send_text(json.dumps(header))
            socket.send_bytes(picture().tobytes())
            assert json.loads(socket.receive_text())["type"] == "error"
            assert socket.receive_bytes() == b""
        answer, _ = ask(socket, broken, 0)
        assert answer["type"] == "error" and "not finite" in answer["message"]
        assert ask(socket, picture(), 0)[0]["type"] == "result"


def test_a_port_that_is_taken_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with network.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"clipag serve --port {port + 1}" in said.err


def test_twenty_clients_are_served_and_one_more_is_sent_away(server: TestClient) -> None:
    sockets = [server.websocket_connect("/").__enter__() for _ in range(20)]
    with pytest.raises(WebSocketDisconnect) as gone, server.websocket_connect("/"):
        pass
    assert gone.value.code == 1013
    for socket in sockets:
        socket.send_text(json.dumps(CONFIG))
        assert json.loads(socket.receive_text())["type"] == "ready"
    losses = {ask(socket, picture(), 1)[0]["loss"] for socket in sockets}
    assert len(losses) == 1
    for socket in sockets:
        socket.close()
        socket.__exit__(None, None, None)


ORIGINS = {None: True, "http://localhost:5173": True, "https://evil.example": False, "null": False}


@pytest.mark.parametrize("origin, let_in", ORIGINS.items())
def test_only_pages_of_this_machine_may_connect(
    server: TestClient, origin: str | None, let_in: bool
) -> None:
    headers = {"origin": origin} if origin else {}
    if let_in:
        with server.websocket_connect("/", headers=headers) as socket:
            socket.send_text("{}")
            assert json.loads(socket.receive_text())["type"] == "error"
    else:
        with pytest.raises(WebSocketDisconnect), server.websocket_connect("/", headers=headers):
            pass


@contextlib.contextmanager
def listening(run: Any, port: int) -> Iterator[str]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(600):
        with contextlib.suppress(OSError), network.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"


@pytest.mark.long
@pytest.mark.skipif(chromium.find() is None, reason="no Chromium: set CHROMIUM")
def test_the_example_draws_in_a_browser_and_its_loss_falls(
    bundled_pair: dict[str, CLIP], tmp_path: Path
) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80
    made = LossServer(Serve(model="clipag-mini", device="cpu"))
    made.models["clipag-mini"] = bundled_pair["clipag-mini"]
    with network.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = uvicorn.Server(uvicorn.Config(made.app, port=port, log_level="warning"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=EXAMPLE.parent)
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    browser = chromium.Browser(tmp_path)
    try:
        with (
            listening(serving.run, port) as place,
            listening(pages.serve_forever, pages.server_port) as page,
        ):
            browser.go(f"http://{page}/{EXAMPLE.name}?server=ws://{place}/&steps=30")
            browser.wait("losses.length >= 30", 240)
        losses = browser.run("losses")
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.05 and not browser.messages
    finally:
        browser.close()
        serving.should_exit = True
        pages.shutdown()
