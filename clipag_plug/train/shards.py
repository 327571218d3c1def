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

from .decode import IMAGE_SUFFIXES, Columns, Indexed, Record, Source
from .index import index_of

# Suffix of a member -> field of the record.
FIELDS = dict.fromkeys(IMAGE_SUFFIXES, "image") | {
    "txt": "text",
    "json": "metadata",
    "cls": "label",
}
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
Opener = Callable[[], tarfile.TarFile]
Payload = Callable[[tarfile.TarFile, tarfile.TarInfo], Any]


class TarFile(Indexed):
    """A plain tar file with random access. The samples before a cut are still there."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.rows = index_of(path, self._rows)
        self.bad = self.rows.bad

    def record(self, number: int) -> Record:
        """One sample, read from the file."""
        key, places = self.rows[number]
        fields: dict[str, Any] = {}
        with self.path.open("rb") as stream:
            for field, (offset, size) in places.items():
                stream.seek(offset)
                fields[field] = stream.read(size)
        return Record(f"{self.path}:{key}", columns=self.columns, **fields)

    def _rows(self, bad: dict[str, str]) -> Iterator[Any]:
        def note(cause: str) -> None:
            bad[str(self.path)] = cause

        return _samples(partial(tarfile.open, self.path), note, _place, self.path)


class TarStream(Source):
    """A tar file that is read from front to back: compressed, or what a shell command writes.

    What is wrong with it comes as a record with an error, in the place where the reading ended.
    """

    def __init__(self, source: Path | str, columns: Columns) -> None:
        self.source, self.columns = source, columns

    def records(self) -> Iterator[Record]:
        """Every sample; a command runs anew each time."""
        if isinstance(self.source, str):
            return self._of_command(self.source)
        return self._stream(str(self.source), partial(tarfile.open, self.source, "r|*"))

    def _of_command(self, command: str) -> Iterator[Record]:
        name, failed = f"pipe:{command}", True
        with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
            output: Any = process.stdout
            try:
                last = None
                for record in self._stream(name, partial(tarfile.open, fileobj=output, mode="r|*")):
                    if last is not None:
                        yield last
                    last = record
                while output.read(1 << 20):  # padding; a command that cannot write it would fail
                    pass
                failed = process.wait() != 0
                if last is not None and not (failed and last.error):
                    yield last
                if failed:
                    yield Record(name, error="failed command")
            finally:
                process.kill()  # where it is left before its end

    def _stream(self, name: str, opened: Opener) -> Iterator[Record]:
        causes: list[str] = []
        for key, fields in _samples(opened, causes.append, _content):
            yield Record(f"{name}:{key}", columns=self.columns, **fields)
        for cause in causes:
            yield Record(name, error=cause)


def open_shard(path: Path, columns: Columns) -> TarFile | TarStream:
    """The shard, with random access where its format allows it."""
    with path.open("rb") as stream:
        compressed = stream.read(6).startswith(COMPRESSED)
    return TarStream(path, columns) if compressed else TarFile(path, columns)


def read_tar(path: Path, skipped: dict[str, int]) -> Iterator[dict[str, bytes]]:
    """Samples of one shard as contents by suffix, front to back. A cut or unreadable file is counted in `skipped`."""

    def note(cause: str) -> None:
        skipped[cause] = skipped.get(cause, 0) + 1

    for _, contents in _groups(partial(tarfile.open, path), note, _content, path):
        yield contents


def _samples(
    opened: Opener, note: Callable[[str], None], payload: Payload, path: Path | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and fields of records. Each image of a key is a sample, with the caption and class that they share."""
    for key, members in _groups(opened, note, payload, path):
        fields = {FIELDS[suffix]: value for suffix, value in members.items() if suffix in FIELDS}
        images = [value for suffix, value in members.items() if FIELDS.get(suffix) == "image"]
        yield key, fields
        for number, image in enumerate(images[:-1]):
            yield f"{key}#{number}", {**fields, "image": image}


def _groups(
    opened: Opener, note: Callable[[str], None], payload: Payload, path: Path | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neighbouring members with the same key: (key, suffix -> payload). `note` hears what is wrong with the archive.

    The key is the name up to the first dot of its last part. Hidden members (macOS writes `._NAME` beside each) are
    passed over. path: where the file's end can be checked.
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
                folder, slash, file = member.name.rpartition("/")
                if not member.isfile() or file.startswith("."):
                    continue
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
