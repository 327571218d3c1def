"""Worker processes: the same batches, one sentence for an error, no end to wait for, no copy of what is in memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info
from train_data_helpers import numbered, write_tar

from clipag_plug.train import data as data_module
from clipag_plug.train.data import Batches, Data, Photos, open_data
from clipag_plug.train.decode import Columns, Decoder, Indexed, Record
from clipag_plug.train.feeds import IndexedFeed
from clipag_plug.train.index import Index, packed

COMMON = {"crop": 1.0, "flip": False, "seed": 3, "vocabulary": None, "group_share": 0.2}


def private(pid: int) -> int:
    """Bytes of a process that it shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(n) for n in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)) * 1024


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@pytest.mark.parametrize(
    "given, error, message",
    [
        (
            {"0": {"txt": b"a", "jpg": b"junk"}, "1": {"txt": b"b", "jpg": b""}},
            ValueError,
            "none of",
        ),
        (numbered(0, 4), FileNotFoundError, "s.tar"),
    ],
)
def test_an_error_of_a_worker_is_the_error_itself(tmp_path, given, error, message) -> None:
    path = write_tar(tmp_path / "s.tar", given)
    stream = Batches(open_data([str(path)], 16, memory=0.0), 2, 16, decoders=1, **COMMON)
    if error is FileNotFoundError:
        path.unlink()
    with pytest.raises(error, match=message) as found:
        stream[0]
    assert "\n" not in str(found.value) and "Traceback" not in str(found.value)


@pytest.mark.parametrize("times", ["once", "always"])
def test_a_killed_worker_is_replaced_once_and_never_waited_for(
    tmp_path, monkeypatch, times
) -> None:
    path, mark = write_tar(tmp_path / "s.tar", numbered(0, 12)), tmp_path / "killed"
    made = data_module.Maker._made

    def killed(self, index):
        if get_worker_info() and index == 2 and (times == "always" or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made(self, index)

    monkeypatch.setattr(data_module.Maker, "_made", killed)
    started, data = time.monotonic(), open_data([str(path)], 16, memory=0.0)
    stream, straight = (Batches(data, 4, 16, decoders=n, **COMMON) for n in (1, 0))
    if times == "always":
        with pytest.raises(RuntimeError, match=r"batch \d ended twice .*--decoders 0") as found:
            [stream[index] for index in range(3)]
        assert "\n" not in str(found.value)
    else:
        assert [stream[n].texts for n in range(4)] == [straight[n].texts for n in range(4)]
    assert time.monotonic() - started < 30


def test_workers_neither_copy_photographs_nor_touch_the_random_state() -> None:
    images = np.random.default_rng(0).integers(0, 255, (20_000, 64, 64, 3), dtype=np.uint8)
    photos = Photos(images, [f"number {n}" for n in range(20_000)], torch.zeros(20_000).long())
    torch.manual_seed(0)
    stream = Batches(photos, 50, 16, decoders=2, **COMMON)
    before = torch.random.get_rng_state()
    for index in range(20):
        stream[index]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(workers()) == 2 and max(map(private, workers())) < images.nbytes / 2
    del stream
    assert not workers()


def test_workers_end_with_their_batches_also_in_a_circle_of_garbage() -> None:
    data = open_data(["synthetic:40"], 16)
    for _ in range(3):
        circle = {"batches": Batches(data, 4, 16, decoders=2, **COMMON)}
        circle["self"] = circle  # type: ignore[assignment]
        circle["batches"][1]
    del circle
    started = time.monotonic()
    gc.collect()
    assert not workers() and time.monotonic() - started < 4


def test_a_finished_batch_is_handed_over_by_a_worker_that_stands_still(tmp_path) -> None:
    """The training waits for no answer of the process that made it, which is busy with the next one."""
    path = write_tar(tmp_path / "s.tar", numbered(0, 12))
    stream, straight = (
        Batches(open_data([str(path)], 16, memory=0.0), 4, 16, decoders=n, **COMMON) for n in (1, 0)
    )
    held, expected = stream[0].images, straight[0].images
    (worker,) = workers()
    loans, _ = stream.made._coming[1]
    # It has made all that was asked for and waits: its queue is empty too.
    wait_until(
        lambda: sum(loans.array(n).any() for n in range(len(loans.pieces))) > stream.made.depth
    )
    time.sleep(1)
    os.kill(worker, signal.SIGSTOP)
    alarm = threading.Timer(20, os.kill, (worker, signal.SIGCONT))
    alarm.start()
    try:
        assert torch.equal(stream[1].images, straight[1].images)
        assert alarm.is_alive(), "it was waited for"
    finally:
        alarm.cancel()
        os.kill(worker, signal.SIGCONT)
    for index in range(2, 40):
        assert torch.equal(stream[index].images, straight[index].images), index
        assert torch.equal(held, expected), "what is in use is not written to"
    assert len(loans.free) == 1, "what is not in use is free"


class Made(Indexed):
    """As many records as an index has rows, without a file behind them."""

    def __init__(self, index: Index) -> None:
        self.rows = index

    def record(self, number: int) -> Record:
        level = np.full((16, 16, 3), self.rows[number], np.uint8)
        return Record(str(number), level, "a thing", columns=Columns())


@pytest.mark.long
def test_an_index_of_32_million_takes_no_memory_of_a_worker(tmp_path) -> None:
    count, path = 32_000_000, tmp_path / "index"
    with path.open("wb") as stream:
        np.full(count, ord("7"), np.uint8).tofile(stream)
        np.arange(count + 1, dtype=np.int64).tofile(stream)
        stream.write(b"{}" + np.array([2, count]).tobytes())
    started = time.monotonic()
    feed = IndexedFeed([Made(Index(path))], Decoder(16))
    stream = Batches(Data([feed], [1.0]), 64, 16, decoders=1, **COMMON)
    assert float(stream[0].images.mean() * 255) == pytest.approx(7, abs=0.01)
    assert time.monotonic() - started < 120
    for index in range(1, 20):
        stream[index]
    assert max(map(private, workers())) < 300e6


def test_the_index_of_a_large_file_is_kept_until_the_file_changes(tmp_path, monkeypatch) -> None:
    from clipag_plug.train import index

    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(index, "LARGE", 1)
    path = write_tar(tmp_path / "s.tar", numbered(0, 5))
    first = open_data([str(path)], 16).photos
    kept = list((tmp_path / "home" / "index").iterdir())
    assert len(kept) == 1 and len(open_data([str(path)], 16).photos) == len(first) == 5
    assert [p.stat().st_mtime_ns for p in kept] == [
        p.stat().st_mtime_ns for p in (tmp_path / "home" / "index").iterdir()
    ]
    write_tar(path, numbered(0, 30))
    assert len(open_data([str(path)], 16).photos) == 30
    odd = packed(lambda bad: iter([["größe", None, "caf\udce9"], {"a": 1}]))
    assert [odd[0], odd[1]] == [["größe", None, "caf\udce9"], {"a": 1}]
