"""Prompts of the paper's protocols: our own lists, a text file, or MS-COCO's captions."""

from __future__ import annotations

import json
import random
from importlib import resources
from pathlib import Path

LISTS = ("captions", "drawings", "styles")


def read_prompts(name: str, count: int = 0, seed: int = 0) -> list[str]:
    """The prompts of one of our `LISTS`, of a text file (one a line), or of MS-COCO's captions_*.json.

    count: how many to take, 0 for all; from our lists and text files the first, from COCO one caption each of images
    drawn with `seed`. Raises FileNotFoundError, or ValueError where there are too few.
    """
    if name in LISTS:
        text = resources.files(__package__).joinpath("prompts.json").read_text(encoding="utf-8")
        found = json.loads(text)[name]
    elif not Path(name).is_file():
        raise FileNotFoundError(
            f"there is no list of prompts {name!r}; give {', '.join(LISTS)}, a text file, or MS-COCO's captions_*.json"
        )
    elif name.endswith(".json"):
        found = _coco(name, seed)
    else:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip()]
    found = list(
        dict.fromkeys(found)
    )  # a prompt that comes twice would be its own rival in R-Precision
    if len(found) < max(count, 1):
        raise ValueError(f"{name!r} has {len(found)} prompts; {max(count, 1)} were asked for")
    return found[: count or None]


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
