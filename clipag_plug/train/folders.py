"""A folder of image files: with captions beside them (KEY.jpg and KEY.txt or KEY.json), or one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..vocabulary import sentence
from .decode import IMAGE_SUFFIXES, Record
from .packed import Strings

CLASS_TEMPLATE = "a photo of a {}"


class Folder:
    """Every image below a folder, sorted by path.

    Where no caption file lies anywhere below it and the images are in sub-folders, those of the first level are the
    classes: numbered in sorted order, their names the captions. bad: caption files whose image is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = Strings()
        self.bad: dict[str, str] = {}
        captioned = False
        for folder, _, files in _sorted_walk(path):
            names = {Path(file).stem: file for file in files if _suffix(file) in IMAGE_SUFFIXES}
            for file in sorted(names.values()):
                self.images.append(os.path.relpath(os.path.join(folder, file), path))
            texts = [file for file in files if _suffix(file) == "txt"]
            beside = any(Path(file).stem in names for file in files if _suffix(file) == "json")
            captioned = captioned or bool(texts) or beside
            for file in sorted(texts):
                if Path(file).stem not in names:
                    self.bad[os.path.join(folder, file)] = "no image"
        tops = {name.split(os.sep)[0] for name in self._names() if os.sep in name}
        self.classes = {} if captioned else {name: n for n, name in enumerate(sorted(tops))}

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        """One image with its caption."""
        name = str(self.images[index])
        path = self.path / name
        record = Record(str(path))
        try:
            record.image = path.read_bytes()
        except OSError:
            record.error = "missing file"
        top = name.split(os.sep)[0]
        if self.classes and os.sep in name:
            record.text = sentence(top.replace("_", " "), CLASS_TEMPLATE)
            record.label = self.classes[top]
        elif not self.classes:
            record.text = _read(path.with_suffix(".txt"))
            record.label = _read(path.with_suffix(".cls"))
            if record.text is None:
                record.metadata = _read(path.with_suffix(".json"))
        return record

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        return map(self.record, range(len(self)))

    def _names(self) -> Iterator[str]:
        return (str(self.images[index]) for index in range(len(self)))


def _sorted_walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, below, files in os.walk(path, followlinks=True):
        below.sort()
        yield folder, below, [file for file in files if not file.startswith(".")]


def _suffix(file: str) -> str:
    return file.rpartition(".")[2].lower()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
