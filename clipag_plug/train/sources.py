"""What an item of --data names, and the sources behind it.

    a.tar  'shards/*.tar.gz'  'shards/{00000..00099}.tar'  'pipe:aws s3 cp s3://bucket/{00..99}.tar -'
        WebDataset shards: files, globs, ranges and lists in braces, the output of shell commands
    table.csv  table.tsv  table.parquet
        tables of image files, relative to the table's folder; Parquet may hold the images themselves
    FOLDER
        images with captions beside them, a sub-folder for each class, or shards
    hf:NAME[:CONFIG][:SPLIT]  hf:FOLDER[:SPLIT]
        Hugging Face data sets, of the hub or of `save_to_disk`
    synthetic:COUNT
        made-up images

`::caption=COLUMN` and `::template=TEXT` behind an item say which column of a table holds its captions and what they are
put into: `emoji.csv::caption=name::template=an emoji of a {}`. Several templates, parted by `|`, take turns by sample.

Any of them may end in @SHARE, its share of the batches: `a.tar@0.7 b.csv@0.3`. Shares are relative; either all items
have one or none, and then each sample comes once an epoch.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

from .decode import Record
from .folders import Folder
from .hub import open_rows
from .shards import TarStream, open_shard
from .synthetic import Synthetic
from .tables import Columns, open_table

TABLES = (".csv", ".tsv", ".parquet")
KINDS = "a .tar, .csv, .tsv or .parquet file, a folder, pipe:COMMAND, hf:NAME or synthetic:COUNT"


class Source(Protocol):
    """Records in an order of its own; bad: name -> cause of what was found to be unusable on opening."""

    @property
    def bad(self) -> dict[str, str]: ...

    def records(self) -> Iterator[Record]: ...


@runtime_checkable
class Indexed(Source, Protocol):
    """A source whose records are at hand by number."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...


@dataclass(frozen=True)
class Item:
    """One item of --data: what it names and, where given, its share of every batch."""

    spec: str
    share: float | None = None


def parse(specs: Sequence[str]) -> list[Item]:
    """The items of --data. Raises ValueError where only some have a share, or a share is not above 0."""
    items = [_item(spec) for spec in specs]
    if not items:
        raise ValueError(f"no training data; give --data with {KINDS}")
    bare = [item.spec for item in items if item.share is None]
    if bare and len(bare) < len(items):
        raise ValueError(
            f"--data {bare[0]!r} has no share and others have; end every item in @SHARE, or none"
        )
    for item in items:
        if item.share is not None and not item.share > 0:
            raise ValueError(
                f"--data {item.spec!r} has the share {item.share:g}; it must be above 0"
            )
    return items


def _item(spec: str) -> Item:
    match = re.fullmatch(r"(.+)@(\d+\.?\d*|\.\d+)", spec, re.DOTALL)
    if match is None or os.path.exists(spec):
        return Item(spec)
    return Item(match[1], float(match[2]))


def check_paths(specs: Sequence[str]) -> None:
    """Raises FileNotFoundError for an item that names files which are not there, before anything slow begins."""
    for spec in (item.spec for item in parse(specs)):
        base = spec.split("::")[0]
        if base.partition(":")[0] not in ("pipe", "hf", "synthetic"):
            expand([base])


def open_sources(spec: str, size: int, columns: Columns, seed: int) -> list[Source]:
    """The sources that one item names. size: side of synthetic images.

    Raises FileNotFoundError where nothing is there, ValueError where it cannot be data, ImportError for a package
    that is not installed.
    """
    spec, *told = spec.split("::")
    if told:
        given = dict(each.partition("=")[::2] for each in told)
        if set(given) - {"caption", "template"} or "" in given.values():
            raise ValueError(
                f"--data {spec!r} is followed by {told}; give ::caption=NAME, ::template=TEXT"
            )
        columns = dataclasses.replace(columns, caption=given.get("caption", columns.caption))
        templates = given.get("template", "{}").split("|")
        found = open_sources(spec, size, columns, seed)
        return [
            (Templated if isinstance(s, Indexed) else TemplatedStream)(s, templates) for s in found
        ]
    kind, _, rest = spec.partition(":")
    if kind == "pipe":
        return [TarStream(command) for command in expand_braces(rest, lists=False)]
    if kind == "hf":
        return [open_rows(rest, columns)]
    if kind == "synthetic":
        if not rest.isdecimal():
            raise ValueError(f"--data {spec!r} names no number; give synthetic:COUNT")
        return [Synthetic(int(rest), size, seed)]
    sources: list[Source] = []
    for path in expand([spec]):
        sources += _open_path(path, columns)
    return sources


class TemplatedStream:
    """A source whose captions are put into templates."""

    def __init__(self, source: Any, templates: list[str]) -> None:
        self.source, self.templates = source, templates

    @property
    def classes(self) -> list[str]:
        """Of the source."""
        return list(getattr(self.source, "classes", []))

    @property
    def bad(self) -> dict[str, str]:
        """Of the source."""
        bad: dict[str, str] = self.source.bad
        return bad

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        return map(self._told, self.source.records())

    def _told(self, record: Record) -> Record:
        record.template = self.templates[crc32(record.name.encode()) % len(self.templates)]
        return record


class Templated(TemplatedStream):
    """The same of an indexed source."""

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """One sample."""
        return self._told(self.source.record(index))


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files behind paths, globs and braces, sorted. Raises FileNotFoundError for a pattern without a match."""
    paths: list[Path] = []
    for pattern in patterns:
        whole = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
        for part in whole:
            found = [part] if os.path.exists(part) else sorted(glob.glob(part, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file or folder matches {part!r}; --data takes {KINDS}")
            paths += map(Path, found)
    return paths


def expand_braces(pattern: str, lists: bool = True) -> list[str]:
    """`a{08..10}{x,y}` -> a08x, a08y, a09x, ...: ranges of numbers, padded as they are written, and lists.

    lists: False leaves `{x,y}` alone, for commands, where braces have uses of their own.
    """
    braces = r"\{(\d+\.\.\d+|[^{},]*(?:,[^{},]*)+)\}" if lists else r"\{(\d+\.\.\d+)\}"
    parts = re.split(braces, pattern)
    choices = [[part] if n % 2 == 0 else _choices(part) for n, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if ".." not in inside or "," in inside:
        return inside.split(",")
    low, high = inside.split("..")
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]


def _open_path(path: Path, columns: Columns) -> list[Source]:
    if path.is_dir():
        shards = sorted(file for file in path.iterdir() if ".tar" in file.suffixes)
        if shards:
            return [open_shard(file) for file in shards]
        tables = sorted(file for file in path.iterdir() if file.suffix == ".parquet")
        folder = Folder(path)
        if len(folder) or not tables:
            return [folder]
        return [open_table(file, columns) for file in tables]
    return [open_table(path, columns) if path.suffix in TABLES else open_shard(path)]
