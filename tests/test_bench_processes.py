"""Runs that are killed, split over shards, and merged."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import SUITE, finished, run, served, suite_file, trio, values

from clipag_plug.bench import engine, shards
from clipag_plug.bench.__main__ import main
from clipag_plug.bench.records import read_record, read_records, record_paths
from clipag_plug.bench.shards import Share, read_share
from clipag_plug.bench.suites import read_suite
from clipag_plug.model import CLIP

KILLS = 20
SHORT = """
models = ["plain", "robust"]
seeds = [0, 1, 2, 3, 4, 5]
[entries.gradients]
task = "gradients"
options = { count = 2, shown = 2 }
[entries.zeroshot]
task = "zeroshot"
options = { steps = 1, count = 2 }
"""


def test_twenty_kills_leave_nothing_half_written_or_twice(
    trio: dict[str, CLIP], served: dict[str, CLIP], tmp_path: Path
) -> None:
    """Each child runs the suite in the same folder until SIGKILL; what is whole by then is never made again."""
    path = tmp_path / "short.toml"
    path.write_text(SHORT, encoding="utf-8")
    suite, folder = read_suite(str(path)), tmp_path / "records"
    threads, jobs = torch.get_num_threads(), len(engine.plan(suite))
    torch.set_num_threads(1)  # a forked child has no pool of threads
    try:
        started = time.monotonic()
        run(path, tmp_path / "whole")
        whole, rng = time.monotonic() - started, random.Random(0)
        kept: dict[str, float] = {}
        interrupted = 0
        for _ in range(KILLS):
            if len(kept) == jobs:  # it came to its end: the next kills get a fresh folder
                shutil.rmtree(folder)
                kept = {}
            child = os.fork()
            if child == 0:
                try:
                    run(path, folder)
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0, 0.5 * whole))
            os.kill(child, signal.SIGKILL)
            interrupted += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            found = record_paths(folder, "short")
            assert all(read_record(file) is not None for file in found)
            times = {file.name + file.parent.name: file.stat().st_mtime for file in found}
            assert {key: times[key] for key in kept} == kept  # neither lost nor written again
            kept = times
        assert interrupted >= KILLS // 2
        done = run(path, folder)
        assert sum(d.skipped for d in done) == len(kept)
    finally:
        torch.set_num_threads(threads)
    assert len(record_paths(folder, "short")) == jobs == len(read_records(folder, "short"))
    reference = read_records(tmp_path / "whole", "short")
    assert [r.metrics for r in read_records(folder, "short")] == [r.metrics for r in reference]
    for record in read_records(folder, "short"):
        for sheet in record.pictures.values():
            assert (folder / record.path).with_name(sheet["file"]).is_file()


def test_temporary_files_are_no_records_and_old_ones_go(tmp_path: Path) -> None:
    home = tmp_path / "s" / "e"
    home.mkdir(parents=True)
    for name in (".old.json", ".young.json"):
        (home / name).write_text("{}")
    os.utime(home / ".old.json", (1, 1))
    assert record_paths(tmp_path, "s") == []
    shards.sweep(tmp_path, "s")
    assert [path.name for path in home.iterdir()] == [".young.json"]


def test_shares_are_a_partition() -> None:
    jobs = list(range(11))
    parts = [Share(number, 3).of(jobs) for number in range(3)]
    assert sorted(job for part in parts for job in part) == jobs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert read_share("") is None and read_share("2/4") == Share(1, 4)
    for text in ("0/4", "5/4", "a/b", "2", "-1/2", "1/0"):
        with pytest.raises(ValueError, match="as 2/4"):
            read_share(text)


def test_shards_merge_to_the_table_of_one_run(
    finished: tuple[Path, Path, list[engine.Done]],
    served: dict[str, CLIP],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, _ = finished
    assert main(["table", str(path), "-o", str(folder), "--format", "csv"]) == 0
    expected = capsys.readouterr().out
    parts = [str(tmp_path / f"part{number}") for number in (1, 2, 3)]
    for number, part in enumerate(parts[:2], 1):
        assert main(["run", str(path), "-o", part, "--shard", f"{number}/3", "--threads", "0"]) == 0
        out, err = capsys.readouterr()
        assert out == "" and "--merge" in err
    merged = str(tmp_path / "merged")
    table = ["table", str(path), "-o", merged, "--format", "csv", "--merge"]
    assert main([*table, *parts[:2]]) == 2
    assert "run their part first" in capsys.readouterr().err
    assert main(["run", str(path), "-o", parts[2], "--shard", "3/3", "-q"]) == 0
    capsys.readouterr()
    assert main([*table, *parts]) == 0
    assert capsys.readouterr().out == expected
    assert main([*table, *parts]) == 0  # merging twice changes nothing
    assert capsys.readouterr().out == expected
    assert main(["run", str(path), "-o", merged, "-q"]) == 0  # the report finds its pictures
    capsys.readouterr()
    assert (tmp_path / "merged" / "small.html").stat().st_size > 10_000
    record = read_records(Path(parts[0]), "small")[0]
    record.fingerprint = "another"
    record.write(Path(parts[0]))
    assert main([*table, *parts]) == 2
    assert "different measurements" in capsys.readouterr().err


def test_two_processes_of_torchrun_give_the_table_of_one(
    finished: tuple[Path, Path, list[engine.Done]], trio: dict[str, CLIP], tmp_path: Path
) -> None:
    """The command itself under torchrun, with the three random models behind `clip.load_model`."""
    path, folder, _ = finished
    torch.save(trio, tmp_path / "trio.pt")
    script = tmp_path / "bench.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, torch
            from clipag_plug import clip
            models = torch.load({str(tmp_path / "trio.pt")!r}, weights_only=False)
            clip.load_model = lambda name, device=None, **rest: models[name]
            from clipag_plug.bench.__main__ import main
            sys.exit(main(sys.argv[1:]))
            """
        ),
        encoding="utf-8",
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    made = tmp_path / "records"
    command = [
        *launch,
        str(script),
        "run",
        str(path),
        "-o",
        str(made),
        "--json",
        "-q",
        "--no-report",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)  # one table, from one process
    assert sorted(data["records"]) == sorted(
        record.path for record in read_records(folder, "small")
    )
    for record in read_records(folder, "small"):
        twin = read_record(made / record.path)
        assert twin is not None and twin.fingerprint == record.fingerprint
        for key, metric in record.metrics.items():
            # one thread there, perhaps two here: sums may differ in their last bits
            assert twin.metrics[key]["values"] == pytest.approx(metric["values"], abs=2e-3), key


def test_a_request_that_cannot_be_split_or_merged_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for line, message in (
        (["run", "--shard", "3/2", "-o", str(tmp_path)], "as 2/4"),
        (["run", "--merge", "a"], "goes with table"),
        (["table", "-o", str(tmp_path), "--merge", str(tmp_path / "x")], "holds no record"),
        (["run", "--format", "word"], "must be one of"),
    ):
        assert main(line) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
