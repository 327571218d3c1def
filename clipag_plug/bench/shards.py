"""Splitting a suite over processes and machines, and putting their records together again."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..files import write_atomically
from .records import Record, read_record, record_paths

T = TypeVar("T")
STALE = 3600.0  # seconds after which the temporary file of a killed run is nobody's


@dataclass(frozen=True)
class Share:
    """Part `number` (from 0) of `count` equal parts of the jobs."""

    number: int
    count: int

    def of(self, jobs: Sequence[T]) -> list[T]:
        """Every `count`-th job: neighbours, which are the models of one entry, go to different parts."""
        return list(jobs[self.number :: self.count])


def read_share(text: str) -> Share | None:
    """`2/4` -> the second of four parts; an empty text is None. ValueError for anything else."""
    if not text:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--shard is {text!r}; it must be I/N with I from 1 to N, as 2/4")
    return Share(int(number) - 1, int(count))


def launched() -> Share | None:
    """The part of this process among those that torchrun started; None outside of it, or where it is alone."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def wait_for_all() -> None:
    """Returns when every process that torchrun started has come here."""
    from datetime import timedelta

    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=14))
    distributed.barrier()
    distributed.destroy_process_group()


def merge(sources: Sequence[str], folder: Path, suite: str) -> int:
    """Copies the suite's records of other folders, with their pictures, to `folder`; returns how many are new.

    FileNotFoundError for a folder without records of the suite, ValueError where two folders hold different
    measurements of one job.
    """
    new = 0
    for source in map(Path, sources):
        paths = record_paths(source, suite)
        if not paths:
            raise FileNotFoundError(f"{str(source)!r} holds no record of suite {suite!r}")
        for path in paths:
            record = read_record(path)
            if record is None:
                continue
            there = read_record(folder / record.path)
            if there is not None and there.fingerprint != record.fingerprint:
                raise ValueError(
                    f"{record.path!r} in {str(source)!r} and in {str(folder)!r} are different measurements "
                    "(weights, options or version); run one of them again, or merge into an empty --records"
                )
            if there is None:
                _copy(record, path.parent, folder)
                new += 1
    return new


def _copy(record: Record, source: Path, folder: Path) -> None:
    target = (folder / record.path).parent
    target.mkdir(parents=True, exist_ok=True)
    for sheet in record.pictures.values():
        picture = source / sheet["file"]
        write_atomically(target / picture.name, functools.partial(shutil.copyfile, picture))
    record.write(folder)  # last, as the engine does


def sweep(folder: Path, suite: str) -> None:
    """Removes the temporary files that killed runs left; those of running ones are younger."""
    for path in (folder / suite).glob("*/.*"):
        try:
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
        except FileNotFoundError:
            pass
