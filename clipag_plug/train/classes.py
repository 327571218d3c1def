"""Names of classes: those that the data has, or those of a file, in the forms in which such files come."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..files import read_lines
from ..options.train import Train
from ..vocabulary import Vocabulary, bundled_vocabulary

WORDNET = r"n\d{8}"


def class_vocabulary(
    options: Train, names: Sequence[str], folders: bool = True
) -> Vocabulary | None:
    """The classes' names: those of --class-names, else those that the data has, WordNet numbers as words; else the
    bundled ones for --captions vocabulary; else None.

    names: what the data has. folders: whether it numbers its classes by them, so that a file must have as many.
    Raises ValueError for names that cannot be the data's.
    """
    given = options.class_names
    if not given and not names:
        return bundled_vocabulary() if options.captions == "vocabulary" else None
    if given:
        found = bundled_vocabulary().class_names if given == "bundled" else _given(given)
        if names and folders and len(found) != len(names):
            raise ValueError(
                f"--class-names has {len(found)} names and the data {len(names)} classes ({names[0]}, ...), which are "
                "numbered in this order; leave it out, or give a name for each"
            )
        names = found
    if given == "bundled":
        return bundled_vocabulary()
    words = [
        tuple(w.strip().replace("_", " ") for w in name.split(",") if w.strip())
        for name in _words(names)
    ]
    return Vocabulary(tuple(words), {}) if words else None


def _given(given: str) -> Sequence[str]:
    """The names of --class-names: ImageNet's, or a file's with a class a line, or a list in JSON. A number before each
    name, in order, is left out; so is a WordNet number behind which names stand."""
    if given == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return list(IMAGENET_CLASSNAMES)
    lines = read_lines(given, "--class-names")
    if lines and lines[0].lstrip().startswith(("[", "{")):
        lines = _from_json("\n".join(lines), given)
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t,"):
            raise ValueError(
                f"line {number} of --class-names {given!r} has no name; the classes are numbered by their lines"
            )
    numbered = [re.fullmatch(rf"\s*(\d+|{WORDNET})[\s:;,]+(.+)", line) for line in lines]
    places = [match[1] for match in numbered if match]
    in_order = [[str(first + n) for n in range(len(lines))] for first in (0, 1)]
    wordnet = len(places) == len(lines) and all(re.fullmatch(WORDNET, place) for place in places)
    return [match[2] for match in numbered if match] if wordnet or places in in_order else lines


def _from_json(text: str, path: str) -> list[str]:
    """A list of names, or a mapping from the classes' numbers to names or to what ends in a name."""
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            found = [found[str(number)] for number in range(len(found))]
        names = [each[-1] if isinstance(each, list) else each for each in found]
        if all(isinstance(name, str) for name in names):
            return names
    except (ValueError, KeyError, IndexError):
        pass
    raise ValueError(
        f"--class-names {path!r} is no list of names in JSON; give one class a line, or such a list"
    )


def _words(names: Sequence[str]) -> Sequence[str]:
    """WordNet numbers as words, `n01440764` -> "tench": OpenAI's name where it is one of ImageNet's 1,000, else
    WordNet's. Other names as they are."""
    if not names or not all(re.fullmatch(WORDNET, name) for name in names):
        return names
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    known = dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))
    wordnet = ImageNetInfo("imagenet-22k-ms")
    unknown = [n for n in names if n not in known and n not in wordnet._lemmas]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(names)} classes, as {unknown[0]}, are no WordNet numbers of ImageNet; name the "
            "classes with --class-names FILE"
        )
    return [known.get(n) or str(wordnet.label_name_to_description(n)) for n in names]
