"""Suites: which tasks, with which options, on which models, and what is claimed of the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options.base import Options, read_recipe
from .registry import Task, find

HOME = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A task of a suite, with its options filled in."""

    name: str
    title: str
    task: Task
    options: Options


@dataclass(frozen=True)
class Claim:
    """A statement about a metric of the last model against the first; limits that are None are not asked for."""

    text: str
    metric: str
    least: float | None = None
    times: float | None = None
    points: float | None = None
    apart: bool = False
    reach: tuple[str, float] | None = None


@dataclass(frozen=True)
class Suite:
    """A named list of entries, models (the first is the baseline), one judge, seeds and claims."""

    name: str
    about: str
    models: tuple[str, ...]
    judge: str
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    claims: tuple[Claim, ...]


def names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in HOME.glob("*.toml"))


def read_suite(
    name: str,
    *,
    models: list[str] | None = None,
    judge: str = "",
    seeds: list[int] | None = None,
    only: list[str] | None = None,
) -> Suite:
    """A suite of the package or a .toml file, with parts of it replaced.

    Raises FileNotFoundError for an unknown suite, ValueError for a file that makes no sense.
    """
    path = Path(name) if name.endswith(".toml") else HOME / f"{name}.toml"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no suite {name!r}; suites: {', '.join(names())}; or give a .toml file"
        )
    data = read_recipe(path)
    _known(data, ("about", "models", "judge", "seeds", "entries", "claims"), f"suite {path.name!r}")
    entries = [_entry(key, table) for key, table in data.get("entries", {}).items()]
    missing = set(only or ()) - {entry.name for entry in entries}
    if missing:
        raise ValueError(
            f"suite {path.stem!r} has no entry {', '.join(sorted(missing))}; "
            f"entries: {', '.join(entry.name for entry in entries)}"
        )
    suite = Suite(
        path.stem,
        data.get("about", ""),
        tuple(models or data.get("models", ())),
        judge or data.get("judge", ""),
        tuple(seeds or data.get("seeds", (0,))),
        tuple(entry for entry in entries if not only or entry.name in only),
        tuple(_claim(table) for table in data.get("claims", ())),
    )
    _check(suite)
    return suite


def _check(suite: Suite) -> None:
    if not suite.models or not suite.entries:
        raise ValueError(
            f"suite {suite.name!r} names no model or no entry; nothing would be measured"
        )
    if len(set(suite.models)) < len(suite.models):
        raise ValueError(f"suite {suite.name!r} names a model twice: {', '.join(suite.models)}")
    if any(entry.task.judged for entry in suite.entries) and not suite.judge:
        raise ValueError(f"suite {suite.name!r} draws pictures and names no judge; add --judge")


def _entry(name: str, table: dict[str, Any]) -> Entry:
    _known(table, ("task", "title", "options"), f"entry {name!r}")
    if "task" not in table:
        raise ValueError(f"entry {name!r} names no task")
    task = find(table["task"])
    return Entry(
        name, table.get("title", task.title), task, task.options.from_dict(table.get("options", {}))
    )


def _claim(table: dict[str, Any]) -> Claim:
    fields = dict(table)
    if "reach" in fields:
        reach = fields["reach"]
        _known(reach, ("metric", "share"), "reach of a claim")
        fields["reach"] = (reach["metric"], float(reach["share"]))
    _known(fields, tuple(Claim.__dataclass_fields__), "a claim")
    return Claim(**fields)


def _known(table: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}; keys: {', '.join(allowed)}")
