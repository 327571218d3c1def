"""Blind viewers: what people, or vision-language models, name in pictures without knowing prompt or model.

`make` writes FOLDER/SUITE-blind/ (page.html, which holds everything it shows, and pictures/NNN.png) from a suite's
records, and apart from it the key, FOLDER/SUITE-blind-key.json. `score` reads viewers' answers against the key.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically, write_text
from .compare import Result, compare, result_of
from .data import subject
from .records import Metric, Record, fingerprint, read_record, tiles
from .report import embedded, filled
from .suites import Suite
from .wordnet import WordNet

LEVELS = {"exact": "named exactly", "synonym": "or by a synonym", "kind": "or by its kind"}
MARKS = {"exact": "hit", "synonym": "hit", "kind": "near", "": "miss"}


def make(suite: Suite, folder: Path, *, net: WordNet | None = None, seed: int = 0) -> Path:
    """Writes pictures, page and key, and returns the page.
    net: gives each picture a choice among four: its subject, and three others of the page that are no kin of it.
    seed: of the order and of the choices."""
    drawing = random.Random(seed)
    found = list(_pictures(result_of(suite, folder).records, folder))
    drawing.shuffle(found)
    home, cards = folder / f"{suite.name}-blind", []
    subjects = list(dict.fromkeys(each["subject"] for each, _ in found))
    for number, (each, picture) in enumerate(found, 1):
        write_atomically(home / "pictures" / f"{number:03}.png", picture.save, parents=True)
        if net:
            each["choices"] = _choices(each["subject"], subjects, net, drawing)
        card = {"number": number, "image": embedded(picture, 92)}
        cards.append(card | {"choices": each.get("choices", [])})
    key = {str(number): each for number, (each, _) in enumerate(found, 1)}
    write_text(_key(suite, folder), json.dumps(key, indent=1, ensure_ascii=False) + "\n")
    if net:
        asked = {number: each["choices"] for number, each in key.items()}
        write_text(home / "choices.json", json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    return write_text(home / "page.html", filled("blind.html", cards=cards) + "\n")


def score(suite: Suite, folder: Path, answers: Sequence[str], net: WordNet | None = None) -> Result:
    """Each viewer's answers against the key, the models compared with prompts as units.
    answers: files {number: [guess, guess], "by": who looked}; the best of the guesses counts, [] is no name.
    net: what decides whether a guess names a subject; not needed where the page has choices.
    Raises: FileNotFoundError without a key, ValueError for answers that do not fit it."""
    path = _key(suite, folder)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no key {str(path)!r}; clipag bench blind {suite.name} makes it"
        )
    key: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    names, said = zip(*(_read(Path(file), key) for file in answers))
    judged = [{n: _judged(each, own[n], net) for n, each in key.items()} for own in said]
    judge, seeds = "; ".join(names), tuple(range(len(names)))
    own = f"{suite.name}-named"
    suite = dataclasses.replace(suite, name=own, judge=judge, seeds=seeds, claims=())
    shown = {(each["entry"], each["model"]) for each in key.values()}
    records = [
        _record(suite, folder, (entry.name, model, viewer), key, judged[viewer], said[viewer])
        for entry in suite.entries
        for viewer in range(len(names))
        for model in suite.models
        if (entry.name, model) in shown
    ]
    for record in records:
        record.write(folder)
    rows = {model: compare(records, suite.models[0], model) for model in suite.models[1:]}
    remarks = [
        f"named by {suite.judge}; a picture counts once for each viewer, who stands where seeds do",
        _agreement([[level != "" for level in levels.values()] for levels in judged]),
    ]
    return Result(suite, records, rows, [], remarks)


def _key(suite: Suite, folder: Path) -> Path:
    return folder / f"{suite.name}-blind-key.json"


def _pictures(records: Sequence[Record], folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Where each made picture is from and what it is to show, and the picture as PIL has it."""
    for record in records:
        sheet = record.pictures.get("pictures")
        if sheet is None:
            continue
        source = {"entry": record.entry, "model": record.model, "seed": record.seed}
        for place, picture in enumerate(tiles(record, "pictures", folder)):
            title = sheet["titles"][place]
            asked = {"place": place, "prompt": title, "subject": subject(title)}
            yield {**source, **asked, "record": record.path}, picture


