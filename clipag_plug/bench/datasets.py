"""Photographs to measure on: the sample in the package, a zip with boxes, or whatever the trainer can read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bundled.photos import Photographs, bundled_photos, read_photos
from ..vocabulary import bundled_vocabulary, sentence

SIDE = 224  # of the squares that a data set is decoded to


@dataclass(frozen=True)
class Dataset:
    """Photographs with the names of their classes and a caption each; `boxed` where objects have boxes."""

    photos: Photographs
    classes: list[str]
    captions: list[str]
    boxed: bool


def read_dataset(spec: str = "", classes: str = "") -> Dataset:
    """The sample in the package for an empty `spec`, a .zip with boxes, or an item as `clipag train --data` takes it:
    WebDataset shards, a folder, a table, or hf:NAME:SPLIT. A glob of shards is one item.

    classes: file with a class name a line, in the order of the class numbers. Without it a zip has the classes of
    the bundled vocabulary, and anything else those that its captions say, where every class has one caption.
    Raises ValueError or FileNotFoundError where the photographs, or the names of their classes, cannot be had.
    """
    if not spec or spec.endswith(".zip"):
        photos = read_photos(spec) if spec else bundled_photos()
        names = _names(classes) if classes else bundled_vocabulary().class_names
        _check(photos, names, spec or "the sample")
        captions = [sentence(names[int(label)], "a photo of a {}") for label in photos.labels]
        return Dataset(photos, names, captions, boxed=True)
    return _decoded(spec, classes)


def _decoded(spec: str, classes: str) -> Dataset:
    from ..train.data import read_shards

    found = read_shards([spec], SIDE)
    labels = torch.as_tensor(found.labels).long()
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(
            f"{spec!r} has photographs without a class number; zero-shot classification needs one for each"
        )
    names = _names(classes) if classes else _from_captions(found.texts, labels, spec)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).contiguous()
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    whole = torch.tensor([[0, 0, SIDE - 1, SIDE - 1]]).expand(len(labels), 4)
    keys = tuple(f"{number:06d}" for number in range(len(labels)))
    photos = Photographs(keys, images, labels, whole, digest.hexdigest())
    _check(photos, names, spec)
    return Dataset(photos, names, [text or "" for text in found.texts], boxed=False)


def _names(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"--classes {path!r} does not exist; give a file with a class name a line"
        )
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _from_captions(texts: list[str], labels: torch.Tensor, spec: str) -> list[str]:
    said: dict[int, set[str]] = defaultdict(set)
    for text, label in zip(texts, labels.tolist()):
        said[label].add((text or "").removeprefix("a photo of a ").removeprefix("a photo of an "))
    names = [said.get(number, set()) for number in range(max(said, default=-1) + 1)]
    if not names or any(len(name) != 1 or not next(iter(name)) for name in names):
        raise ValueError(
            f"the captions of {spec!r} do not name its classes, one caption for each; "
            "give --classes FILE with a name a line"
        )
    return [next(iter(name)) for name in names]


def _check(photos: Photographs, names: list[str], what: str) -> None:
    if int(photos.labels.max()) >= len(names):
        raise ValueError(
            f"{what!r} has class number {int(photos.labels.max())}, but there are {len(names)} class names; "
            "give --classes FILE with a name a line"
        )
