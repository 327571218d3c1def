"""Data sets of the Hugging Face hub, or saved by the package `datasets` on disk: read by row, not held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .decode import Record
from .tables import Columns, first


class Rows:
    """Rows of a `datasets.Dataset`: an image column of encoded images or of file paths, a caption, a class."""

    def __init__(self, dataset: Any, name: str, columns: Columns) -> None:
        from datasets import Image

        self.name = name
        self.bad: dict[str, str] = {}
        self.image, self.caption, self.label = columns.find(dataset.column_names, repr(name))
        if isinstance(dataset.features[self.image], Image):
            # As stored: decoding is ours, so that a broken image is counted and does not raise.
            dataset = dataset.cast_column(self.image, Image(decode=False))
        label = dataset.features[self.label] if self.label else None
        self.classes = list(getattr(label, "names", None) or [])
        kept = [column for column in (self.image, self.caption, self.label) if column]
        self.dataset = dataset.select_columns(kept)

    def __len__(self) -> int:
        return len(self.dataset)

    def record(self, index: int) -> Record:
        """One row."""
        row = self.dataset[index]
        record = Record(f"{self.name}:{index}")
        record.text = first(row[self.caption]) if self.caption else None
        record.label = row[self.label] if self.label else None
        image = row[self.image]
        data, path = (
            (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        )
        if isinstance(data, str):
            data, path = None, data
        if data is None and path:
            try:
                data = Path(path).read_bytes()
            except OSError:
                record.error = "missing file"
        record.image = data
        return record

    def records(self) -> Iterator[Record]:
        """All rows, in order."""
        return map(self.record, range(len(self)))


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
        if Path(base).is_dir():
            found = datasets.load_from_disk(base)
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
        else:
            found = datasets.load_dataset(base, *rest[:-1], split=split)
    except KeyError as error:
        raise ValueError(
            f"{base!r} has no split {split!r}; it has {', '.join(found)}; give hf:{base}:SPLIT"
        ) from error
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data set hf:{name} cannot be opened: {first_line}") from error
    return Rows(found, f"hf:{name}", columns)
