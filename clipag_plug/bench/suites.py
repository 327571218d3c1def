"""Suites: which tasks, with which options, on which models, and what is claimed of the outcome; those of the papers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options.base import Options, option, read_recipe
from .compare import Result, number
from .data import SPLITS
from .records import Record
from .tasks import Task, find

HOME = Path(__file__).parent
KEYS = ("about", "models", "judge", "seeds", "split", "entries", "claims")


@dataclass(frozen=True)
class Entry:
    """A task of a suite, with its options filled in."""

    name: str
    title: str
    task: Task
    options: Options


@dataclass
class Claim(Options):
    """A statement about a metric of the last model against the first; limits of 0 are not asked for."""

    text: str = option(help="the claim in words")
    metric: str = option(help="ENTRY/METRIC")
    why: str = option("", "who says so, and why it matters")
    least: float = option(0.0, "least mean of the last model")
    times: float = option(0.0, "least ratio of the means")
    points: float = option(0.0, "least difference of the means")
    apart: bool = option(False, "whether the difference must be significant")
    reach_metric: str = option("", "of a sweep, the metric that chooses the setting")
    reach: float = option(0.0, "the smallest setting at which the last model has this share of it")


@dataclass(frozen=True)
class Suite:
    """A named list of entries, models (the first is the baseline), one judge, seeds, the part of photographs and
    prompts that is measured on, and claims."""

    name: str
    about: str
    models: tuple[str, ...]
    judge: str
    seeds: tuple[int, ...]
    split: str
    entries: tuple[Entry, ...]
    claims: tuple[Claim, ...]


def names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in HOME.glob("*.toml") if path.stem != "papers")


def read_suite(
    name: str,
    *,
    models: Sequence[str] = (),
    judge: str = "",
    seeds: Sequence[int] = (),
    split: str = "",
    only: Sequence[str] = (),
) -> Suite:
    """A suite of the package or a .toml file, with parts of it replaced.
    Raises FileNotFoundError for an unknown suite, ValueError for a file that makes no sense."""
    path = Path(name) if name.endswith(".toml") else HOME / f"{name}.toml"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no suite {name!r}; suites: {', '.join(names())}; or give a .toml file"
        )
    changes = {"models": models, "judge": judge, "seeds": seeds, "split": split}
    data = read_recipe(path) | {key: value for key, value in changes.items() if value}
    return make_suite(path.stem, data, only)


def make_suite(name: str, data: dict[str, Any], only: Sequence[str] = ()) -> Suite:
    """A suite from its table. ValueError for one that makes no sense."""
    _known(data, KEYS, f"suite {name!r}")
    entries = [_entry(key, table) for key, table in data.get("entries", {}).items()]
    known = [entry.name for entry in entries]
    missing = sorted(set(only) - set(known))
    if missing:
        raise ValueError(
            f"suite {name!r} has no entry {', '.join(missing)}; entries: {', '.join(known)}"
        )
    suite = Suite(
        name,
        data.get("about", ""),
        tuple(data.get("models", ())),
        data.get("judge", ""),
        tuple(data.get("seeds", (0,))),
        data.get("split", "all"),
        tuple(entry for entry in entries if not only or entry.name in only),
        tuple(Claim.from_dict(table) for table in data.get("claims", ())),
    )
    wrong = ""
    if not suite.models or not suite.entries:
        wrong = "names no model or no entry; nothing would be measured"
    elif len(set(suite.models)) < len(suite.models):
        wrong = f"names a model twice: {', '.join(suite.models)}"
    elif suite.split not in SPLITS:
        wrong = f"has split {suite.split!r}; it is one of {', '.join(SPLITS)}"
    elif any(entry.task.judged for entry in suite.entries) and not suite.judge:
        wrong = "draws pictures and names no judge; add --judge"
    if wrong:
        raise ValueError(f"suite {name!r} {wrong}")
    return suite


def _entry(name: str, table: dict[str, Any]) -> Entry:
    _known(table, ("task", "title", "options"), f"entry {name!r}")
    task = find(table.get("task", ""))
    options = task.options.from_dict(table.get("options", {}))
    return Entry(name, table.get("title", task.title), task, options)


def _known(table: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}; keys: {', '.join(allowed)}")


def papers() -> dict[str, dict[str, Any]]:
    """Figures and tables of the papers: KEY:NAME -> what papers.toml says of it, that of `same` filled in."""
    data = read_recipe(HOME / "papers.toml")
    sizes = data.pop("sizes")
    found = {}
    for key, part in data.items():
        for name, table in part.items():
            base = table.get("same", name)
            whole = part[base] | table
            found[f"{key}:{name}"] = whole | {"suite": f"{key}-{base}", "sizes": sizes}
    return found


def read_paper(
    name: str, size: str, models: Sequence[str] = (), judge: str = "", seeds: Sequence[int] = ()
) -> Suite:
    """A figure or table of a paper as a suite, at its published size or at one that takes minutes."""
    known = papers()
    if name not in known:
        raise ValueError(f"there is no {name!r} of a paper; known: {', '.join(known)}")
    table = known[name]
    entries = {}
    for key, entry in table["entries"].items():
        sized = table["sizes"][entry["task"]].get(size, {}) | entry.get(size, {})
        said = {part: entry[part] for part in ("task", "title") if part in entry}
        entries[key] = said | {"options": entry.get("options", {}) | sized}
    data = {"about": table["about"], "split": "test", "entries": entries}
    data |= {"models": models or ["clip-mini", "clipag-mini"], "judge": judge or "judge-mini"}
    data |= {"seeds": seeds or table.get("seeds", [0])}
    return make_suite(f"{table['suite']}-{size}", data)


def published(result: Result, name: str) -> str:
    """A table as Du, Yin & Gu print it: a row a model, a column a k; mean and SD over seeds, or seed by seed. "" where
    the paper has no such table."""
    table, parts = papers()[name], []
    for key in table.get("shows", ()):
        columns = list(result.records[0].notes["curves"])
        heads = [column.replace("random_k", "k = ") for column in columns]
        lines = [f"| {key} | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
        for model in result.suite.models:
            rows = {model: [record for record in result.records if record.model == model]}
            if table.get("each"):
                rows = {f"{model}, seed {each.seed}": [each] for each in rows[model]} | rows
            for who, records in rows.items():
                shown = (_mean(key, column, records) for column in columns)
                lines.append(f"| {who} | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _mean(key: str, column: str, records: list[Record]) -> str:
    """The mean of a search's number over seeds, and its deviation where there are several."""
    unit = {"best": "cosine", "fid": "distance"}.get(key, "count")
    if key == "needed":
        values = [float(record.notes["needed"][column]) for record in records]
    else:
        values = [float(record.metrics[f"{key}_{column}"]["value"]) for record in records]
    spread = f" ± {number(statistics.stdev(values), unit)}" if records[1:] else ""
    return number(statistics.fmean(values), unit) + spread
