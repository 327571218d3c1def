"""Whole loads from a server: converted once, by one process of many, and unharmed by kill -9."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_server
import pytest
import torch
import weights_helpers as helpers
from faulty_server import Handler, Server

from clipag_plug.files import root
from clipag_plug.weights import fetch, open_checkpoint, read, registry
from clipag_plug.weights.registry import BadFileError, FetchError

ARCH = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Serves a small training file, registered as `served`, with an empty cache."""
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path / "home"))
    state = helpers.weights(small=True)
    globals()["ARCH"] = helpers.arch(tmp_path, small=True).removeprefix("arch=")
    file = tmp_path / "served.pt"
    torch.save(
        {"state_dict": state, "optimizer": {"state": {0: helpers.weights(small=True)}}}, file
    )
    with faulty_server.serving() as running:
        running.content = file.read_bytes()
        serve(monkeypatch, running)
        yield running


def serve(monkeypatch: pytest.MonkeyPatch, server: Server, **known: Any) -> None:
    record = registry.Checkpoint(
        **{"key": "served", "arch": ARCH, "quick_gelu": False, "sources": (server.url,), **known}
    )
    monkeypatch.setattr(registry, "_table", lambda: {"served": record})


def assert_right(opened: Any) -> None:
    wanted = helpers.weights(small=True)
    assert opened.state_dict.keys() == wanted.keys()
    assert all(torch.equal(opened.state_dict[name], value) for name, value in wanted.items())


def left(tmp_path: Path) -> set[str]:
    return {file.name for file in (tmp_path / "home").iterdir() if not file.name.endswith(".lock")}


DONE = {"served.v2.safetensors", "served.v2.safetensors.checked", "trusted.json"}


def test_first_load_downloads_and_converts_second_does_neither(
    server: Server, tmp_path: Path
) -> None:
    assert_right(open_checkpoint("served"))
    assert left(tmp_path) == DONE
    converted = fetch.converted("served").stat().st_size
    assert converted < 0.6 * len(server.content)  # the optimiser stayed behind
    server.faults = [lambda handler: handler.fail(500)] * 9
    assert_right(open_checkpoint("served"))
    assert len(server.requests) == 1
    seen = fetch.Trust(root()).get("served")
    assert seen is not None and seen["sha256"] == hashlib.sha256(server.content).hexdigest()


