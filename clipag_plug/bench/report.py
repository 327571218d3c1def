"""A result as text, Markdown, LaTeX, CSV and JSON, and as one HTML file with its pictures inside.

Beside the HTML file lie the table as CSV, LaTeX and PNG, each chart as PDF and PNG, and the first pictures with labels.
A reader fetches nothing.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import slug, write_atomically, write_text
from ..images import contact_sheet, from_pil, write_image
from .compare import Comparison, Result, difference, ends, number, times
from .records import tiles

HEADS = ("difference", "95 % interval", "p (Holm)", "ratio", "n", "judged by")
METHOD = (
    "Means over n units that were drawn (prompts, photographs; seeds repeat them). Shares: Agresti-Coull intervals, "
    "Newcombe's for paired differences (in points); other means: midway between Student's and the studentised "
    "bootstrap's. * significant: exact paired randomisation test (McNemar's for shares) after Holm's adjustment over "
    "all {count} compared rows of the table. 'itself': what a guide says of its own work, not compared."
)
SHOWN, SIDE = 10, 128  # pictures in a row of the sheet, and their side


def cells(row: Comparison) -> tuple[str, ...]:
    """A row as text: title, both means, difference with its mark, interval, p, ratio, n, judge."""
    means = row.title, number(row.theirs.value, row.unit), number(row.ours.value, row.unit)
    count = f"{row.count}" if row.seeds == 1 else f"{row.count} x {row.seeds} seeds"
    if row.diagnostic:
        return (*means, "", "", "", "", count, "itself")
    moved = difference(row.difference.value, row.unit) + (" *" if row.mark else "")
    if row.deviation is not None:
        moved += f" (SD over seeds {difference(row.deviation, row.unit)[1:]})"
    ratio = times(row.ratio) if row.ratio is not None else ""
    return (*means, moved, ends(row), f"{row.p:.2g}", ratio, count, row.judge)


def titles(result: Result) -> dict[str, str]:
    """The title of each entry."""
    return {entry.name: entry.title for entry in result.suite.entries}


def grouped(result: Result, model: str) -> Iterator[tuple[str, list[Comparison]]]:
    """The rows of a model, entry by entry, with the entry's title."""
    for entry, rows in itertools.groupby(result.rows[model], key=lambda row: row.entry):
        yield titles(result)[entry], list(rows)


def method(result: Result) -> str:
    """How the intervals and marks came about."""
    compared = [sum(not row.diagnostic for row in rows) for rows in result.rows.values()]
    return METHOD.format(count=max(compared, default=0))


def text(result: Result) -> str:
    """Aligned columns for a terminal."""
    words = {True: "yes ", False: "NO  ", None: "?   "}
    claims = "\n".join(f"{words[v.holds]} {v.claim.text}: {v.text}" for v in result.verdicts)
    parts = [_columns(result), claims, "\n".join(result.remarks), method(result)]
    return "\n\n".join(filter(None, parts))


def _columns(result: Result) -> str:
    parts = []
    for model in result.rows:
        lines: list[tuple[str, ...]] = [("", result.suite.models[0], model, *HEADS)]
        for title, rows in grouped(result, model):
            lines += [(title,), *(("  " + cells(row)[0], *cells(row)[1:]) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*(li for li in lines if len(li) > 1))]
        for line in lines:
            aligned = (f"{cell:{way}{n}}" for cell, way, n in zip(line, "<>>>>>>><", widths))
            parts.append("  ".join(aligned).rstrip())
        parts.append("")
    return "\n".join(parts).rstrip("\n")


def as_csv(result: Result) -> str:
    """One line a metric and model, every number in full."""
    lines = []
    for model, rows in result.rows.items():
        for row in rows:
            lines.append({"baseline": result.suite.models[0], "model": model})
            for key, value in dataclasses.asdict(row).items():
                parts = value.items() if isinstance(value, dict) else ()
                lines[-1] |= {f"{key}_{end}": each for end, each in parts} or {key: value}
            lines[-1] |= {"significant": row.mark, "outcome": row.outcome}
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().rstrip("\n")


