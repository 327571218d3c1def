"""Figures and tables of the papers as suites, and their published tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..options.base import read_recipe
from .compare import Result, number
from .records import Record
from .suites import HOME, Suite, make_suite


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
    data = {
        "about": table["about"],
        "models": models or ["clip-mini", "clipag-mini"],
        "judge": judge or "judge-mini",
        "seeds": seeds or table.get("seeds", [0]),
        "split": "test",
        "entries": entries,
    }
    return make_suite(f"{table['suite']}-{size}", data)


def published(result: Result, name: str) -> str:
    """A table as Du, Yin & Gu print it: a row a model, a column a k; mean and SD over seeds, or seed by seed. "" where
    the paper has no such table."""
    table = papers()[name]
    parts = []
    for key in table.get("shows", ()):
        columns = list(result.records[0].notes["curves"])
        heads = [column.replace("random_k", "k = ") for column in columns]
        lines = [f"| {key} | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
        for model in result.suite.models:
            records = [record for record in result.records if record.model == model]
            values = {c: [_value(record, key, c) for record in records] for c in columns}
            if table.get("each"):
                for place, record in enumerate(records):
                    row = [_shown(key, [values[c][place]]) for c in columns]
                    lines.append(f"| {model}, seed {record.seed} | {' | '.join(row)} |")
            lines.append(f"| {model} | {' | '.join(_shown(key, values[c]) for c in columns)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _value(record: Record, key: str, column: str) -> float:
    if key == "needed":
        return float(record.notes["needed"][column])
    return float(record.metrics[f"{key}_{column}"]["value"])


def _shown(key: str, values: list[float]) -> str:
    unit = {"best": "cosine", "fid": "distance"}.get(key, "count")
    spread = f" ± {number(statistics.stdev(values), unit)}" if len(values) > 1 else ""
    return number(statistics.fmean(values), unit) + spread
