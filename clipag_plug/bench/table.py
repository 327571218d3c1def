"""The result as text for a terminal, and as plain data for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from .compare import Comparison, Verdict, difference, number, times
from .records import Record
from .suites import Suite


@dataclasses.dataclass(frozen=True)
class Result:
    """A suite's records, the comparisons of each model with the baseline, and the claims about the last one."""

    suite: Suite
    records: list[Record]
    rows: dict[str, list[Comparison]]
    verdicts: list[Verdict]

    @property
    def seconds(self) -> float:
        """Time that the measurements took, those of earlier runs included."""
        return sum(record.seconds for record in self.records)


def empty_columns(result: Result) -> list[str]:
    """What could not be measured, each with the reason, as the records say."""
    said = {
        f"{what}: empty; {reason}": None
        for record in result.records
        for what, reason in record.notes.get("empty", {}).items()
    }
    return list(said)


def text_table(result: Result) -> str:
    """The comparisons of each model with the baseline, then the claims."""
    parts = []
    for model, rows in result.rows.items():
        parts.append(_block(result.suite, model, rows))
    if result.verdicts:
        parts.append("\n".join(_claim(verdict) for verdict in result.verdicts))
    parts += ["\n".join(empty_columns(result))] if empty_columns(result) else []
    parts.append(
        "Means over n items. Difference: 95 % paired bootstrap interval over items (10,000 resamples, in points for "
        "shares);\n* marks an interval that excludes zero. 'itself': what a guide says of its own work, not compared."
    )
    return "\n\n".join(parts)


def _block(suite: Suite, model: str, rows: Sequence[Comparison]) -> str:
    baseline = suite.models[0]
    lines: list[tuple[str, ...]] = [
        ("", baseline, model, "difference", "", "ratio", "n", "judged by")
    ]
    titles = {entry.name: entry.title for entry in suite.entries}
    entry = ""
    groups: list[int] = []
    for row in rows:
        if row.metric.partition("/")[0] != entry:
            entry = row.metric.partition("/")[0]
            groups.append(len(lines))
            lines.append((titles.get(entry, entry), *[""] * 7))
        lines.append(_cells(row))
    widths = [max(len(line[column]) for line in lines) for column in range(8)]
    text = []
    for index, line in enumerate(lines):
        if index in groups:
            text.append(line[0])
            continue
        cells = [line[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(line[1:7], widths[1:7])
        ]
        text.append("  ".join([*cells, line[7]]).rstrip())
    return "\n".join(text)


def _cells(row: Comparison) -> tuple[str, ...]:
    low, high = (difference(end, row.unit) for end in (row.difference.low, row.difference.high))
    ratio = times(row.ratio.value) if row.ratio else ""
    means = "  " + row.title, number(row.theirs.value, row.unit), number(row.ours.value, row.unit)
    if row.diagnostic:
        return (*means, "", "", "", str(row.count), "itself")
    return (
        *means,
        f"{difference(row.difference.value, row.unit)} [{low}, {high}]",
        "*" if row.mark else " ",
        ratio,
        str(row.count),
        row.judge,
    )


def _claim(verdict: Verdict) -> str:
    word = {True: "yes ", False: "NO  ", None: "?   "}[verdict.holds]
    return f"{word} {verdict.claim.text}: {verdict.text}"


def as_data(result: Result) -> dict[str, Any]:
    """Everything in the table, and where the records are, as plain data; infinite ratios become null."""
    return {
        "suite": result.suite.name,
        "models": list(result.suite.models),
        "judge": result.suite.judge,
        "seconds": round(result.seconds, 1),
        "records": [record.path for record in result.records],
        "comparisons": {
            model: [_finite(dataclasses.asdict(row)) for row in rows]
            for model, rows in result.rows.items()
        },
        "claims": [
            {"text": v.claim.text, "metric": v.claim.metric, "holds": v.holds, "found": v.text}
            for v in result.verdicts
        ],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
