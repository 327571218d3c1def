"""A download ends with the right file or with none, whatever the server does, and says what happened."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_server
import pytest
from faulty_server import CONTENT, Handler, Server

from clipag_plug.weights import fetch as module
from clipag_plug.weights.fetch import fetch
from clipag_plug.weights.registry import FetchError

SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(module, "CHUNK", 4096)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with faulty_server.serving() as running:
        yield running


def get(server: Server, folder: Path, **keywords: Any) -> Path:
    keywords = {"name": "model", "size": SIZE, "sha256": SHA256, **keywords}
    digest = fetch(server.url, folder / "model.pt", **keywords)
    assert digest == hashlib.sha256(server.content).hexdigest()
    return folder / "model.pt"


def assert_absent(folder: Path, *, partial: bool = False) -> None:
    assert not (folder / "model.pt").exists()
    assert (folder / "model.pt.partial").exists() == partial


def test_a_good_download_is_whole_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    get(server, tmp_path)
    assert len(server.requests) == 1


OFFSETS = sorted(random.Random(1).sample(range(1, SIZE), 10))


@pytest.mark.parametrize("offset", OFFSETS)
def test_dropped_connection_is_resumed_where_it_broke(
    server: Server, tmp_path: Path, offset: int
) -> None:
    server.faults = [lambda handler: handler.answer(cut=offset)]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(None, offset), (f"bytes={offset}-", SIZE - offset)]
    assert server.sent == SIZE  # no byte came twice


def test_ten_drops_in_one_download(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda handler, at=at: handler.answer(cut=at) for at in OFFSETS]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == SIZE


@pytest.mark.parametrize("offset", OFFSETS[::3])
def test_server_without_ranges_starts_over(server: Server, tmp_path: Path, offset: int) -> None:
    server.ranges = False
    server.faults = [lambda handler: handler.answer(cut=offset)]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == SIZE + offset


def test_a_file_that_changed_in_between_is_not_joined_to_the_old_half(
    server: Server, tmp_path: Path
) -> None:
    def half_of_the_old_file(handler: Handler) -> None:
        handler.answer(cut=1000, body=CONTENT[::-1])
        server.tag = '"v2"'

    server.faults = [half_of_the_old_file]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_never_finishes_is_given_up_and_the_part_is_kept(
    server: Server, tmp_path: Path
) -> None:
    server.faults = [lambda handler: handler.answer(cut=500)] * 20
    with pytest.raises(FetchError, match=r"ended after 500 of 300,000 bytes; 500 bytes are kept"):
        get(server, tmp_path)
    assert_absent(tmp_path, partial=True)
    assert len(server.requests) <= module.TRIES + 1
    server.faults.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=500-", SIZE - 500)


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, 10])
def test_wrong_length_is_refused(server: Server, tmp_path: Path, length: int) -> None:
    body = (CONTENT + b"x")[:length]
    server.faults = [lambda handler: handler.answer(body=body)]
    with pytest.raises(FetchError, match=f"has {length:,} bytes and 300,000 were expected"):
        get(server, tmp_path)
    assert_absent(tmp_path)


def test_announced_length_beyond_the_body_is_an_incomplete_download(
    server: Server, tmp_path: Path
) -> None:
    server.faults = [lambda handler: handler.answer(length=SIZE + 7)] * 99
    with pytest.raises(FetchError, match=f"failed {module.TRIES + 1} times"):
        get(server, tmp_path, size=None, sha256=None)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("position", [0, SIZE // 2, SIZE - 1])
def test_flipped_byte_is_refused(server: Server, tmp_path: Path, position: int) -> None:
    flipped = bytearray(CONTENT)
    flipped[position] ^= 1
    server.content = bytes(flipped)
    with pytest.raises(FetchError, match=f"has SHA-256 .*{SHA256} was published.*deleted"):
        get(server, tmp_path)
    assert_absent(tmp_path)


def test_web_page_with_status_200_is_refused(server: Server, tmp_path: Path) -> None:
    server.faults = [Handler.page]
    with pytest.raises(FetchError, match="web page instead of the file"):
        get(server, tmp_path, size=None, sha256=None)
    assert_absent(tmp_path)


@pytest.mark.parametrize("code", [429, 503, 500, 408])
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    server.faults = [lambda handler: handler.fail(code, Retry_After="0")] * 3
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [429, 503])
def test_server_that_stays_busy_is_given_up(server: Server, tmp_path: Path, code: int) -> None:
    server.faults = [lambda handler: handler.fail(code, Retry_After="0")] * 99
    with pytest.raises(
        FetchError, match=f"failed {module.TRIES} times, lastly because the server answered {code}"
    ):
        get(server, tmp_path)
    assert len(server.requests) == module.TRIES
    assert_absent(tmp_path)


def test_retry_after_is_obeyed_and_bounded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.faults = [
        lambda h: h.fail(429, Retry_After="7"),
        lambda h: h.fail(503, Retry_After="99999"),
    ]
    get(server, tmp_path)
    assert pauses == [7.0, module.LONGEST_PAUSE]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_absent_file_is_not_asked_for_again(server: Server, tmp_path: Path, code: int) -> None:
    server.faults = [lambda handler: handler.fail(code)] * 9
    with pytest.raises(FetchError, match=f"answered {code}"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(FetchError, match="the connection broke.*refused"):
        fetch("http://127.0.0.1:9/x.pt", tmp_path / "model.pt", name="model")
    assert_absent(tmp_path)


def test_disk_without_room_is_told_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="needs 300,000 more bytes.*1,000 are free") as caught:
        get(server, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "model.pt").exists()


def test_disk_that_fills_up_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full disk where a tmpfs can be mounted; the check beforehand is switched off."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        monkeypatch.setattr(
            module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9})
        )
        with pytest.raises(
            OSError, match="is full while model was downloaded.*CLIPAG_HOME"
        ) as caught:
            get(server, small)
        assert caught.value.errno == errno.ENOSPC
        assert list(small.iterdir()) == []  # half a file would keep the disk full
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_later_change_of_an_unpublished_hash_is_refused(server: Server, tmp_path: Path) -> None:
    trust = module.Trust(tmp_path)
    trust.put("model", SHA256, SIZE)
    server.content = CONTENT[::-1]
    with pytest.raises(FetchError, match="was recorded on .*doctor model --forget"):
        get(server, tmp_path, sha256=None, size=None, seen=trust.get("model"))
    assert_absent(tmp_path)
    assert trust.forget("model")
    assert not trust.forget("model")
    assert get(server, tmp_path, sha256=None, seen=trust.get("model")).read_bytes() == CONTENT[::-1]


def test_a_file_already_there_is_compared_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(CONTENT[::-1])
    with pytest.raises(FetchError, match="was published"):
        get(server, tmp_path)
    assert_absent(tmp_path)


def test_a_whole_part_that_was_never_moved_is_not_downloaded_again(
    server: Server, tmp_path: Path
) -> None:
    get(server, tmp_path).rename(tmp_path / "model.pt.partial")
    about = json.dumps({"url": server.url, "total": SIZE})
    (tmp_path / "model.pt.partial.json").write_text(about)
    get(server, tmp_path, size=None)
    assert len(server.requests) == 1


def test_offline_says_which_file_to_bring(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match=f"HF_HUB_OFFLINE forbids.*download {server.url}"):
        get(server, tmp_path)
    assert server.requests == []


def test_proxies_of_the_environment_are_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    target = tmp_path / "model.pt"
    # The name is resolved by nobody but the proxy, which serves its one file for every address.
    fetch("http://weights.invalid/model.pt", target, name="model", sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_redirect_away_from_encryption_is_refused(tmp_path: Path) -> None:
    class Answer:
        status = 200
        headers = None

        def geturl(self) -> str:
            return "http://elsewhere.invalid/x"

    with pytest.raises(FetchError, match="not encrypted"):
        module._Download("https://a.invalid/x", tmp_path / "p", "m", None)._receive(Answer())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x.org/a"])
def test_other_protocols_are_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(FetchError, match="no http address"):
        fetch(url, tmp_path / "model.pt", name="model")


def test_no_progress_bar_where_nobody_looks(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    get(server, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_damaged_record_of_hashes_is_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "trusted.json").write_text("{")
    with pytest.raises(ValueError, match="trusted.json.*delete it"):
        module.Trust(tmp_path).get("model")
