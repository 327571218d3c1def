"""What two models' records say about each other: paired differences, and claims that hold or do not."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .records import Record, read_records
from .stats import Interval, Units, holm, mean, p_value, paired_difference

if TYPE_CHECKING:
    from .suites import Claim, Suite

LEVEL = 0.05
ROUNDING = 1e-9  # 0.6 - 0.2 is less than 0.4


@dataclass(frozen=True)
class Comparison:
    """One metric of two models over the same items: their means and the paired difference.

    Args:
        metric: "entry/key".
        count: the units that were drawn; `seeds`: how often each was measured.
        deviation: standard deviation of the difference over seeds; None with one seed.
        p: Holm's adjusted p, within all compared rows of one model against the baseline.
        ratio: of the means of shares; infinite over zero, NaN for 0 / 0.
    """

    metric: str
    title: str
    unit: str
    judge: str
    at: float | None
    diagnostic: bool
    better: str
    count: int
    seeds: int
    theirs: Interval
    ours: Interval
    difference: Interval
    deviation: float | None
    p: float
    ratio: float | None

    @property
    def entry(self) -> str:
        """The entry of the suite that measured it."""
        return self.metric.partition("/")[0]

    @property
    def mark(self) -> str:
        """The sign of a significant difference: Holm's p at most 5 %, and an interval that excludes zero."""
        if self.diagnostic or self.p > LEVEL or not self.difference.excludes(0):
            return ""
        return "+" if self.difference.value > 0 else "-"

    @property
    def outcome(self) -> str:
        """Whether the model wins, ties or loses; "" where no direction is better, or where it is its own judge."""
        if self.diagnostic or self.better == "neither":
            return ""
        wins = {"higher": "+", "lower": "-"}[self.better]
        return "tie" if not self.mark else "win" if self.mark == wins else "loss"


@dataclass(frozen=True)
class Verdict:
    """A claim and its outcome: True, False, or None if a needed record is missing."""

    claim: Claim
    holds: bool | None
    text: str
    radius: float | None = None


@dataclass(frozen=True)
class Result:
    """A suite's records, the comparisons of each model with the baseline, the claims about the last one, and what a
    reader must know besides: empty columns, reference levels, files that are no records."""

    suite: Suite
    records: list[Record]
    rows: dict[str, list[Comparison]]
    verdicts: list[Verdict]
    remarks: list[str]

    @property
    def seconds(self) -> float:
        """Time that the measurements took, those of earlier runs included."""
        return sum(record.seconds for record in self.records)


def result_of(suite: Suite, folder: Path) -> Result:
    """What the records in a folder say.
    Records of other options than the suite's, and files that are none, are left out and named in the remarks. Raises
    FileNotFoundError where no record is left, ValueError for records that cannot be of one comparison."""
    found, remarks = read_records(folder, suite.name)
    entries = {entry.name: entry.options.to_dict() for entry in suite.entries}
    records = []
    for record in found:
        asked = entries.get(record.entry)
        if record.model not in suite.models or record.seed not in suite.seeds or asked is None:
            continue
        other = sorted(key for key in asked if record.options.get(key, asked[key]) != asked[key])
        if other:
            remarks.append(
                f"{record.path!r} was measured with other options ({', '.join(other)}) and is left out; "
                "run the suite again"
            )
        else:
            records.append(record)
    if not records:
        raise FileNotFoundError(
            f"no record of {', '.join(suite.models)} in {str(folder / suite.name)!r}; "
            f"python -m clipag_plug.bench run {suite.name} makes them{'; '.join(['', *remarks])}"
        )
    order = list(entries)
    records.sort(key=lambda r: (order.index(r.entry), suite.models.index(r.model), r.seed))
    _check_weights(records)
    for notes in (record.notes for record in records):
        remarks += [f"{what}: empty; {why}" for what, why in notes.get("empty", {}).items()]
        remarks += notes.get("remarks", [])
    splits = {r.inputs["photos"].get("split", "all") for r in records if "photos" in r.inputs}
    if splits - {suite.split}:
        remarks.append(
            f"measured on {' and '.join(sorted(splits))} of the data, where the suite has {suite.split}; run it again"
        )
    rows = {model: compare(records, suite.models[0], model) for model in suite.models[1:]}
    verdicts = [judged(claim, rows[suite.models[-1]]) for claim in suite.claims] if rows else []
    return Result(suite, records, rows, verdicts, list(dict.fromkeys(remarks)))


