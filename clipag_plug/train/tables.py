"""Tables of image files and captions (CSV, TSV, Parquet), Parquet that holds the images, Hugging Face data sets."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .decode import Columns, Indexed, Record, Source
from .index import index_of

LONGEST = 1 << 24  # characters of a field; the standard library refuses more than 131,072


class Table(Indexed):
    """Rows of a CSV, TSV or Parquet file, each with the path of an image file, relative to the table's folder.

    bad: row -> cause, for the rows that lack a column. Raises ValueError for a table of addresses to download.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.rows = index_of(path, self._rows, repr(columns))
        self.bad = self.rows.bad

    def record(self, number: int) -> Record:
        """One row, its image file read."""
        row = self.rows[number]
        return _record(f"{self.path}:{row[0]}", row, self.path.parent, self.columns)

    def _rows(self, bad: dict[str, str]) -> Iterator[Any]:
        read = _parquet_rows if self.path.suffix.lower() == ".parquet" else _csv_rows
        for number, row in read(self.path, self.columns):
            if row is None or not row[0]:
                bad[f"{self.path}:{number}"] = "broken row"
                continue
            image = str(row[0]).removeprefix("file://")
            if re.match(r"\w+://", image):
                raise ValueError(
                    f"{str(self.path)!r} lists addresses ({image}); download the images first, for example with "
                    "img2dataset, and give the folder that it writes"
                )
            yield [image, *row[1:]]


class ParquetStream(Source):
    """A Parquet file that holds encoded images, as img2dataset writes it: read from front to back.

    Rows whose `status` is not "success" are downloads that failed: they were never samples and are left out.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns

    def records(self) -> Iterator[Record]:
        """All rows, in order."""
        for number, row in _parquet_rows(self.path, self.columns, ("key", "status"), size=64):
            if row[4] in (None, "success"):
                yield _record(
                    f"{self.path}:{row[3] or number}", row, self.path.parent, self.columns
                )


class Rows(Indexed):
    """Rows of a `datasets.Dataset`: an image column of encoded images or of file paths, a caption, a class."""

    def __init__(self, dataset: Any, name: str, columns: Columns) -> None:
        from datasets import Image

        self.name, self.columns = name, columns
        self.names = columns.find(dataset.column_names, repr(name))
        if isinstance(dataset.features[self.names[0]], Image):
            # As stored: decoding is ours, so that a broken image is counted and does not raise.
            dataset = dataset.cast_column(self.names[0], Image(decode=False))
        label = dataset.features[self.names[2]] if self.names[2] else None
        self.classes = list(getattr(label, "names", None) or [])
        self.rows = dataset.select_columns([column for column in self.names if column])

    def record(self, number: int) -> Record:
        """One row."""
        row = self.rows[number]
        cells = [row[name] if name else None for name in self.names]
        return _record(f"{self.name}:{number}", cells, Path(), self.columns)


def open_table(path: Path, columns: Columns) -> Table | ParquetStream:
    """A table of files, or a Parquet file with the images inside. Parquet needs the package pyarrow."""
    if path.suffix.lower() == ".parquet":
        schema = _parquet_file(path).schema_arrow
        kind = str(schema.field(columns.find(schema.names, repr(str(path)))[0]).type)
        if kind.startswith(("binary", "large_binary", "fixed_size_binary", "struct")):
            return ParquetStream(path, columns)
    return Table(path, columns)


def open_rows(name: str, columns: Columns) -> Rows:
    """NAME[:CONFIG][:SPLIT] on the hub, or FOLDER[:SPLIT] written by `save_to_disk`; the split defaults to "train".

    Raises ImportError without the package `datasets`, ValueError for a split or data set that is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"hf:{name} needs the package datasets; run pip install datasets"
        ) from error
    base, *rest = name.split(":")
    split = rest[-1] if rest else "train"
    try:
        if not Path(base).is_dir():
            found = datasets.load_dataset(base, *rest[:-1], split=split)
        else:
            found = datasets.load_from_disk(base)
            splits = list(found) if isinstance(found, datasets.DatasetDict) else []
            if (splits or rest) and split not in splits:
                has = f"it has {', '.join(splits)}" if splits else "it is one data set without any"
                raise ValueError(f"{base!r} has no split {split!r}; {has}")
            found = found[split] if splits else found
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"data set hf:{name} cannot be opened: {first_line}; give hf:NAME[:CONFIG][:SPLIT]"
        ) from error
    return Rows(found, f"hf:{name}", columns)


def _record(name: str, cells: Any, folder: Path, columns: Columns) -> Record:
    """From the cells of image, caption and class. An image is its bytes, a path, or a mapping with one of both."""
    image, record = cells[0], Record(name, None, cells[1], cells[2], columns=columns)
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        try:
            image = (folder / image).read_bytes()
        except (OSError, ValueError):
            image, record.error = None, "missing file"
    record.image = image
    return record


def _csv_rows(path: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Line numbers and [image, caption, class]; None for a row that cannot be read. The header tells what parts it."""
    csv.field_size_limit(LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        reader = csv.reader(stream, delimiter=max(",\t;|", key=first.count))
        header = next(reader, None)
        if not header:
            raise ValueError(f"{str(path)!r} is empty; its first row must name the columns")
        if any("\udc80" <= letter <= "\udcff" or letter == "\0" for letter in "".join(header)):
            raise ValueError(f"{str(path)!r} is not text in UTF-8; convert it")
        header = [name.strip() for name in header]
        names = columns.find(header, repr(str(path)))
        places = [header.index(name) if name else None for name in names]
        while True:
            try:
                row = next(reader, None)
            except csv.Error:
                yield reader.line_num, None
                continue
            if row is None:
                return
            if row:  # not an empty line
                whole = len(row) == len(header)
                yield (
                    reader.line_num,
                    [p if p is None else row[p] for p in places] if whole else None,
                )


def _parquet_rows(
    path: Path, columns: Columns, more: tuple[str, ...] = (), size: int = 10_000
) -> Iterator[tuple[int, Any]]:
    """Row numbers and [image, caption, class, *more]; None where a column is missing."""
    file = _parquet_file(path)
    present = file.schema_arrow.names
    names = [*columns.find(present, repr(str(path))), *(n if n in present else None for n in more)]
    number = 0
    for batch in file.iter_batches(size, columns=list({name for name in names if name})):
        for row in batch.to_pylist():
            number += 1
            yield number, [row[name] if name else None for name in names]


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow; run pip install pyarrow") from error
    try:
        return ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(
            f"{str(path)!r} is not a Parquet file that can be read: {error}"
        ) from error
