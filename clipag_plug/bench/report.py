"""The records of a suite as one HTML file with its pictures inside: nothing is fetched when it is read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..images import write_text
from .charts import curves, whisker
from .compare import Comparison, Verdict, difference, number, times
from .records import Record
from .registry import find
from .table import Result

MARKS = {
    "hit": "the judge's first choice",
    "near": "among the judge's first five",
    "miss": "not among the first five",
}


def write_report(result: Result, path: Path, folder: Path) -> Path:
    """Writes the report of a suite. Pictures are read from `folder`, where the records are."""
    css = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    suite = result.suite
    body = [
        "<header><p class=kicker>clipag_plug bench · suite "
        f"{escape(suite.name)}</p><h1>What do the gradients paint?</h1><p class=lead>{escape(suite.about)}. "
        f"{_roles(result)}</p></header>",
        _claims(result.verdicts),
        *_sections(result, folder),
        *(_table(result, model, rows) for model, rows in result.rows.items()),
        _method(result),
    ]
    return write_text(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>clipag_plug bench: {escape(suite.name)}</title><style>{css}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n",
    )


def _roles(result: Result) -> str:
    suite = result.suite
    others = ", ".join(f"<b class=ours>{escape(model)}</b>" for model in suite.models[1:])
    words = f"<b class=theirs>{escape(suite.models[0])}</b> is the baseline"
    if others:
        words += f"; {others} against it"
    return (
        f"{words}. Pictures are judged by <b>{escape(suite.judge)}</b> alone, which never guides."
        if suite.judge
        else words
    )


def _claims(verdicts: Sequence[Verdict]) -> str:
    cards = []
    for verdict in verdicts:
        word, kind = {
            True: ("holds", "hit"),
            False: ("fails", "miss"),
            None: ("not measured", "near"),
        }[verdict.holds]
        head, _, rest = verdict.text.partition(", ")
        cards.append(
            f'<div class="claim {kind}"><p class=verdict>{word}</p><h3>{escape(verdict.claim.text)}</h3>'
            f"<p class=head>{escape(head)}</p><p>{escape(rest)}</p></div>"
        )
    return (
        f"<section><h2>What is claimed</h2><div class=claims>{''.join(cards)}</div></section>"
        if cards
        else ""
    )


def _table(result: Result, model: str, rows: Sequence[Comparison]) -> str:
    suite = result.suite
    titles = {entry.name: entry.title for entry in suite.entries}
    limits: dict[str, float] = {}
    for row in rows:
        reach = max(abs(row.difference.low), abs(row.difference.high), 1e-9)
        limits[row.unit] = max(limits.get(row.unit, 0.0), reach)
    lines = [
        f"<section><h2>All numbers: {escape(model)} against {escape(suite.models[0])}</h2><table><thead><tr><th></th>"
        f"<th class=theirs>{escape(suite.models[0])}</th><th class=ours>{escape(model)}</th><th>difference</th>"
        "<th>95 % interval</th><th></th><th>ratio</th><th>n</th><th>judged by</th></tr></thead><tbody>"
    ]
    entry = ""
    for row in rows:
        if row.metric.partition("/")[0] != entry:
            entry = row.metric.partition("/")[0]
            lines.append(
                f"<tr class=group><th colspan=9>{escape(titles.get(entry, entry))}</th></tr>"
            )
        ends = " to ".join(
            difference(end, row.unit) for end in (row.difference.low, row.difference.high)
        )
        mark = {"+": "▲", "-": "▼", "": "·"}[row.mark]
        judge = "<i>itself: not compared</i>" if row.diagnostic else escape(row.judge)
        lines.append(
            f"<tr{' class=faint' if row.diagnostic else ''}><td>{escape(row.title)}</td>"
            f"<td>{number(row.theirs.value, row.unit)}</td><td>{number(row.ours.value, row.unit)}</td>"
            f"<td>{difference(row.difference.value, row.unit)} {mark}</td><td>{ends}</td>"
            f"<td>{whisker(row, limits[row.unit])}</td><td>{times(row.ratio.value) if row.ratio else ''}</td>"
            f"<td>{row.count}</td><td>{judge}</td></tr>"
        )
    return "".join([*lines, "</tbody></table>", _LEGEND, "</section>"])


_LEGEND = (
    "<p class=note>▲ ▼ the interval of the difference excludes zero, · it does not. Shares are in percent, their "
    "differences in points; cosines and margins (nats) are as they are. Intervals: paired bootstrap over the items, "
    "10,000 resamples. The drawing shows the interval around a line at zero.</p>"
)


def _sections(result: Result, folder: Path) -> Iterator[str]:
    """A section of pictures for each entry that has some, of the first seed."""
    for entry in result.suite.entries:
        records = [
            r for r in result.records if r.entry == entry.name and r.seed == result.suite.seeds[0]
        ]
        if not any(record.pictures for record in records):
            continue
        chart, chosen = _sweep_chart(result, entry.name)
        panels = [(key, _panel(records, key, folder)) for key in _keys(records)]
        shown = next((key for key, _ in panels if key == chosen), panels[-1][0])
        yield f"<section><h2>{escape(_capital(entry.title))}</h2><p class=note>{_about(entry.task.run.__doc__)}</p>"
        yield chart
        for key, panel in panels:
            if key == shown:
                heading = f"<h3>{escape(key)}</h3>" if len(panels) > 1 else ""
                yield f"{heading}{panel}"
        for key, panel in panels:
            if key != shown:
                yield f"<details><summary>{escape(key)}</summary>{panel}</details>"
        yield "</section>"


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


def _method(result: Result) -> str:
    rows = []
    for record in result.records:
        options = ", ".join(f"{key} {value}" for key, value in record.options.items())
        hashes = " ".join(
            f"{what} {next(iter(reversed(value.values())))[:12]}"
            for what, value in record.inputs.items()
        )
        rows.append(
            f"<tr><td>{escape(record.entry)}</td><td>{escape(record.model)}</td><td>{record.seed}</td>"
            f"<td class=wide>{escape(options)}</td><td class=wide><code>{escape(hashes)}</code></td>"
            f"<td>{record.seconds:.0f} s</td></tr>"
        )
    machine = ", ".join(f"{key} {value}" for key, value in result.records[-1].environment.items())
    tasks = dict.fromkeys(entry.task.name for entry in result.suite.entries)
    about = "".join(
        f"<dt>{escape(find(name).title)}</dt><dd>{_about(find(name).run.__doc__)}</dd>"
        for name in tasks
    )
    return (
        f"<section><h2>How it was measured</h2><dl>{about}</dl><p class=note>{escape(machine)}; "
        f"{result.seconds:.0f} s in all. Every number is in a JSON record beside this file, with a value per item.</p>"
        "<table class=small><thead><tr><th>entry</th><th>model</th><th>seed</th><th>settings</th>"
        f"<th>SHA-256 of weights and photographs</th><th>time</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</section>"
    )


def _about(text: str | None) -> str:
    return escape(" ".join((text or "").split()))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