def _choices(own: str, subjects: list[str], net: WordNet, drawing: random.Random) -> list[str]:
    others = [s for s in subjects if not (net.relation(own, s) or net.relation(s, own))]
    if len(others) < 3:
        raise ValueError(
            f"only {len(others)} subjects differ from {own!r}; a choice among four needs three"
        )
    found = [own, *drawing.sample(others, 3)]
    drawing.shuffle(found)
    return found


def _read(path: Path, key: dict[str, Any]) -> tuple[str, dict[str, list[str]]]:
    """Who looked, and the guesses for each number."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        by = str(data.pop("by", "")) or path.stem
        said = {
            str(n): [g] if isinstance(g, str) else [str(each) for each in g]
            for n, g in data.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} holds no answers: {error}; give {{number: [guess, guess]}}"
        ) from error
    missing, unknown = [n for n in key if n not in said], [n for n in said if n not in key]
    if missing or unknown:
        what = f"has a picture {unknown[0]}, which was not shown" if unknown else ""
        what = f"lacks picture {missing[0]}" if missing else what
        raise ValueError(f"{str(path)!r} {what}; give [] for what cannot be named")
    return by, said


def _judged(each: dict[str, Any], guesses: list[str], net: WordNet | None) -> str:
    """The best level of the guesses; of a choice "exact" or ""."""
    if each.get("choices"):
        wrong = [guess for guess in guesses[:1] if guess not in each["choices"]]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of the choices {', '.join(each['choices'])}")
        return "exact" if guesses[:1] == [each["subject"]] else ""
    if net is None:
        raise ValueError("free answers are judged with WordNet; the page offered no choices")
    levels = {net.relation(each["subject"], guess) for guess in guesses}
    return next((level for level in LEVELS if level in levels), "")


def _record(
    suite: Suite,
    folder: Path,
    source: tuple[str, str, int],
    key: dict[str, dict[str, Any]],
    judged: dict[str, str],
    said: dict[str, list[str]],
) -> Record:
    """What one viewer named in the pictures of one entry and model; `source`: entry, model and number of viewer."""
    entry, model, viewer = source
    own = {n: each for n, each in key.items() if (each["entry"], each["model"]) == (entry, model)}
    numbers = sorted(own, key=lambda n: (own[n]["seed"], own[n]["place"]))
    some, by, levels = own[numbers[0]], suite.judge.split("; ")[viewer], list(LEVELS)
    titles = LEVELS
    if some.get("choices"):
        titles = {"chosen": "chosen among four (chance 25 %)"}
    metrics = {}
    for place, (name, title) in enumerate(titles.items()):
        values = [float(judged[n] in levels[: place + 1]) for n in numbers]
        metrics[name] = Metric(title, "share", by, values).to_dict()
    first = [n for n in numbers if own[n]["seed"] == some["seed"]]
    made = read_record(folder / some["record"])
    sheet = dict(made.pictures["pictures"])
    sheet["file"] = str(Path("..", "..", made.path).with_name(sheet["file"]))
    sheet["notes"] = [", ".join(said[n]) or "no name" for n in first]
    sheet["marks"] = [MARKS[judged[n]] for n in first]
    options, mark = {"choices": "chosen" in metrics}, fingerprint(key=key, said=said)
    inputs = {"judge": {"name": suite.judge}, "key": {"sha256": fingerprint(key=key)}}
    items = [own[n]["prompt"] for n in numbers]
    head = (suite.name, entry, "blind", model, viewer, mark)
    return Record(*head, inputs, options, items, metrics, pictures={"pictures": sheet})


def _agreement(verdicts: list[list[bool]]) -> str:
    """How often two viewers agree that a picture is named, and Cohen's (1960) kappa, means over pairs."""
    shares, kappas = [], []
    for one, two in itertools.combinations(verdicts, 2):
        same = sum(a == b for a, b in zip(one, two)) / len(one)
        p, q = sum(one) / len(one), sum(two) / len(two)
        chance = p * q + (1 - p) * (1 - q)
        shares.append(same)
        kappas.append((same - chance) / (1 - chance) if chance < 1 else 1.0)
    if not shares:
        return "one viewer: agreement cannot be stated"
    share, kappa = sum(shares) / len(shares), sum(kappas) / len(kappas)
    return (
        f"{len(verdicts)} viewers agree on {share:.0%} of pictures whether they are named, "
        f"Cohen's kappa {kappa:.2f} (means over pairs)"
    )
