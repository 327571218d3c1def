"""The words the bundled models were taught: class names, group words, and the sentences made from them."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import random
import re
from dataclasses import dataclass
from importlib import resources

# Prompts of a class whose unit features are averaged: zero-shot classification.
PROMPTS = ("a photo of a {}", "a picture of a {}", "an image of a {}", "{}")
TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "a close-up photo of a {}",
    "a cropped photo of a {}",
    "a blurry photo of a {}",
    "an image of a {}",
    "this is a {}",
    "a drawing of a {}",
    "a painting of a {}",
)

# Words of a prompt that name nothing on it: grammar, numbers, and the kind of picture.
_GRAMMAR = (
    "a an the this that these those is are was were be been being am do does of in on at by with without and or to "
    "for from as into onto out up down off near next under over behind front inside outside between above below "
    "around through against like it its he his she her they their we our you your i my me who whose which what "
    "while there has have having some any many no not very one two three four five six seven eight nine ten photo "
    "picture photograph image drawing painting sketch illustration cartoon emoji icon art oil pencil style made "
    "close up closeup view"
)
SAYS_NOTHING = frozenset(_GRAMMAR.split())
# Plurals that no ending gives.
PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
}


@dataclass(frozen=True)
class Vocabulary:
    """Class names, first name first, and group words with the classes each one covers."""

    names: tuple[tuple[str, ...], ...]
    groups: dict[str, tuple[int, ...]]

    @property
    def words(self) -> list[str]:
        """Every taught word: all names in class order, then the group words."""
        return list(dict.fromkeys([*itertools.chain(*self.names), *self.groups]))

    @property
    def class_names(self) -> list[str]:
        """The first name of each class, in class order."""
        return [names[0] for names in self.names]

    @functools.cached_property
    def cover(self) -> dict[str, frozenset[int]]:
        """For each word, the classes that it describes."""
        table = {word: set(self.groups.get(word, ())) for word in self.words}
        for index, names in enumerate(self.names):
            for name in names:
                table[name].add(index)
        return {word: frozenset(classes) for word, classes in table.items()}

    def meant(self, text: str) -> frozenset[int]:
        """The classes that taught words inside a text describe, "two dogs" all those of "dog"; none: empty."""
        found: frozenset[int] = frozenset()
        for word, classes in self.cover.items():
            if text.isascii() and word.lower() not in text.lower():
                continue  # most are not there, and each pattern takes time to compile
            if re.search(rf"\b{re.escape(word)}(?:s|es)?\b", text, re.IGNORECASE):
                found |= classes
        return found

    @functools.cached_property
    def groups_of(self) -> tuple[tuple[str, ...], ...]:
        """For each class, the group words that cover it."""
        groups = self.groups.items()
        covered = range(len(self.names))
        return tuple(tuple(word for word, of in groups if index in of) for index in covered)

    def sample_word(self, label: int, rng: random.Random, group_share: float = 0.2) -> str:
        """A word for an image of class `label`: a group word with probability `group_share` where the class has
        one, else its first name half of the time, else any of its names."""
        if self.groups_of[label] and rng.random() < group_share:
            return rng.choice(self.groups_of[label])
        names = self.names[label]
        return names[0] if rng.random() < 0.5 else rng.choice(names)


def sentence(word: str, template: str) -> str:
    """The template filled with the word, its article fitted: "a photo of an orange"."""
    return template.format(word).replace(f"a {word}", f"{_article(word)} {word}")


def check_sentence(option: str, template: str) -> None:
    """Raises ValueError where a template has no place for a word, or other braces, and names its option."""
    try:
        right = template.format("\0") == template.replace("{}", "\0") != template
    except (KeyError, IndexError, ValueError):
        right = False
    if not right:
        raise ValueError(
            f"{option} {template!r} has no place for a word, or more; give a sentence with one {{}} in it"
        )


def in_template(template: str, word: str) -> str:
    """The template with the word in `{}`, with its article in `{a}`, in its regular plural in `{s}`."""
    many = f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        many = f"{word[:-1]}ies"
    return template.format(word, a=f"{_article(word)} {word}", s=many)


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"


@functools.cache
def taught_words() -> frozenset[str]:
    """Every word, in lower case, of the texts that the bundled text tower learned."""
    return frozenset(gzip.decompress(_bundled("words.txt.gz")).decode().split())


def unheard(text: str) -> list[str]:
    """The words of a text that say what is on a picture and that the bundled text tower did not learn, each once.

    A plural counts as its singular. Words of grammar and of the kind of picture, as "a photo of", do not count. A text
    without any word, as an emoji, is what was not learned.
    """
    said = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().replace("\u2019", "'"))
    words = dict.fromkeys(word.partition("'")[0] for word in said)
    if not said:
        return [text.strip()] if text.strip() else []
    return [w for w in words if len(w) > 1 and w not in SAYS_NOTHING and not _taught(w)]


def _taught(word: str) -> bool:
    """Whether the word, or what it may be the plural of, was learned."""
    stems = [word, PLURALS.get(word, word)]
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
        if word.endswith(ending):
            stems.append(word.removesuffix(ending) + singular)
    return not taught_words().isdisjoint(stems)


@functools.cache
def known_things() -> list[str]:
    """What the bundled guides were taught to see: ImageNet's 1,000 classes and the concepts of emoji."""
    return list(json.loads(_bundled("clipag-mini.json"))["card"]["vocabulary"])


def suggestions(text: str, count: int = 6) -> list[str]:
    """The text with its last word, or its last two, completed to known things, the shortest first."""
    words = text.split(" ")
    for length in (2, 1):
        start = " ".join(words[-length:]).lower()
        if len(words) < length or len(start) < 2:
            continue
        found = [n for n in known_things() if n.lower().startswith(start) and n.lower() != start]
        if found:
            before = " ".join(words[:-length])
            shortest = sorted(found, key=lambda name: (len(name), name))[:count]
            return [f"{before} {name}".strip() for name in shortest]
    return []


@functools.cache
def bundled_vocabulary() -> Vocabulary:
    """The vocabulary of the bundled photographs, 202 classes, and of the judge."""
    data = json.loads(_bundled("vocabulary.json"))
    names = tuple(tuple(item["names"]) for item in data["classes"])
    return Vocabulary(names, {word: tuple(classes) for word, classes in data["groups"].items()})


def _bundled(name: str) -> bytes:
    return resources.files("clipag_plug.bundled").joinpath(name).read_bytes()