def test_download_root_is_honoured(server: Server, tmp_path: Path) -> None:
    assert_right(open_checkpoint("served", tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "served.v2.safetensors").is_file()
    assert not (tmp_path / "home").exists()


def test_mirrors_are_tried_in_order(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = (server.url + "?first", server.url + "?second")
    serve(monkeypatch, server, sources=sources)
    server.faults = [lambda handler: handler.fail(404)]
    assert_right(open_checkpoint("served"))
    assert len(server.requests) == 2


def test_when_every_source_fails_each_reason_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(monkeypatch, server, sources=(server.url + "?first", server.url + "?second"))
    server.faults = [lambda handler: handler.fail(404), Handler.page]
    with pytest.raises(
        FetchError,
        match="any of its 2 sources: .*first answered 404.*second answered with a web page",
    ):
        open_checkpoint("served")
    assert left(tmp_path) == set()


def test_web_page_in_disguise_is_neither_kept_nor_trusted(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda handler: handler.page("application/octet-stream")]
    with pytest.raises(BadFileError, match="it is a web page"):
        open_checkpoint("served")
    assert left(tmp_path) == set()
    assert_right(open_checkpoint("served"))


def test_damage_on_the_way_is_found_by_the_archive_where_no_hash_is_known(
    server: Server, tmp_path: Path
) -> None:
    damaged = bytearray(server.content)
    damaged[len(damaged) // 3] ^= 1
    server.faults = [lambda handler: handler.answer(body=bytes(damaged))]
    with pytest.raises(BadFileError, match="damaged"):
        open_checkpoint("served")
    assert left(tmp_path) == set()
    assert_right(open_checkpoint("served"))


def test_disk_that_fills_up_during_the_conversion(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file size limit stands for a quota: writing beyond it fails as on a full disk."""
    import resource

    whole = len(server.content)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write = read.write

    def limited(*arguments: Any) -> Path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole // 4, limits[1]))
        try:
            return write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(read, "write", limited)
    try:
        with pytest.raises(OSError, match="too large|No space"):
            open_checkpoint("served")
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [name for name in left(tmp_path) if "safetensors" in name]
    monkeypatch.setattr(read, "write", write)
    assert_right(open_checkpoint("served"))
    assert left(tmp_path) == DONE
    assert len(server.requests) == 1


def test_cache_is_read_whole_once_and_after_a_change(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged one is refused and says what to do."""
    open_checkpoint("served")
    path, real = fetch.converted("served"), read.checksum
    monkeypatch.setattr(read, "checksum", lambda values: pytest.fail("all of it was read"))
    assert_right(open_checkpoint("served"))
    monkeypatch.setattr(read, "checksum", real)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        BadFileError, match="contents changed.*delete it, and the next call makes it anew"
    ):
        open_checkpoint("served")


# Run in an interpreter of its own with one thread, so that forking it is safe. Each child opens the
# model; `points` names where the first child is killed, by its own hand, with SIGKILL.
DRIVER = """
    import os, signal, sys
    import torch
    sys.path.insert(0, {tests!r})
    import weights_helpers as helpers
    from clipag_plug.weights import fetch, opening, read, registry
    import open_clip

    record = registry.Checkpoint(key="served", arch={arch!r}, quick_gelu=False, sources=({url!r},))
    registry._table = lambda: {{"served": record}}
    wanted = helpers.weights(small=True)

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def after(function, count):
        def wrapped(*arguments, **keywords):
            result = function(*arguments, **keywords)
            wrapped.calls += 1
            if wrapped.calls == count:
                kill()
            return result
        wrapped.calls = 0
        return wrapped

    def part(response, file, *_):
        file.write(response.read(50_000))
        file.flush()
        kill()

    def child(point):
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            if point == "download":
                fetch._copy = part
            elif point == "moved":
                fetch.os.replace = after(os.replace, 1)
            elif point == "writing":
                read.checksum = after(read.checksum, 1)
            elif point == "written":
                read.save_file = after(read.save_file, 1)
            elif point == "converted":
                read.write = after(read.write, 1)
            opened = opening.open_checkpoint("served")
            code = 0 if all(torch.equal(opened.state_dict[n], v) for n, v in wanted.items()) else 3
        finally:
            os._exit(code)

    for point in {points!r}:
        _, status = os.waitpid(child(point), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
    children = [child(None) for _ in range({count})]
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    assert statuses == [0] * {count}, statuses
"""


def drive(server: Server, home: Path, points: list[str], count: int) -> None:
    here = Path(__file__).parent
    code = textwrap.dedent(DRIVER).format(
        tests=str(here), url=server.url, arch=ARCH, points=points, count=count
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CLIPAG_HOME": str(home),
        "PYTHONPATH": str(here.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_kill_and_eight_at_once(server: Server, tmp_path: Path) -> None:
    """Killed in the download, after it, twice in the conversion and after it; then eight at once.

    One process start for all, as importing torch is what takes the time.
    """
    points = ["download", "moved", "writing", "written", "converted"]
    drive(server, tmp_path / "home", points, 8)
    assert left(tmp_path) == DONE
    # The first try was killed at 50,000 bytes (of which a few may have been in a buffer), the second
    # went on from there, and the later ones asked for nothing.
    first, second = (asked for asked, _ in server.requests)
    assert first is None and second is not None
    assert 30_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 50_000

    drive(server, tmp_path / "fresh", [], 8)
    assert len(server.requests) == 3  # eight loads, one download
    assert {file.name for file in (tmp_path / "fresh").iterdir() if file.suffix != ".lock"} == DONE
