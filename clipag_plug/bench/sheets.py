"""The report's sections of pictures: sheets cut into tiles and laid side by side, and the curves of a sweep."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .charts import curves, running
from .compare import number
from .records import Record
from .registry import Task
from .table import Result

MARKS = {
    "hit": "the judge's first choice",
    "near": "among the judge's first five",
    "miss": "not among the judge's first five",
}
LEGEND = (
    " Under each picture: what the judge calls it. <span class='seen hit'>what was asked</span> "
    "<span class='seen near'>what was asked is among its first five</span> <span class='seen miss'>it is not</span>"
)


def sections(result: Result, folder: Path) -> Iterator[str]:
    """A section of pictures for each entry that has some, of the first seed. The files are read from `folder`."""
    first = result.suite.seeds[0]
    for entry in result.suite.entries:
        records = [r for r in result.records if r.entry == entry.name and r.seed == first]
        if not any(record.pictures for record in records):
            continue
        chart, chosen = _sweep_chart(result, entry.name)
        panels = [(key, _panel(records, key, folder)) for key in _keys(records)]
        shown = next((key for key, _ in panels if key == chosen), panels[-1][0])
        judged = any(sheet["notes"] for record in records for sheet in record.pictures.values())
        yield f"<section><h2>{escape(capital(entry.title))}</h2>{_figures(result, entry.name)}"
        yield f"<p class=note>{about(entry.task)}{LEGEND if judged else ''}</p>{chart}{_search_charts(records)}"
        for key, panel in panels:
            if key == shown:
                yield f"<h3>{escape(key)}</h3>{panel}" if len(panels) > 1 else panel
        for key, panel in panels:
            if key != shown:
                yield f"<details><summary>{escape(key)}</summary>{panel}</details>"
        yield "</section>"


def _figures(result: Result, entry: str) -> str:
    """The first two numbers of an entry, large; those of a sweep have their chart instead."""
    if not result.rows:
        return ""
    rows = result.rows[result.suite.models[-1]]
    rows = [
        r for r in rows if r.metric.startswith(f"{entry}/") and r.at is None and not r.diagnostic
    ]
    cells = [
        f"<div><span>{escape(row.title)}</span><b class=theirs>{number(row.theirs.value, row.unit)}</b> "
        f"<b class=ours>{number(row.ours.value, row.unit)}</b></div>"
        for row in rows[:2]
    ]
    return f"<div class=figures>{''.join(cells)}</div>" if cells else ""


def _keys(records: Sequence[Record]) -> list[str]:
    """Sheets that differ between models; the reference sheet stands beside each of them."""
    keys = list(records[0].pictures)
    return [key for key in keys if key != "photographs"] or keys


def _sweep_chart(result: Result, entry: str) -> tuple[str, str]:
    """Curves over the radii for an entry that has them, and the name of the sheet at the radius a claim chose."""
    if not result.rows:
        return "", ""
    model = result.suite.models[-1]
    rows = [
        row
        for row in result.rows[model]
        if row.metric.startswith(f"{entry}/") and row.at is not None
    ]
    if not rows:
        return "", ""
    radius = next(
        (
            v.radius
            for v in result.verdicts
            if v.radius is not None and v.claim.metric.startswith(entry)
        ),
        None,
    )
    names, drawn = {"target_top1": "judge", "guide_top1": "itself"}, []
    for key, seen in names.items():
        sweep = [row for row in rows if row.metric.partition("@")[0] == f"{entry}/{key}"]
        if sweep:
            faint = " faint" if key == "guide_top1" else ""
            baseline = result.suite.models[0]
            drawn.append(
                (f"{model}, {seen}", f"ours{faint}", [(row.at or 0.0, row.ours) for row in sweep])
            )
            drawn.append(
                (
                    f"{baseline}, {seen}",
                    f"theirs{faint}",
                    [(row.at or 0.0, row.theirs) for row in sweep],
                )
            )
    if not drawn:
        return "", ""
    svg = curves(
        drawn,
        across="L2 radius at the model's input resolution",
        up="share of targets seen",
        line=radius,
    )
    note = "Share of photographs in which the target is seen, by the judge and by the guide itself (pale)."
    return (
        f"<figure class=chart>{svg}<figcaption>{note}</figcaption></figure>",
        f"radius {radius:g}" if radius else "",
    )


def _search_charts(records: Sequence[Record]) -> str:
    """The running-best curves of the records that hold some, a chart for each model."""
    figures = []
    for record in records:
        if "curves" in record.notes:
            names = {name.replace("_k", ", k = "): v for name, v in record.notes["curves"].items()}
            svg = running(
                names, record.notes["data_score"], across="pictures made", up="best score so far"
            )
            note = f"{record.model}: its own best score so far, mean over prompts; the line is what photographs score."
            figures.append(
                f"<figure class=chart>{svg}<figcaption>{escape(note)}</figcaption></figure>"
            )
    return "".join(figures)


def _panel(records: Sequence[Record], key: str, folder: Path) -> str:
    """Cards, one a picture: the photograph where there is one, then each model's picture and what the judge saw."""
    columns: list[tuple[str, dict[str, Any], list[str]]] = []
    if "photographs" in records[0].pictures and key != "photographs":
        sheet = records[0].pictures["photographs"]
        columns.append(("photograph", sheet, _tiles(sheet, records[0], folder)))
    for record in records:
        if key in record.pictures:
            sheet = record.pictures[key]
            columns.append((record.model, sheet, _tiles(sheet, record, folder)))
    cards = []
    for place, title in enumerate(columns[-1][1]["titles"]):
        tiles = "".join(_tile(name, sheet, images, place) for name, sheet, images in columns)
        cards.append(
            f"<figure class=card><figcaption>{escape(title)}</figcaption><div class=tiles>{tiles}</div></figure>"
        )
    return f'<div class="cards of{len(columns)}">{"".join(cards)}</div>'


def _tile(name: str, sheet: dict[str, Any], images: Sequence[str], place: int) -> str:
    note = sheet["notes"][place] if place < len(sheet["notes"]) else ""
    mark = sheet["marks"][place] if place < len(sheet["marks"]) and name != "photograph" else ""
    seen = (
        f'<span class="seen {mark}" title="{MARKS.get(mark, "")}">{escape(note)}</span>'
        if note
        else ""
    )
    title = escape(f"{sheet['titles'][place]}, {name}")
    picture = f'<img src="{images[place]}" alt="{title}" loading="lazy">'
    return f"<div>{picture}<span class=who>{escape(name)}</span>{seen}</div>"


def _tiles(sheet: dict[str, Any], record: Record, folder: Path) -> list[str]:
    """The tiles of a sheet as data URIs: JPEG without chroma subsampling, a tenth of the PNG that lies in `folder`."""
    from PIL import Image

    side, columns = sheet["side"], sheet["columns"]
    found = []
    with Image.open((folder / record.path).parent / sheet["file"]) as atlas:
        for place in range(len(sheet["titles"])):
            left, top = place % columns * side, place // columns * side
            buffer = io.BytesIO()
            atlas.crop((left, top, left + side, top + side)).save(
                buffer, "JPEG", quality=82, subsampling=0
            )
            found.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return found


def about(task: Task) -> str:
    """What a task says of itself, as HTML."""
    return escape(" ".join((task.run.__doc__ or "").split()))


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
