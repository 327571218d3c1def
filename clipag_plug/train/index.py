"""The rows of an index, packed: millions of them take a file of the cache and no memory."""

from __future__ import annotations

import io
import json
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..files import root, sha256, write_atomically

LARGE = 1 << 25  # bytes of a shard or table from which on its index is kept in the cache
VERSION = 1
Rows = Callable[[dict[str, str]], Iterator[Any]]


class Index(Sequence[Any]):
    """Rows by number, each any JSON value. bad: name -> cause of what could not become a row.

    packed: a file, or its content: the rows, the ends of all (int64, from 0 on), `bad`, its length, their number.
    """

    def __init__(self, packed: Path | bytes) -> None:
        self.packed = packed
        size = len(packed) if isinstance(packed, bytes) else packed.stat().st_size
        told, self.total = struct.unpack("<qq", self._read(size - 16, 16))
        self.bad: dict[str, str] = json.loads(self._read(size - 16 - told, told))
        self.ends = size - 16 - told - 8 * (self.total + 1)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: Any) -> Any:
        start, end = struct.unpack("<qq", self._read(self.ends + 8 * number, 16))
        return json.loads(self._read(start, end - start))

    def _read(self, start: int, size: int) -> bytes:
        if isinstance(self.packed, bytes):
            return self.packed[start : start + size]
        with open(self.packed, "rb", buffering=0) as stream:  # a map of it would count as memory
            stream.seek(start)
            return stream.read(size)


def packed(rows: Rows) -> Index:
    """An index in memory of what `rows` yields; it puts what is wrong into the mapping that it is given."""
    stream = io.BytesIO()
    _pack(rows, stream)
    return Index(stream.getvalue())


def index_of(path: Path, rows: Rows, settings: str = "") -> Index:
    """The index of a shard or table, made anew when the file has changed. settings: what else the rows depend on."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return packed(rows)
    told = (VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, settings)
    place = root() / "index" / sha256(repr(told).encode())
    if not place.is_file():

        def write(name: str) -> None:
            with open(name, "wb") as stream:
                _pack(rows, stream)

        write_atomically(place, write, parents=True)
    return Index(place)


def _pack(rows: Rows, stream: IO[bytes]) -> None:
    bad: dict[str, str] = {}
    ends = array("q", [0])
    for row in rows(bad):
        ends.append(ends[-1] + stream.write(json.dumps(row, default=_text).encode()))
    told = json.dumps(bad).encode()
    stream.write(ends.tobytes() + told + struct.pack("<qq", len(told), len(ends) - 1))


def _text(value: Any) -> str:  # a date, or the bytes of a binary column
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
