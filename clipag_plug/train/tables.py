"""Tables of image files and captions: CSV, TSV and Parquet; and Parquet that holds the images themselves."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .decode import Record
from .packed import Strings

# Usual names, img2dataset's, open_clip's and Hugging Face's among them; the first one present is taken.
IMAGE_NAMES: tuple[str, ...] = (
    "image",
    "img",
    "jpg",
    "png",
    "webp",
    "filepath",
    "file_path",
    "filename",
)
IMAGE_NAMES += ("file_name", "image_path", "image_file", "path", "file")
CAPTION_NAMES = ("caption", "text", "txt", "title", "sentence", "captions", "description")
LABEL_NAMES = ("label", "cls", "class", "class_id")
LONGEST = 1 << 24  # characters of a field; the standard library refuses more than 131,072


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; an empty one means the usual names."""

    image: str = ""
    caption: str = ""
    label: str = ""

    def find(self, present: Sequence[str], source: str) -> tuple[str, str | None, str | None]:
        """The columns of image, caption and class among those present; caption and class may be missing.

        Raises ValueError where a column that was named, or any for the image, is not there.
        """
        image = _find(self.image, IMAGE_NAMES, present, "image", source)
        if image is None:
            raise ValueError(
                f"{source} has the columns {', '.join(present)}: none is known to hold images; "
                "give --image-column NAME"
            )
        caption = _find(self.caption, CAPTION_NAMES, present, "caption", source)
        return image, caption, _find(self.label, LABEL_NAMES, present, "label", source)


class Table:
    """Rows of a CSV, TSV or Parquet file, each with the path of an image file, relative to the table's folder.

    bad: row -> cause, for the rows that lack a column. Raises ValueError for a table of addresses to download.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        self.bad: dict[str, str] = {}
        self.images, self.texts, self.labels = Strings(), Strings(), Strings()
        rows = _parquet_rows(path, columns) if path.suffix == ".parquet" else _rows(path, columns)
        for number, row in rows:
            if row is None:
                self.bad[f"{path}:{number}"] = "broken row"
                continue
            if row[0].startswith(("http://", "https://")):
                raise ValueError(
                    f"{str(path)!r} lists addresses ({row[0]}); download the images first, for example with "
                    "img2dataset, and give the folder that it writes"
                )
            for strings, value in zip((self.images, self.texts, self.labels), row, strict=True):
                strings.append(value)

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        """One row, its image file read."""
        name = str(self.images[index])
        record = Record(f"{self.path}:{name}", text=self.texts[index], label=self.labels[index])
        try:
            record.image = (self.path.parent / name).read_bytes()
        except (OSError, ValueError):
            record.error = "missing file"
        return record

    def records(self) -> Iterator[Record]:
        """All rows, in order."""
        return map(self.record, range(len(self)))


class ParquetStream:
    """A Parquet file that holds encoded images, as img2dataset writes it: read from front to back.

    Rows whose `status` is not "success" are downloads that failed: they were never samples and are left out.
    """

    bad: dict[str, str] = {}

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        self.columns = columns.find(_parquet_file(path).schema_arrow.names, repr(str(path)))

    def records(self) -> Iterator[Record]:
        file = _parquet_file(self.path)
        image, caption, label = self.columns
        extra = [n for n in ("key", "status") if n in file.schema_arrow.names]
        wanted = [name for name in (image, caption, label, *extra) if name]
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                if row.get("status", "success") != "success":
                    continue
                data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
                text = first(row[caption]) if caption else None
                name = f"{self.path}:{row.get('key', number)}"
                yield Record(name, data, text, row[label] if label else None)


def open_table(path: Path, columns: Columns) -> Table | ParquetStream:
    """A table of files, or a Parquet file with the images inside. Parquet needs the package pyarrow."""
    if path.suffix == ".parquet" and _holds_images(path, columns):
        return ParquetStream(path, columns)
    return Table(path, columns)


def first(value: Any) -> Any:
    """Of several captions the first; some data sets have five for an image."""
    return (value[0] if value else None) if isinstance(value, list | tuple) else value


Row = tuple[int, tuple[str, str | None, str | None] | None]


def _rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Line numbers and (image, caption, class) of a CSV or TSV file; None for a row that cannot be read."""
    csv.field_size_limit(LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = next(reader, None)
        if not header:
            raise ValueError(f"{str(path)!r} is empty; its first row must name the columns")
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
            if not row:  # an empty line
                continue
            values = [None if p is None else row[p] if p < len(row) else "" for p in places]
            whole = len(row) == len(header) and values[0]
            yield reader.line_num, (str(values[0]), values[1], values[2]) if whole else None


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    file = _parquet_file(path)
    names = columns.find(file.schema_arrow.names, repr(str(path)))
    number = 0
    for batch in file.iter_batches(columns=[name for name in names if name]):
        for row in batch.to_pylist():
            number += 1
            image, text, label = (first(row[name]) if name else None for name in names)
            kept = None if label is None else str(label)
            yield number, (str(image), text, kept) if image else None


def _holds_images(path: Path, columns: Columns) -> bool:
    schema = _parquet_file(path).schema_arrow
    import pyarrow.types as kinds

    kind = schema.field(columns.find(schema.names, repr(str(path)))[0]).type
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_struct(kind))


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


def _find(
    given: str, usual: Sequence[str], present: Sequence[str], what: str, source: str
) -> str | None:
    if given and given not in present:
        raise ValueError(
            f"{source} has no column {given!r} (--{what}-column); it has {', '.join(present)}"
        )
    by_lower = {name.lower(): name for name in reversed(present)}
    return given or next((by_lower[name] for name in usual if name in by_lower), None)
