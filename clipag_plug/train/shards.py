"""WebDataset shards: tar files whose members KEY.jpg, KEY.txt, KEY.json and KEY.cls make a sample.

A plain tar file is read once for the places of its members; from then on every sample is at hand. Compressed files
and the output of commands can only be read from front to back.
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .decode import IMAGE_SUFFIXES, Record

# Suffix of a member -> field of the record.
FIELDS = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    "txt": "text",
    "json": "metadata",
    "cls": "label",
}
PLACED = ("image", "text", "metadata", "label")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
Payload = Callable[[tarfile.TarFile, tarfile.TarInfo], Any]


class TarFile:
    """A plain tar file with random access: per sample its key and 64 bytes of places.

    bad: name -> cause of what is wrong with the file as a whole; the samples before a cut are still there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad: dict[str, str] = {}
        keys: list[bytes] = []
        places: list[list[int]] = []

        def note(cause: str) -> None:
            self.bad[str(path)] = cause

        for key, members in _samples(partial(tarfile.open, path), note, _place, path):
            row = [-1] * (2 * len(PLACED))
            for suffix, place in members.items():
                if suffix in FIELDS:
                    at = 2 * PLACED.index(FIELDS[suffix])
                    row[at : at + 2] = place
            keys.append(key.encode("utf-8", "surrogateescape"))
            places.append(row)
        self.keys = np.array(keys, dtype=bytes)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2 * len(PLACED))

    def __len__(self) -> int:
        return len(self.places)

    def record(self, index: int) -> Record:
        """One sample, read from the file."""
        fields: dict[str, Any] = {}
        with self.path.open("rb") as stream:
            for place, field in enumerate(PLACED):
                offset, size = self.places[index, 2 * place : 2 * place + 2].tolist()
                if offset >= 0:
                    stream.seek(offset)
                    fields[field] = stream.read(size)
        return Record(f"{self.path}:{self.keys[index].decode('utf-8', 'replace')}", **fields)

    def records(self) -> Iterator[Record]:
        """All of them, in the file's order."""
        return map(self.record, range(len(self)))


class TarStream:
    """A tar file that is read from front to back: compressed, or what a shell command writes.

    What is wrong with it comes as a record with an error, in the place where the reading ended.
    """

    bad: dict[str, str] = {}

    def __init__(self, source: Path | str) -> None:
        self.source = source

    def records(self) -> Iterator[Record]:
        """Every sample; a command runs anew each time."""
        if isinstance(self.source, str):
            return _of_command(self.source)
        path = self.source
        return _stream(str(path), partial(tarfile.open, path, "r|*"))


def open_shard(path: Path) -> TarFile | TarStream:
    """The shard, with random access where its format allows it."""
    with path.open("rb") as stream:
        return TarStream(path) if stream.read(6).startswith(COMPRESSED) else TarFile(path)


def read_tar(path: Path, skipped: dict[str, int]) -> Iterator[dict[str, bytes]]:
    """Samples of one shard as contents by suffix, front to back. A cut or unreadable file is counted in `skipped`."""

    def note(cause: str) -> None:
        skipped[cause] = skipped.get(cause, 0) + 1

    for _, contents in _samples(partial(tarfile.open, path), note, _content, path):
        yield contents


def _of_command(command: str) -> Iterator[Record]:
    name = f"pipe:{command}"
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        output: Any = process.stdout
        finished = False
        try:
            last = None
            for record in _stream(name, partial(tarfile.open, fileobj=output, mode="r|*")):
                if last is not None:
                    yield last
                last = record
            while output.read(1 << 20):  # padding; a command that cannot write it would fail
                pass
            failed = process.wait() != 0
            finished = True
            if last is not None and not (failed and last.error):
                yield last
            if failed:
                yield Record(name, error="failed command")
        finally:
            if not finished:
                process.kill()


def _stream(name: str, opened: Callable[[], tarfile.TarFile]) -> Iterator[Record]:
    """Records of an archive that cannot seek."""
    causes: list[str] = []
    for key, contents in _samples(opened, causes.append, _content):
        fields = {FIELDS[suffix]: data for suffix, data in contents.items() if suffix in FIELDS}
        yield Record(f"{name}:{key}", **fields)
    for cause in causes:
        yield Record(name, error=cause)


def _samples(
    opened: Callable[[], tarfile.TarFile],
    note: Callable[[str], None],
    payload: Payload,
    path: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neighbouring members with the same key: (key, suffix -> payload). `note` hears what is wrong with the archive.

    The key is the name up to the first dot of its last part. path: where the file's end can be checked.
    """
    try:
        archive = opened()
    except EOFError:
        return note("truncated shard")
    except (tarfile.TarError, OSError):
        return note("unreadable shard")
    sample: dict[str, Any] = {}
    key = ""
    try:
        with archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if folder + slash + stem != key and sample:
                    yield key, sample
                    sample = {}
                key = folder + slash + stem
                sample[suffix.lower()] = payload(archive, member)
    except (tarfile.TarError, EOFError, OSError):
        # The sample in hand may lack members, so it goes too.
        return note("truncated shard")
    if path is not None and not _is_whole(path):
        return note("truncated shard")
    if sample:
        yield key, sample


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int]:
    return member.offset_data, member.size


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _is_whole(path: Path) -> bool:
    """Whether a tar file ends with its end mark of zeros. `tarfile` takes a file cut inside a header for a whole one;
    a compressed file needs no check, since decompressing a cut one fails."""
    with path.open("rb") as stream:
        plain = stream.read(262)[257:] == b"ustar"
        stream.seek(-min(1024, path.stat().st_size), 2)
        return not plain or not any(stream.read())
