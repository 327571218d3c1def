"""Suites: which tasks, with which options, on which models, and what is claimed of the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options.base import Options, option, read_recipe
from .data import SPLITS
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

    Raises FileNotFoundError for an unknown suite, ValueError for a file that makes no sense.
    """
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
    if not suite.models or not suite.entries:
        raise ValueError(f"suite {name!r} names no model or no entry; nothing would be measured")
    if len(set(suite.models)) < len(suite.models):
        raise ValueError(f"suite {name!r} names a model twice: {', '.join(suite.models)}")
    if suite.split not in SPLITS:
        raise ValueError(
            f"suite {name!r} has split {suite.split!r}; it is one of {', '.join(SPLITS)}"
        )
    if any(entry.task.judged for entry in suite.entries) and not suite.judge:
        raise ValueError(f"suite {name!r} draws pictures and names no judge; add --judge")
    return suite


def _entry(name: str, table: dict[str, Any]) -> Entry:
    _known(table, ("task", "title", "options"), f"entry {name!r}")
    task = find(table.get("task", ""))
    return Entry(
        name, table.get("title", task.title), task, task.options.from_dict(table.get("options", {}))
    )


def _known(table: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}; keys: {', '.join(allowed)}")
