"""The line to open pages: what holds is told at once, one page too many in words, and nothing ends it but its page."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from demo_helpers import Client, client, paint
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect


def line(client: Client, **keywords: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{client.port}/api/live", open_timeout=10, **keywords)


def told(line: ClientConnection, kind: str) -> dict[str, Any]:
    while (message := json.loads(line.recv(timeout=60)))["kind"] != kind:
        pass
    return message


def test_a_page_is_told_what_holds_and_what_becomes_of_a_job(client: Client) -> None:
    with line(client) as page:
        assert told(page, "start")["id"] and told(page, "queue")["jobs"] is not None
        _, job = client.post("/api/jobs", paint())
        assert told(page, "preview")["job"] == job["id"]
        while not any(
            each["id"] == job["id"] and each["run"] for each in told(page, "queue")["jobs"]
        ):
            pass
    with line(client) as page:  # it came back: what became of the job is still said
        assert job["id"] in [each["id"] for each in told(page, "queue")["jobs"]]


def test_many_pages_hold_no_thread_and_one_too_many_recovers(client: Client) -> None:
    most = client.app.channel.most
    with contextlib.ExitStack() as open_pages:
        fill_and_leave(client, most, open_pages)


def fill_and_leave(client: Client, most: int, open_pages: contextlib.ExitStack) -> None:
    pages = [open_pages.enter_context(line(client)) for _ in range(most)]
    assert [told(page, "start")["kind"] for page in pages] == ["start"] * most
    before = time.monotonic()
    assert client.ask("GET", "/api/state")[0] == 200 and time.monotonic() - before < 5
    with line(client) as late:
        assert json.loads(late.recv(timeout=10)) == {"kind": "full", "most": most}
        with pytest.raises(ConnectionClosed):
            late.recv(timeout=10)
    pages[-1].close()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with line(client) as late:
            if json.loads(late.recv(timeout=10))["kind"] != "full":
                break
    else:
        raise AssertionError("the free place was not given away")


def test_half_characters_and_noise_end_no_line(client: Client) -> None:
    with line(client) as page:
        told(page, "start")
        client.app.channel.publish("odd", "odd", title="\ud800")
        assert told(page, "odd")["title"] == "\ud800"
        page.send("what a page never says")
        with line(client) as loud, pytest.raises(ConnectionClosed):
            loud.send("x" * 10_000)
            while True:
                loud.recv(timeout=10)
        client.app.channel.publish("odd", "odd", title="still here")
        assert told(page, "odd")["title"] == "still here"
        client.app.channel.forget("odd")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_another_site_gets_no_line(client: Client, headers: dict[str, str]) -> None:
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        with line(client, additional_headers=headers) as page:
            page.recv(timeout=10)