def as_json(result: Result) -> str:
    """Everything in the table, and where the records are; what is not finite becomes null."""
    data = {
        "suite": result.suite.name,
        "models": list(result.suite.models),
        "judge": result.suite.judge,
        "split": result.suite.split,
        "seconds": round(result.seconds, 1),
        "records": [record.path for record in result.records],
        "comparisons": {
            model: [dataclasses.asdict(row) | {"significant": row.mark} for row in rows]
            for model, rows in result.rows.items()
        },
        "claims": [
            {"text": v.claim.text, "metric": v.claim.metric, "holds": v.holds, "found": v.text}
            for v in result.verdicts
        ],
        "remarks": result.remarks,
    }
    return json.dumps(_finite(data), indent=1, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def filled(name: str, **values: Any) -> str:
    """A template filled with values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipag_plug.bench"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"tex": _tex, "number": number, "difference": difference}
    return environment.get_template(name).render(**values).rstrip("\n")


def rendered(name: str, result: Result, **more: Any) -> str:
    """The template `name` filled with a result."""
    helpers = {"cells": cells, "ends": ends, "heads": HEADS, "method": method(result)}
    return filled(name, result=result, suite=result.suite, grouped=grouped, **helpers, **more)


def _tex(said: str) -> str:
    special: Any = {"\\": "\\textbackslash ", "∞": "$\\infty$", **{c: f"\\{c}" for c in "%_&#$"}}
    return said.translate(str.maketrans(special)).replace(" *", "$^{*}$")


FORMATS: dict[str, Callable[[Result], str]] = {
    "text": text,
    "markdown": lambda result: rendered("table.md", result),
    "csv": as_csv,
    "latex": lambda result: rendered("table.tex", result),
    "json": as_json,
}


def write_report(result: Result, path: Path, folder: Path) -> Path:
    """Writes the report of a suite with its exports. Pictures are read from `folder`, where the records are."""
    labelled(result, folder, path.with_name(f"{path.stem}-pictures.png"))
    write_text(path.with_suffix(".csv"), as_csv(result) + "\n")
    write_text(path.with_suffix(".tex"), FORMATS["latex"](result) + "\n")
    if result.rows:
        from matplotlib.figure import Figure

        lines = _columns(result).splitlines()
        size = (0.068 * max(map(len, lines)) + 0.2, 0.15 * len(lines) + 0.2)
        page, at = Figure(figsize=size, dpi=150), (0.1 / size[0], 1 - 0.1 / size[1])
        page.text(*at, "\n".join(lines), va="top", family="monospace", size=8)
        write_atomically(path.with_suffix(".png"), page.savefig)
    charts = {
        name: _drawn(curves, path.with_name(f"{path.stem}-{slug(name)}.pdf"), **how)
        for name, curves, how in _charts(result)
    }
    sheets = {entry.name: _panels(result, entry.name, folder) for entry in result.suite.entries}
    rows = [row for found in result.rows.values() for row in found]
    counts = {kind: [r for r in rows if r.outcome == kind] for kind in ("win", "tie", "loss")}
    first = next((panel[0] for panels in sheets.values() for panel in panels.values()), None)
    more = {"charts": charts, "sheets": sheets, "counts": counts, "first": first}
    return write_text(path, rendered("report.html", result, **more) + "\n")


def _charts(result: Result) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The sweeps of each entry, and the running-best curves of a search: a title, curves by name, and what `_drawn`
    is told besides. A curve: places, values, and ends of intervals where there are some."""
    for model, rows in result.rows.items():
        swept = [row for row in rows if row.at is not None and row.unit == "share"]
        for entry, found in itertools.groupby(swept, key=lambda row: row.entry):
            curves: dict[str, Any] = {}
            for row in found:
                title = row.title.rpartition(", ")[0]
                for name, interval in ((result.suite.models[0], row.theirs), (model, row.ours)):
                    ends = (interval.low, interval.high)
                    columns = curves.setdefault(f"{name}: {title}", ([], [], []))
                    for column, value in zip(columns, (row.at, interval.value, ends)):
                        column.append(value)
            yield f"{entry}, {model}", curves, {"across": "radius", "up": "share of items"}
    for record in result.records:
        if "curves" in record.notes:
            found_curves = {
                name: (range(1, len(values) + 1), values, ())
                for name, values in record.notes["curves"].items()
            }
            names = {"across": "pictures made", "up": "best score; line: photographs"}
            title = f"{record.entry}, {record.model}, seed {record.seed}"
            yield title, found_curves, names | {"level": record.notes["data_score"]}


def _drawn(
    curves: dict[str, Any], path: Path, across: str, up: str, level: float | None = None
) -> str:
    """Writes a chart as PDF and PNG and returns it as SVG in a data URI. level: where a line goes across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, (places, values, bands) in curves.items():
        (line,) = axes.plot(places, values, marker="o" if bands else "", markersize=3, label=name)
        if bands:
            low, high = zip(*bands)
            axes.fill_between(places, low, high, alpha=0.15, color=line.get_color())
    if level is not None:
        axes.axhline(level, color="0.5", linestyle=":")
    axes.set(xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    for suffix in (".pdf", ".png"):
        write_atomically(path.with_suffix(suffix), figure.savefig)
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return _uri("svg+xml", out)


def _panels(result: Result, entry: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Cards by sheet, of the first seed: a title, and each model's picture with what the judge saw, the photograph
    before them where there is one."""
    records = [r for r in result.records if r.entry == entry and r.seed == result.suite.seeds[0]]
    keys = list(dict.fromkeys(key for record in records for key in record.pictures))
    panels: dict[str, list[dict[str, Any]]] = {}
    for key in [key for key in keys if key != "photographs"] or keys:
        shown = [(record.model, record, key) for record in records if key in record.pictures]
        if "photographs" in keys and key != "photographs":
            shown.insert(0, ("photograph", records[0], "photographs"))
        columns = [
            (who, record.pictures[name], [embedded(tile) for tile in tiles(record, name, folder)])
            for who, record, name in shown
        ]
        panels[key] = []
        for place in range(min(len(pictures) for *_, pictures in columns)):
            card: dict[str, Any] = {"title": columns[-1][1]["titles"][place], "tiles": []}
            for who, sheet, pictures in columns:
                said = {n: "".join(sheet[f"{n}s"][place : place + 1]) for n in ("note", "mark")}
                card["tiles"].append({"who": who, "image": pictures[place], **said})
            panels[key].append(card)
    return panels


def labelled(result: Result, folder: Path, path: Path) -> Path | None:
    """Writes the first pictures of every sheet, entry, model and seed with labels; None where there are none."""
    rows, captions, heads = [], [], []
    for record in result.records:
        for key, sheet in record.pictures.items():
            shown = tiles(record, key, folder)[:SHOWN]
            rows.append([from_pil(tile.resize((SIDE, SIDE))) for tile in shown])
            seed = f", seed {record.seed}" if len(result.suite.seeds) > 1 else ""
            captions.append(f"{titles(result)[record.entry]}: {record.model}, {key}{seed}")
            heads = sheet["titles"][:SHOWN]
    if not rows:
        return None
    return write_image(path, contact_sheet(rows, headings=heads, captions=captions))


def embedded(picture: Any, quality: int = 82) -> str:
    """A PIL picture as a data URI: JPEG without chroma subsampling, a tenth of a PNG."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=0)
    return _uri("jpeg", out)


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
