"""What is measured on: photographs with classes and captions, and prompts, in development and test parts."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from ..bundled.photos import Photographs, bundled_photos, read_photos
from ..files import sha256
from ..vocabulary import bundled_vocabulary, sentence

SIDE = 224  # of the squares that a data set is decoded to
LISTS = ("captions", "drawings", "styles", "things", "cartoons")  # of the last two only names
KIND = re.compile(
    r"^(?:(?:an?|the) )?(?:[\w-]+ )*?(?:photo(?:graph)?|picture|image|drawing|painting|sketch|cartoon) of "
)
SPLITS = ("all", "development", "test")


@dataclass(frozen=True)
class Dataset:
    """Photographs with the names of their classes and a caption each; `boxed` where objects have boxes.
    split: the part that the photographs, classes to draw and lists of prompts are of."""

    photos: Photographs
    classes: list[str]
    captions: list[str]
    boxed: bool
    split: str = "all"

    def every(self, step: int) -> list[int]:
        """Every `step`-th class: from the first for development, from the one after for test, which share none."""
        return list(range(1 if self.split == "test" and step > 1 else 0, len(self.classes), step))


def read_list(split: str) -> dict[str, object]:
    """The lists of a split, as fixed in a file with their purpose; those of `all` are the development ones."""
    name = "test.json" if split == "test" else "development.json"
    text = resources.files(__package__).joinpath("lists", name).read_text(encoding="utf-8")
    return json.loads(text)


def read_dataset(spec: str = "", classes: str = "", split: str = "all") -> Dataset:
    """The sample in the package for an empty `spec`, a .zip with boxes, or an item as `clipag train --data` takes it:
    WebDataset shards, a folder, a table, or hf:NAME:SPLIT. A glob of shards is one item.

    Args:
        classes: file with a class name a line, in the order of the class numbers. Without it a zip has the classes of
            the bundled vocabulary, and anything else those that its captions say, where every class has one caption.
        split: of the sample in the package, "development" takes the first photograph of each class and "test" the
            others; photographs of the user are used whole.
    Raises: ValueError or FileNotFoundError where the photographs, or the names of their classes, cannot be had.
    """
    if not spec or spec.endswith(".zip"):
        photos = read_photos(spec) if spec else _part(bundled_photos(), split)
        names = _names(classes) if classes else bundled_vocabulary().class_names
        _check(photos, names, spec or "the sample")
        captions = [sentence(names[int(label)], "a photo of a {}") for label in photos.labels]
        return Dataset(photos, names, captions, True, split)
    from ..train.data import read_shards

    found = read_shards([spec], SIDE)
    labels = torch.as_tensor(found.labels).long()
    if (labels < 0).any():
        raise ValueError(
            f"{spec!r} has photographs without a class number; zero-shot classification needs one for each"
        )
    names = _names(classes) if classes else _from_captions(found.texts, labels, spec)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).contiguous()
    digest = sha256(images.numpy().tobytes() + labels.numpy().tobytes())
    whole = torch.tensor([[0, 0, SIDE - 1, SIDE - 1]]).expand(len(labels), 4)
    keys = tuple(f"{number:06d}" for number in range(len(labels)))
    photos = Photographs(keys, images, labels, whole, digest)
    _check(photos, names, spec)
    return Dataset(photos, names, [text or "" for text in found.texts], False, split)


def _part(photos: Photographs, split: str) -> Photographs:
    if split == "all":
        return photos
    labels = photos.labels.tolist()
    first = {label: row for row, label in reversed(list(enumerate(labels)))}
    rows = [n for n, label in enumerate(labels) if (first[label] == n) == (split == "development")]
    keys = tuple(photos.keys[row] for row in rows)
    digest = sha256(f"{photos.sha256} {split}".encode())
    return Photographs(keys, photos.images[rows], photos.labels[rows], photos.boxes[rows], digest)


def _lines(path: str) -> list[str]:
    """The lines of a text file that say something."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _names(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"--classes {path!r} does not exist; give a file with a class name a line"
        )
    return _lines(path)


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
    if (most := int(photos.labels.max())) >= len(names):
        raise ValueError(
            f"{what!r} has class number {most}, but there are {len(names)} class names; "
            "give --classes FILE with a name a line"
        )


def read_prompts(name: str, count: int = 0, seed: int = 0, split: str = "all") -> list[str]:
    """The prompts of one of our `LISTS`, of a text file (one a line), or of MS-COCO's captions_*.json.
    count: how many to take, 0 for all; from our lists and text files the first, from COCO one caption each of images
    drawn with `seed`. Raises FileNotFoundError, or ValueError where there are too few."""
    found: list[str]
    if name in LISTS:
        found = read_list(split)[name]  # type: ignore[assignment]
    elif not Path(name).is_file():
        raise FileNotFoundError(
            f"there is no list of prompts {name!r}; give {', '.join(LISTS)}, a text file, or MS-COCO's captions_*.json"
        )
    else:
        found = _coco(name, seed) if name.endswith(".json") else _lines(name)
    # A prompt that comes twice would be its own rival in R-Precision.
    found = list(dict.fromkeys(found))
    if len(found) < max(count, 1):
        raise ValueError(f"{name!r} has {len(found)} prompts; {max(count, 1)} were asked for")
    return found[: count or None]


def subject(prompt: str) -> str:
    """What a prompt is of: "goldfish" of "a close-up photo of a goldfish"."""
    return re.sub(r"^(?:an?|the) ", "", KIND.sub("", prompt))


def _coco(path: str, seed: int) -> list[str]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]
        first: dict[int, str] = {}
        for row in sorted(rows, key=lambda row: row["id"]):
            first.setdefault(row["image_id"], " ".join(row["caption"].split()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path!r} is no file of COCO captions: {error!r}; give captions_val2014.json or a text file"
        ) from error
    images = sorted(first)
    random.Random(seed).shuffle(images)
    return [first[image] for image in images]
