"""The comparisons as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from .compare import Comparison, difference, number, times
from .table import Result, empty_columns

HEADINGS = ("difference", "95 % interval", "ratio", "n", "judged by")
COLUMNS = (
    *("metric", "title", "unit", "at", "judged_by", "n", "diagnostic"),
    *("baseline", "baseline_value", "baseline_low", "baseline_high"),
    *("model", "model_value", "model_low", "model_high"),
    *("difference", "difference_low", "difference_high", "significant", "ratio"),
)


def markdown(result: Result) -> str:
    """A table for each model against the baseline; a star marks an interval that excludes zero."""
    blocks = []
    for model, rows in result.rows.items():
        heads = (f"{result.suite.name}", result.suite.models[0], model, *HEADINGS)
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * 6 + "---|"]
        for group, row in _grouped(result, rows):
            if group:
                lines.append(f"| **{group}** |" + " |" * 7)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |")
        blocks.append("\n".join(lines))
    blocks += [_claims(result)] if result.verdicts else []
    blocks += (
        ["\n".join(f"- {line}" for line in empty_columns(result))] if empty_columns(result) else []
    )
    blocks.append(
        "95 % paired bootstrap intervals over items (10,000 resamples; differences of shares in points); "
        "\\* marks one that excludes zero. Diagnostics are what a guide says of its own work, and are not compared."
    )
    return "\n\n".join(blocks)


def _claims(result: Result) -> str:
    words = {True: "holds", False: "**fails**", None: "not measured"}
    return "\n".join(f"- {words[v.holds]}: {v.claim.text}: {v.text}" for v in result.verdicts)


def latex(result: Result) -> str:
    """A tabular (booktabs) for each model against the baseline."""
    blocks = []
    for model, rows in result.rows.items():
        heads = (result.suite.name, result.suite.models[0], model, *HEADINGS)
        lines = [
            "\\begin{tabular}{lrrrrrrl}",
            "\\toprule",
            " & ".join(map(_escape, heads)) + " \\\\",
        ]
        for group, row in _grouped(result, rows):
            if group:
                lines.append(
                    f"\\midrule\n\\multicolumn{{8}}{{l}}{{\\emph{{{_escape(group)}}}}} \\\\"
                )
            lines.append(" & ".join(_escape(cell) for cell in cells(row)) + " \\\\")
        blocks.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(blocks)


def as_csv(result: Result) -> str:
    """One line a metric and model, every number in full; an infinite ratio is `inf`, one of 0 / 0 empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model, rows in result.rows.items():
        for row in rows:
            ratio = row.ratio.value if row.ratio else math.nan
            writer.writerow(
                [
                    *(row.metric, row.title, row.unit, "" if row.at is None else row.at),
                    *(row.judge, row.count, int(row.diagnostic), result.suite.models[0]),
                    *(row.theirs.value, row.theirs.low, row.theirs.high),
                    *(model, row.ours.value, row.ours.low, row.ours.high),
                    *(row.difference.value, row.difference.low, row.difference.high),
                    *("" if row.diagnostic else row.mark, "" if math.isnan(ratio) else ratio),
                ]
            )
    return out.getvalue().rstrip("\n")


def cells(row: Comparison) -> tuple[str, ...]:
    """A row as text: title, both means, difference with its mark, interval, ratio, n, judge."""
    means = row.title, number(row.theirs.value, row.unit), number(row.ours.value, row.unit)
    if row.diagnostic:
        return (*means, "", "", "", str(row.count), "itself")
    ends = (difference(end, row.unit) for end in (row.difference.low, row.difference.high))
    moved = difference(row.difference.value, row.unit) + (" *" if row.mark else "")
    ratio = times(row.ratio.value) if row.ratio else ""
    return (*means, moved, " to ".join(ends), ratio, str(row.count), row.judge)


def _grouped(result: Result, rows: list[Comparison]) -> Iterator[tuple[str, Comparison]]:
    """Each row, with its entry's title where a new entry begins."""
    titles = {entry.name: entry.title for entry in result.suite.entries}
    before = ""
    for row in rows:
        entry = row.metric.partition("/")[0]
        yield ("" if entry == before else titles.get(entry, entry)), row
        before = entry


def _escape(text: str) -> str:
    for plain, escaped in (("\\", "\\textbackslash "), ("%", "\\%"), ("_", "\\_"), ("&", "\\&")):
        text = text.replace(plain, escaped)
    for plain, escaped in (("#", "\\#"), ("$", "\\$"), ("∞", "$\\infty$"), (" *", "$^{*}$")):
        text = text.replace(plain, escaped)
    return text
