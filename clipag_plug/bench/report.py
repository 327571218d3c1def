"""The records of a suite as one HTML file with its pictures inside: nothing is fetched when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from ..files import write_text
from .charts import whisker
from .compare import Comparison, Verdict, difference, number, times
from .registry import find
from .sheets import about, sections
from .table import Result, empty_columns


def write_report(result: Result, path: Path, folder: Path) -> Path:
    """Writes the report of a suite. Pictures are read from `folder`, where the records are."""
    css = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    suite = result.suite
    body = [
        "<header><p class=kicker>clipag_plug bench · suite "
        f"{escape(suite.name)}</p><h1>What do the gradients paint?</h1><p class=lead>{escape(suite.about)}. "
        f"{_roles(result)}</p></header>",
        _claims(result.verdicts),
        *sections(result, folder),
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
        if row.diagnostic:
            continue
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
        compared = (
            f"<td>{difference(row.difference.value, row.unit)} {mark}</td><td>{ends}</td>"
            f"<td>{whisker(row, limits[row.unit])}</td><td>{times(row.ratio.value) if row.ratio else ''}</td>"
            if not row.diagnostic
            else "<td></td>" * 4
        )
        judge = "<i>itself: not compared</i>" if row.diagnostic else escape(row.judge)
        lines.append(
            f"<tr{' class=faint' if row.diagnostic else ''}><td>{escape(row.title)}</td>"
            f"<td>{number(row.theirs.value, row.unit)}</td><td>{number(row.ours.value, row.unit)}</td>"
            f"{compared}<td>{row.count}</td><td>{judge}</td></tr>"
        )
    return "".join([*lines, "</tbody></table>", _LEGEND, "</section>"])


_LEGEND = (
    "<p class=note>▲ ▼ the interval of the difference excludes zero, · it does not. Shares are in percent, their "
    "differences in points; cosines and margins (nats) are as they are. Intervals: paired bootstrap over the items, "
    "10,000 resamples. The drawing shows the interval around a line at zero.</p>"
)


def _empty(result: Result) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in empty_columns(result))
    return f"<ul class=note>{lines}</ul>" if lines else ""


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
    described = "".join(
        f"<dt>{escape(find(name).title)}</dt><dd>{about(find(name))}</dd>" for name in tasks
    )
    return (
        f"<section><h2>How it was measured</h2><dl>{described}</dl>{_empty(result)}<p class=note>{escape(machine)}; "
        f"{result.seconds:.0f} s in all. Every number is in a JSON record beside this file, with a value per item.</p>"
        "<table class=small><thead><tr><th>entry</th><th>model</th><th>seed</th><th>settings</th>"
        f"<th>SHA-256 of weights and photographs</th><th>time</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</section>"
    )
