"""What an item of --data names, and the sources behind it.

    a.tar  'shards/*.tar.gz'  'shards/{00000..00099}.tar'  'pipe:aws s3 cp s3://bucket/{00..99}.tar -'
        WebDataset shards: files, globs, ranges and lists in braces, the output of shell commands
    table.csv  table.tsv  table.parquet
        tables of image files, relative to the table's folder, parted by commas, tabs, `;` or `|`; Parquet may hold the
        images themselves
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
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..vocabulary import bundled_vocabulary, check_sentence, sentence
from .decode import Columns, Indexed, Record, Source
from .folders import Folder
from .shards import TarStream, open_shard
from .tables import open_rows, open_table

TABLES = (".csv", ".tsv", ".parquet")
KINDS = "a .tar, .csv, .tsv or .parquet file, a folder, pipe:COMMAND, hf:NAME or synthetic:COUNT"
GRID = 6  # coarse cells a side of a synthetic class's pattern


@dataclass(frozen=True)
class Item:
    """One item of --data: what it names, its share of every batch where given, and where captions are."""

    spec: str
    share: float | None = None
    columns: Columns = field(default_factory=Columns)


def parse(specs: Sequence[str], columns: Columns | None = None) -> list[Item]:
    """The items of --data. Raises ValueError where only some have a share, a share is not above 0, or what follows `::`
    is unknown."""
    items = [_item(spec, columns or Columns()) for spec in specs]
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


def _item(spec: str, columns: Columns) -> Item:
    match = re.fullmatch(r"(.+)@(\d+\.?\d*|\.\d+)", spec, re.DOTALL)
    share = None
    if match is not None and not os.path.exists(spec):
        spec, share = match[1], float(match[2])
    base, *told = spec.split("::")
    if told:
        given = dict(each.partition("=")[::2] for each in told)
        if set(given) - {"caption", "template"} or "" in given.values():
            raise ValueError(
                f"--data {spec!r} is followed by {told}; give ::caption=NAME, ::template=TEXT"
            )
        templates = tuple(given.get("template", "{}").split("|"))
        for template in templates:
            check_sentence("::template", template)
        caption = given.get("caption", columns.caption)
        columns = dataclasses.replace(columns, caption=caption, templates=templates)
    return Item(base, share, columns)


def check_paths(specs: Sequence[str], option: str) -> None:
    """Raises FileNotFoundError for an item that names files which are not there, before anything slow begins."""
    for item in parse(specs):
        if item.spec.partition(":")[0] not in ("pipe", "hf", "synthetic"):
            try:
                expand([item.spec])
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{option}: {error}") from None


def open_sources(item: Item, size: int, seed: int = 0) -> list[Source]:
    """The sources that one item names. size, seed: of synthetic images.

    Raises FileNotFoundError where nothing is there, ValueError where it cannot be data, ImportError for a package
    that is not installed.
    """
    kind, _, rest = item.spec.partition(":")
    if kind == "pipe":
        return [TarStream(command, item.columns) for command in expand_braces(rest, lists=False)]
    if kind == "hf":
        return [open_rows(rest, item.columns)]
    if kind == "synthetic":
        return [Synthetic(rest, size, seed, item.columns)]
    return [s for path in expand([item.spec]) for s in _open_path(path, item.columns)]


class Synthetic(Indexed):
    """Made-up images uint8 (size, size, 3): each class of the bundled vocabulary has a pattern of colours that can be
    learned, each image its own noise. Sample i has class i modulo the number of classes."""

    def __init__(self, count: str, size: int, seed: int, columns: Columns) -> None:
        if not count.isdecimal() or not int(count):
            raise ValueError(
                f"synthetic:{count} has no samples; give synthetic:COUNT with a COUNT of at least 1"
            )
        self.rows, self.size, self.seed, self.columns = range(int(count)), size, seed, columns
        self.names = bundled_vocabulary().class_names

    def record(self, number: int) -> Record:
        """One sample."""
        label = number % len(self.names)
        pattern = np.random.default_rng((self.seed, 0, label)).uniform(0, 255, (GRID, GRID, 3))
        rng = np.random.default_rng((self.seed, 1, number))
        rows = (np.arange(self.size) * GRID) // self.size
        noise = rng.normal(0, 25, (self.size, self.size, 3)).astype(np.float32)
        image = (pattern[rows][:, rows] + noise).clip(0, 255).astype(np.uint8)
        text = sentence(self.names[label], "a photo of a {}")
        return Record(f"synthetic:{number}", image, text, label, columns=self.columns)


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files behind paths, globs and braces, sorted. Raises FileNotFoundError for a pattern without a match."""
    paths: list[Path] = []
    for pattern in patterns:
        whole = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
        for part in whole:
            found = [part] if os.path.exists(part) else sorted(glob.glob(part, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file or folder matches {part!r}; give {KINDS}")
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
    if not path.is_dir():
        if path.suffix.lower() in TABLES:
            return [open_table(path, columns)]
        if ".tar" not in path.suffixes and not tarfile.is_tarfile(path):
            raise ValueError(f"{str(path)!r} is no tar file; give {KINDS}")
        return [open_shard(path, columns)]
    files = sorted(path.iterdir())
    shards = [file for file in files if ".tar" in file.suffixes and file.name[0] != "."]
    if shards:
        return [open_shard(file, columns) for file in shards]
    tables = [file for file in files if file.suffix == ".parquet" and file.name[0] != "."]
    folder = Folder(path, columns)
    return [folder] if len(folder) or not tables else [open_table(file, columns) for file in tables]