def _check_weights(records: Sequence[Record]) -> None:
    """One name must mean one file in all that is compared."""
    seen: dict[str, Any] = {}
    for record in records:
        for part in ("model", "judge"):
            used = record.inputs.get(part, {})
            if used and seen.setdefault(used["name"], used["weights"]) != used["weights"]:
                raise ValueError(
                    f"records were measured with two different weights of {used['name']}, as {record.path!r}; "
                    "run the suite again"
                )


def compare(records: Sequence[Record], baseline: str, model: str) -> list[Comparison]:
    """Every metric that both models have, `model` against `baseline`; seeds repeat units and are no units.
    Raises ValueError where the records of one entry are of different items, options, judges or photographs."""
    rows: list[Comparison] = []
    for entry in dict.fromkeys(record.entry for record in records):
        theirs, ours = (
            {r.seed: r for r in records if r.entry == entry and r.model == name}
            for name in (baseline, model)
        )
        pairs = [(theirs[seed], ours[seed]) for seed in theirs if seed in ours]
        for pair in pairs:
            _check_pair(*pair)
        for key in pairs[0][1].metrics if pairs else ():
            if all(key in record.metrics for pair in pairs for record in pair):
                rows += _rows(f"{entry}/{key}", key, pairs)
    compared = [place for place, row in enumerate(rows) if not row.diagnostic]
    for place, p in zip(compared, holm([rows[place].p for place in compared])):
        rows[place] = dataclasses.replace(rows[place], p=p)
    return rows


def _check_pair(theirs: Record, ours: Record) -> None:
    one, two = (
        {"items": each.items, "options": each.options, **each.inputs, "model": None}
        for each in (theirs, ours)
    )
    if other := next((what for what in two if one.get(what) != two[what]), ""):
        raise ValueError(
            f"{theirs.model} and {ours.model} have different {other} in {ours.entry!r}; run the suite again"
        )


def _rows(name: str, key: str, pairs: list[tuple[Record, Record]]) -> Iterator[Comparison]:
    """The comparison of a metric, and of an aesthetic score who is preferred, too."""
    first = pairs[0][1]
    metric, judge = first.metrics[key], first.inputs.get("judge", {}).get("name", "")
    before, after = ([r.metrics[key]["values"] for r in side] for side in zip(*pairs))
    units = _units([ours for _, ours in pairs], metric.get("blocks", 0))
    about = {"at": metric["at"], "diagnostic": metric["diagnostic"], "judge": judge}
    about |= {"better": metric.get("better", "higher"), "seeds": len(pairs)}
    about |= {"count": min(len(set(labels)) for labels in units)}
    columns = [(name, metric["title"], metric["unit"], before, after)]
    if key == "aesthetic":
        # Pairwise preference (supplement 1.2): the share of items with the higher score; a tie is a half.
        seeds = zip(before, after)
        more = [[0.5 + 0.5 * ((b > a) - (b < a)) for a, b in zip(*both)] for both in seeds]
        less = [[1 - value for value in values] for values in more]
        title = f"preferred by {metric['title']}"
        columns.append((f"{name}_preferred", title, "share", less, more))
    for name, title, unit, theirs, ours in columns:
        gaps = [sum(b) / len(b) - sum(a) / len(a) for a, b in zip(theirs, ours)]
        one, two = ([value for values in side for value in values] for side in (theirs, ours))
        means = mean(one, units), mean(two, units)
        yield Comparison(
            **{"metric": name, "title": title, "unit": unit, **about},
            theirs=means[0],
            ours=means[1],
            difference=paired_difference(two, one, units),
            deviation=statistics.stdev(gaps) if len(gaps) > 1 else None,
            p=p_value(two, one, units),
            ratio=_ratio(means[1].value, means[0].value) if metric["unit"] == "share" else None,
        )


