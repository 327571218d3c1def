"""Small SVG drawings for the report: a difference with its interval, and curves over the settings of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .compare import Comparison, difference
from .statistics import Interval


def whisker(row: Comparison, limit: float) -> str:
    """The difference of a row and its interval, on an axis from -limit to limit with a line at zero."""
    width, height = 120, 18

    def place(value: float) -> float:
        return round((max(-limit, min(limit, value)) / limit + 1) / 2 * (width - 8) + 4, 1)

    low, value, high = (
        place(v) for v in (row.difference.low, row.difference.value, row.difference.high)
    )
    kind = {"+": "better", "-": "worse", "": "even"}[row.mark]
    ends = " to ".join(
        difference(end, row.unit) for end in (row.difference.low, row.difference.high)
    )
    return (
        f'<svg class="whisker {kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{difference(row.difference.value, row.unit)}, interval {ends}">'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="1" y2="{height - 1}"/>'
        f'<line x1="{low}" x2="{high}" y1="9" y2="9"/><circle cx="{value}" cy="9" r="3.5"/></svg>'
    )


def curves(
    series: Sequence[tuple[str, str, Sequence[tuple[float, Interval]]]],
    *,
    across: str,
    up: str,
    line: float | None = None,
) -> str:
    """Shares against a setting: series of (name, class, points), their intervals shaded; `line` marks a setting.

    Names are written at the last point of each curve, and pushed apart where they would touch.
    """
    width, height, left, right, top, bottom = 640, 320, 48, 190, 14, 40
    stops = sorted({x for _, _, points in series for x, _ in points})
    low, high = min(stops), max(stops)

    def across_at(x: float) -> float:
        return round(left + (x - low) / ((high - low) or 1) * (width - left - right), 1)

    def up_at(share: float) -> float:
        return round(top + (1 - share) * (height - top - bottom), 1)

    parts = [
        f'<svg class="curves" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(up)}">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = up_at(share)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for x in stops:
        parts.append(
            f'<text x="{across_at(x)}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>'
        )
    middle = (left + width - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 4}" text-anchor="middle">{escape(across)}</text>'
    )
    if line is not None:
        x = across_at(line)
        parts.append(f'<line class="chosen" x1="{x}" x2="{x}" y1="{top}" y2="{height - bottom}"/>')
    labels: list[tuple[float, str, str]] = []
    for name, kind, points in series:
        shape = [(across_at(x), interval) for x, interval in points]
        band = [f"{x},{up_at(i.low)}" for x, i in shape] + [
            f"{x},{up_at(i.high)}" for x, i in reversed(shape)
        ]
        path = " ".join(f"{x},{up_at(i.value)}" for x, i in shape)
        parts.append(f'<polygon class="{kind}" points="{" ".join(band)}"/>')
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        labels.append((up_at(shape[-1][1].value), name, kind))
    places = spread([y for y, _, _ in labels], 16, top, height - bottom)
    for y, (_, name, kind) in zip(places, labels, strict=True):
        parts.append(
            f'<text class="{kind}" x="{width - right + 10}" y="{y + 4:.1f}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def spread(wanted: Sequence[float], gap: float, ceiling: float, floor: float) -> list[float]:
    """Heights near the wanted ones, at least `gap` apart and, where that leaves room, between ceiling and floor."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index], reverse=True)
    places = list(wanted)
    limit = floor + gap
    for index in order:  # from below, where the axis is in the way
        places[index] = limit = min(places[index], limit - gap)
    limit = ceiling - gap
    for index in reversed(order):
        places[index] = limit = max(places[index], limit + gap)
    return places


def running(series: dict[str, Sequence[float]], bar: float, *, across: str, up: str) -> str:
    """Running-best curves against the number of pictures, and a level line `bar`: what the data itself scores."""
    width, height, left, right, top, bottom = 640, 320, 60, 170, 14, 40
    values = [value for curve in series.values() for value in curve] + [bar]
    low, high = min(values), max(values)
    longest = max(len(curve) for curve in series.values())

    def at(step: int, value: float) -> tuple[float, float]:
        x = left + step / max(longest - 1, 1) * (width - left - right)
        return round(x, 1), round(
            top + (high - value) / ((high - low) or 1) * (height - top - bottom), 1
        )

    parts = [
        f'<svg class="curves" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(up)}">'
    ]
    for value in (low, (low + high) / 2, high):
        y = at(0, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{value:.3f}</text>')
    for step in (0, longest - 1):
        x = at(step, low)[0]
        parts.append(
            f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">{step + 1}</text>'
        )
    middle = (left + width - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 4}" text-anchor="middle">{escape(across)}</text>'
    )
    y = at(0, bar)[1]
    parts.append(f'<line class="chosen" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
    ends = [(y, "photographs", 0)]
    for number, (name, curve) in enumerate(series.items()):
        hue = round(360 * number / len(series))
        points = " ".join("{},{}".format(*at(step, value)) for step, value in enumerate(curve))
        parts.append(
            f'<polyline points="{points}" style="fill:none;stroke-width:2;stroke:hsl({hue} 60% 42%)"/>'
        )
        ends.append((at(0, curve[-1])[1], name, hue))
    places = spread([y for y, _, _ in ends], 14, top, height - bottom)
    for y, (_, name, hue) in zip(places, ends, strict=True):
        parts.append(
            f'<text x="{width - right + 10}" y="{y + 4:.1f}" style="fill:hsl({hue} 60% 32%)">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])
