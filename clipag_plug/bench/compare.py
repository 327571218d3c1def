"""What two models' records say about each other: paired differences, ratios, and claims that hold or do not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record
from .statistics import Interval, mean, paired_difference, paired_ratio
from .suites import Claim

ROUNDING = 1e-9  # 0.6 - 0.2 is less than 0.4


@dataclass(frozen=True)
class Comparison:
    """One metric of two models over the same items: their means, the paired difference, and for shares the ratio.

    `metric` is "entry/key". mark: "+" or "-" where the interval of the difference excludes zero, else "".
    """

    metric: str
    title: str
    unit: str
    judge: str
    at: float | None
    diagnostic: bool
    count: int
    theirs: Interval
    ours: Interval
    difference: Interval
    ratio: Interval | None

    @property
    def mark(self) -> str:
        """Sign of a significant difference."""
        if not self.difference.excludes(0):
            return ""
        return "+" if self.difference.value > 0 else "-"


@dataclass(frozen=True)
class Verdict:
    """A claim and whether the records bear it out; None where they lack what it needs."""

    claim: Claim
    holds: bool | None
    text: str
    radius: float | None = None


def compare(records: Sequence[Record], baseline: str, model: str) -> list[Comparison]:
    """Every metric that both models have, `model` against `baseline`, seeds pooled.

    Raises ValueError where the records of one entry are of different items, options or judges.
    """
    rows: list[Comparison] = []
    for entry in dict.fromkeys(record.entry for record in records):
        theirs, ours = (_of(records, entry, name) for name in (baseline, model))
        seeds = [seed for seed in theirs if seed in ours]
        for seed in seeds:
            _check_pair(theirs[seed], ours[seed])
        if seeds:
            rows += _rows(entry, [theirs[seed] for seed in seeds], [ours[seed] for seed in seeds])
    return rows


def _of(records: Sequence[Record], entry: str, model: str) -> dict[int, Record]:
    return {
        record.seed: record for record in records if record.entry == entry and record.model == model
    }


def _check_pair(theirs: Record, ours: Record) -> None:
    for what in ("items", "options"):
        if getattr(theirs, what) != getattr(ours, what):
            raise ValueError(
                f"{theirs.model} and {ours.model} have different {what} in {ours.entry!r}; run the suite again"
            )
    for what in ("judge", "photos"):
        if theirs.inputs.get(what) != ours.inputs.get(what):
            raise ValueError(
                f"{theirs.model} and {ours.model} were measured with another {what} in {ours.entry!r}; "
                "run the suite again"
            )


def _rows(entry: str, theirs: list[Record], ours: list[Record]) -> list[Comparison]:
    rows = []
    for key, first in ours[0].metrics.items():
        if not all(key in record.metrics for record in (*theirs, *ours)):
            continue
        before = [value for record in theirs for value in record.metrics[key]["values"]]
        after = [value for record in ours for value in record.metrics[key]["values"]]
        rows.append(
            Comparison(
                f"{entry}/{key}",
                first["title"],
                first["unit"],
                ours[0].inputs.get("judge", {}).get("name", ""),
                first["at"],
                first["diagnostic"],
                len(after),
                mean(before),
                mean(after),
                paired_difference(after, before),
                paired_ratio(after, before) if first["unit"] == "share" else None,
            )
        )
        if key == "aesthetic":
            rows.append(_preference(rows[-1], before, after))
    return rows


def _preference(row: Comparison, before: list[float], after: list[float]) -> Comparison:
    """Pairwise preference (supplement 1.2): share of items on which a model has the higher score; a tie is a half."""
    ours = [0.5 + 0.5 * ((b > a) - (b < a)) for a, b in zip(before, after)]
    theirs = [1 - value for value in ours]
    return dataclasses.replace(
        row,
        metric=f"{row.metric}_preferred",
        title=f"preferred by {row.title}",
        unit="share",
        theirs=mean(theirs),
        ours=mean(ours),
        difference=paired_difference(ours, theirs),
        ratio=None,
    )


def judge_claims(claims: Sequence[Claim], rows: Sequence[Comparison]) -> list[Verdict]:
    """Whether each claim holds, by the point estimates it bounds and the interval it asks for."""
    return [_verdict(claim, rows) for claim in claims]


def _verdict(claim: Claim, rows: Sequence[Comparison]) -> Verdict:
    radius = None
    if claim.reach is not None:
        metric, share = claim.reach
        enough = [r for r in _sweep(rows, metric) if r.ours.value >= share - ROUNDING]
        if not enough:
            best = max((row.ours.value for row in _sweep(rows, metric)), default=0.0)
            reason = f"the model reaches {best:.0%} of its targets at most (asked: {share:.0%})"
            return Verdict(claim, None, reason)
        radius = min(row.at for row in enough if row.at is not None)
    found = [row for row in _sweep(rows, claim.metric) if row.at == radius]
    if not found:
        return Verdict(claim, None, f"no record of {claim.metric} for both models")
    row = found[0]
    checks: list[bool] = []
    parts = [f"{number(row.ours.value, row.unit)} against {number(row.theirs.value, row.unit)}"]
    if radius is not None:
        parts.append(f"at L2 {radius:g}")
    if claim.least is not None:
        checks.append(row.ours.value >= claim.least - ROUNDING)
        parts.append(f"(asked: {number(claim.least, row.unit)})")
    if claim.times is not None:
        ratio = _factor(row)
        checks.append(ratio >= claim.times - ROUNDING)
        parts.append(f"{times(ratio)} (asked: {times(claim.times)})")
    if claim.points is not None:
        checks.append(row.difference.value >= claim.points - ROUNDING)
        parts.append(
            f"{difference(row.difference.value, row.unit)} (asked: {difference(claim.points, row.unit)})"
        )
    if claim.apart:
        checks.append(row.difference.low > 0)
        low, high = (difference(end, row.unit) for end in (row.difference.low, row.difference.high))
        parts.append(f"difference {low} to {high} (asked: above zero)")
    return Verdict(claim, all(checks), ", ".join(parts), radius)


def _factor(row: Comparison) -> float:
    """How many times the baseline's mean the model's is: infinite where only the model's is above 0, NaN below that."""
    if row.ratio:
        return row.ratio.value
    ours, theirs = row.ours.value, row.theirs.value
    if ours <= 0:
        return math.nan
    return ours / theirs if theirs > 0 else math.inf


def _sweep(rows: Sequence[Comparison], metric: str) -> list[Comparison]:
    """The rows of a metric, at all its settings: `targeted/guide_top1` covers `targeted/guide_top1@6`."""
    return [row for row in rows if row.metric.partition("@")[0] == metric]


def number(value: float, unit: str) -> str:
    """A mean as tables show it."""
    return (
        f"{100 * value:.1f} %"
        if unit == "share"
        else f"{value:.3f}"
        if unit in ("cosine", "distance")
        else f"{value:.2f}"
    )


def difference(value: float, unit: str) -> str:
    """A difference with its sign; of shares in percentage points."""
    if unit == "share":
        return f"{100 * value:+.1f}"
    return f"{value:+.3f}" if unit in ("cosine", "distance") else f"{value:+.2f}"


def times(ratio: float) -> str:
    """A ratio, as 5.0x."""
    if math.isnan(ratio):
        return "0 / 0"
    return "∞" if math.isinf(ratio) else f"{ratio:.1f}x"
