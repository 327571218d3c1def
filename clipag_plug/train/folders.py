"""A folder of image files: with captions beside them (KEY.jpg and KEY.txt or KEY.json), or one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..vocabulary import sentence
from .decode import IMAGE_SUFFIXES, Columns, Indexed, Record
from .index import packed

CLASS_TEMPLATE = "a photo of a {}"


class Folder(Indexed):
    """Every image below a folder, sorted by path.

    Where no image has a caption beside it and the images are in sub-folders, those of the first level are the classes:
    numbered in sorted order, their names the captions. bad: where there are captions, those whose image is missing.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.captioned, self.tops = False, set[str]()
        self.rows = packed(self._rows)
        self.bad = self.rows.bad if self.captioned else {}
        self.classes = [] if self.captioned else sorted(self.tops)
        self.numbers = {name: number for number, name in enumerate(self.classes)}

    def record(self, number: int) -> Record:
        """One image with its caption."""
        name = self.rows[number]
        path = self.path / name
        record = Record(str(path), _read(path), columns=self.columns)
        record.error = "missing file" if record.image is None else ""
        top, slash, _ = name.partition(os.sep)
        if self.classes and slash:
            record.text = sentence(top.replace("_", " "), CLASS_TEMPLATE)
            record.label = self.numbers[top]
        elif not self.classes:
            record.text, record.label = (
                _read(path.with_suffix(".txt")),
                _read(path.with_suffix(".cls")),
            )
            if record.text is None:
                record.metadata = _read(path.with_suffix(".json"))
        return record

    def _rows(self, bad: dict[str, str]) -> Iterator[Any]:
        for folder, below, files in os.walk(self.path, followlinks=True):
            below.sort()
            parts = [(*os.path.splitext(f), f) for f in sorted(files) if not f.startswith(".")]
            images = {stem for stem, suffix, _ in parts if suffix[1:].lower() in IMAGE_SUFFIXES}
            for stem, suffix, file in parts:
                if suffix[1:].lower() in IMAGE_SUFFIXES:
                    name = os.path.relpath(os.path.join(folder, file), self.path)
                    if os.sep in name:
                        self.tops.add(name.split(os.sep)[0])
                    yield name
                elif suffix.lower() in (".txt", ".json"):
                    self.captioned = self.captioned or stem in images
                    if suffix.lower() == ".txt" and stem not in images:
                        bad[os.path.join(folder, file)] = "no image"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