def _units(records: Sequence[Record], blocks: int) -> Units:
    """Labels of the units of all values: what was drawn, or blocks of a set's jackknife, which are a seed's own."""
    if blocks:
        count = len(records[0].items)
        return [[(r.seed, n * blocks // count) for r in records for n in range(len(r.items))]]
    factors = records[0].drawn
    if factors:
        return [[label for record in records for label in record.drawn[name]] for name in factors]
    return [[item for record in records for item in record.items]]


def judged(claim: Claim, rows: Sequence[Comparison]) -> Verdict:
    """Whether a claim holds, by the point estimates it bounds and the significance it asks for."""
    radius, sweeps = None, dict[str, list[Comparison]]()
    for row in rows:  # `targeted/guide_top1` covers `targeted/guide_top1@6`
        sweeps.setdefault(row.metric.partition("@")[0], []).append(row)
    if claim.reach_metric:
        reached = {row.at: row.ours.value for row in sweeps.get(claim.reach_metric, ())}
        asked = claim.reach - ROUNDING
        enough = [at for at, share in reached.items() if at is not None and share >= asked]
        if not reached:
            return Verdict(claim, None, f"not run: {claim.reach_metric} for both models")
        if not enough:
            best = f"{max(reached.values()):.0%} of its targets at most"
            return Verdict(claim, None, f"the model reaches {best} (asked: {claim.reach:.0%})")
        radius = min(enough)
    found = [row for row in sweeps.get(claim.metric, ()) if row.at == radius]
    if not found:
        return Verdict(claim, None, f"not run: {claim.metric} for both models")
    row, checks = found[0], []
    ours, theirs, gap = row.ours.value, row.theirs.value, row.difference.value
    parts = [f"{number(ours, row.unit)} against {number(theirs, row.unit)}"]
    if radius is not None:
        parts.append(f"at L2 {radius:g}")
    for asked, value, written in (
        (claim.least, ours, lambda value: number(value, row.unit)),
        (claim.times, _ratio(ours, theirs), times),
        (claim.points, gap, lambda value: difference(value, row.unit)),
    ):
        if asked:
            checks.append(value >= asked - ROUNDING)
            parts.append(f"{written(value)} (asked: {written(asked)})")
    if claim.apart:
        checks.append(row.mark == "+")
        parts.append(f"difference {ends(row)}, p {row.p:.2g} (asked: significant, above zero)")
    return Verdict(claim, all(checks), ", ".join(parts), radius)


def _ratio(ours: float, theirs: float) -> float:
    """How many times the baseline's mean: infinite where only the model's is above 0, NaN below that."""
    if ours <= 0:
        return 0.0 if theirs > 0 else math.nan
    return ours / theirs if theirs > 0 else math.inf


def number(value: float, unit: str) -> str:
    """A mean as tables show it."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if unit in ("cosine", "distance") else f"{value:.2f}"


def difference(value: float, unit: str) -> str:
    """A difference with its sign; of shares in percentage points."""
    if math.isinf(value):
        return "+∞" if value > 0 else "-∞"
    if unit == "share":
        return f"{100 * value:+.1f}"
    return f"{value:+.3f}" if unit in ("cosine", "distance") else f"{value:+.2f}"


def ends(row: Comparison) -> str:
    """The ends of the difference's interval."""
    gap = row.difference
    return f"{difference(gap.low, row.unit)} to {difference(gap.high, row.unit)}"


def times(ratio: float) -> str:
    """A ratio, as 5.0x."""
    if math.isnan(ratio):
        return "0 / 0"
    return "∞" if math.isinf(ratio) else f"{ratio:.1f}x"
