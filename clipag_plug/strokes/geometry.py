"""From curves to coverage: the nearest point of a curve to each pixel, and the derivative of that.

Near a pixel a stroke is taken as the half plane behind the tangent to its outline. Only pixels that an outline
can cross get any geometry. The 16 pixels of a tile are numbered by y, then x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .area import HALF_DIAGONAL, covered_area
from .scene import SAMPLES, SEARCH_GRID, Segments, run_sums
from .tiles import TILE, Plan

PIXELS = TILE * TILE
_CHUNK = 2048  # edge pairs searched at a time: the work stays in the cache
_UNIT = (
    SEARCH_GRID**2
)  # squared distances between points of the search grid are multiples of 1 / _UNIT
_KEYS = 16  # finer than that a key holds the index of its sample
_SLACK = 0.1  # px, more than the search grid moves a sample by


@dataclass(frozen=True)
class Outline:
    """The n pixels that an outline can cross, sorted by segment."""

    pair: Tensor  # (n,)
    pixel: Tensor  # (n,) number within the tile
    t: Tensor  # (n,) parameter of the nearest point
    power: Tensor  # (8, n) power coefficients of the segment
    normal: Tensor  # (2, n) unit vector from the curve to the pixel
    distance: Tensor  # (n,)
    radius: Tensor  # (n,)
    coverage: Tensor  # (n,)
    lengths: Tensor  # (M,) how many of these pixels each segment has
    thin: bool


def cover(segments: Segments, widths: Tensor, plan: Plan) -> tuple[Tensor, Outline]:
    """Coverage (PIXELS, P + 1) in [0, 1] of the edge pairs; the last column is 1, for rows inside a stroke."""
    square, t = _search(segments, plan)
    radius = segments.radius.index_select(0, plan.segment)
    gap = segments.fine_gap.index_select(0, plan.segment)
    solid = square < (radius - HALF_DIAGONAL - _SLACK).clamp_min(0).square()
    near = square <= (radius + HALF_DIAGONAL + _SLACK).square() + gap
    coverage = widths.new_ones(PIXELS, len(radius) + 1)
    coverage[:, :-1] = solid
    crossed = near.logical_xor_(solid).t().reshape(-1).nonzero().squeeze(1)
    outline = _outline(segments, widths, plan, crossed, t)
    place = outline.pixel * coverage.shape[1] + outline.pair
    coverage.view(-1).scatter_(0, place, outline.coverage)
    return coverage, outline


def _search(segments: Segments, plan: Plan) -> tuple[Tensor, Tensor]:
    """Squared distance from each pixel to the nearest sample of its segment, and that sample's t; (PIXELS, P).

    The minimum carries its own index in bits that the squared distance leaves free, which takes half the time
    of an argmin. float32 has the room for radii up to about 150.
    """
    count, device = len(plan.segment), plan.segment.device
    wide = bool((segments.radius > 128).any())
    fine = segments.fine.double() if wide else segments.fine
    centre = plan.centre.to(fine.dtype)
    key, least = fine.new_empty(PIXELS, count), fine.new_empty(count)
    index = torch.arange(SAMPLES, device=device, dtype=fine.dtype).view(-1, 1) / (_UNIT * _KEYS)
    steps = [i - (TILE - 1) / 2 for i in range(TILE)]
    twice = 2 * torch.tensor(steps, device=device, dtype=fine.dtype).view(-1, 1, 1)
    for begin in range(0, count, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        x = centre[0, part] - fine[0].index_select(1, plan.segment[part])
        y = centre[1, part] - fine[1].index_select(1, plan.segment[part])
        base = torch.addcmul(x * x, y, y)
        torch.amin(base, 0, out=least[part])
        base.sub_(least[part]).add_(index)
        # |centre + offset - sample|^2 without |offset|^2, four pixels at a time.
        right, values = twice * x, x.new_empty(TILE, *x.shape)
        for i, down in enumerate(steps):
            torch.add(base, y, alpha=2 * down, out=x)
            torch.add(x, right, out=values)
            torch.amin(values, 1, out=key[i * TILE : (i + 1) * TILE, part])
    key.mul_(_UNIT)
    square = key.floor()
    t = key.sub_(square).mul_(_KEYS / (SAMPLES - 1))
    offset = torch.tensor([[i * i + j * j] for i in steps for j in steps], device=device)
    return square.div_(_UNIT).add_(least).add_(offset.to(fine.dtype)), t


def _outline(segments: Segments, widths: Tensor, plan: Plan, crossed: Tensor, t: Tensor) -> Outline:
    pair, pixel = crossed >> 4, crossed & 15
    segment = plan.segment.index_select(0, pair)
    power = segments.power.index_select(1, segment)
    middle = (TILE - 1) / 2
    power[6] -= plan.centre[0].index_select(0, pair) + ((pixel & 3) - middle)
    power[7] -= plan.centre[1].index_select(0, pair) + ((pixel >> 2) - middle)
    start = t.view(-1).index_select(0, pixel * t.shape[1] + pair).to(widths.dtype)
    t, normal, distance = _nearest(power, start)
    radius = widths.index_select(0, segments.stroke).index_select(0, segment)
    thin = bool((segments.radius < HALF_DIAGONAL).any())
    coverage = covered_area(normal, distance, radius, thin)[0]
    bounds = torch.arange(len(segments.stroke) + 1, device=pair.device)
    lengths = torch.searchsorted(segment, bounds).diff()
    return Outline(pair, pixel, t, power, normal, distance, radius, coverage, lengths, thin)


def _nearest(power: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Guarded Newton steps from a sample to the nearest point: t, unit normal (2, n), distance (n,).

    power: relative to the pixel. A pixel centre exactly on the curve gets an arbitrary normal.
    """
    ax, ay, bx, by, cx, cy, dx, dy = power
    bx2, by2 = 2 * bx, 2 * by
    tiny = torch.finfo(t.dtype).tiny
    for _ in range(2 if t.dtype == torch.float32 else 8):
        rx = torch.addcmul(dx, torch.addcmul(cx, torch.addcmul(bx, ax, t), t), t)
        ry = torch.addcmul(dy, torch.addcmul(cy, torch.addcmul(by, ay, t), t), t)
        tx = torch.addcmul(cx, torch.addcmul(bx2, ax, t, value=3), t)
        ty = torch.addcmul(cy, torch.addcmul(by2, ay, t, value=3), t)
        slope = torch.addcmul(rx * tx, ry, ty)
        speed = torch.addcmul(tx * tx, ty, ty)
        bend = torch.addcmul(
            rx * torch.addcmul(bx2, ax, t, value=6), ry, torch.addcmul(by2, ay, t, value=6)
        )
        curve = bend.add_(speed)
        # Where the distance is not convex Newton would climb: take a step of gradient descent instead.
        step = slope.div_(torch.maximum(curve, speed.mul_(0.1)).clamp_min_(tiny))
        t = (t - step.clamp_(-1 / (SAMPLES - 1), 1 / (SAMPLES - 1))).clamp_(0, 1)
    rx = torch.addcmul(dx, torch.addcmul(cx, torch.addcmul(bx, ax, t), t), t).add_(1e-12)
    ry = torch.addcmul(dy, torch.addcmul(cy, torch.addcmul(by, ay, t), t), t)
    distance = torch.addcmul(rx * rx, ry, ry).sqrt_()
    return t, torch.stack((rx, ry)).div_(-distance), distance


def merge(coverage: Tensor, outline: Outline, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Coverage of the rows (PIXELS, R), the largest of their segments', from that of the pairs.

    Also returns, per pixel of the outline, its place in the flattened rows (n,), and 1 where its segment is the
    one that counts or 0 (n,): of segments that cover equally much, at a shared point, the first counts.
    """
    rows = coverage.index_select(1, plan.source)
    for repeat in range(1, int(plan.repeat.max()) + 1 if len(plan.repeat) else 1):
        pairs = (plan.repeat == repeat).nonzero().squeeze(1)
        slots = plan.slot.index_select(0, pairs)
        best, own = rows.index_select(1, slots), coverage.index_select(1, pairs)
        rows.index_copy_(1, slots, torch.maximum(best, own))
        coverage.index_copy_(1, pairs, own.sub_((own <= best).to(own.dtype) * 2))
    place = outline.pixel * rows.shape[1] + plan.slot.index_select(0, outline.pair)
    own = coverage.view(-1).index_select(0, outline.pixel * coverage.shape[1] + outline.pair)
    counts = own == rows.view(-1).index_select(0, place)
    return rows, place, counts.to(rows.dtype)


def cover_backward(
    outline: Outline, gradient: Tensor, segments: Segments, plan: Plan, strokes: int, compat: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (8, M) for the power coefficients and (N,) for the widths, from that for the coverage (n,).

    Exact for the coverage above, including how the half plane turns with the curve. `compat` follows diffvg's
    estimate instead: it integrates along the curve rather than along the outline, and leaves out the round
    joints between segments.
    """
    t, (nx, ny) = outline.t, outline.normal
    ax, ay, bx, by, cx, cy, _, _ = outline.power
    tx = torch.addcmul(cx, torch.addcmul(2 * bx, ax, t, value=3), t)
    ty = torch.addcmul(cy, torch.addcmul(2 * by, ay, t, value=3), t)
    speed = torch.addcmul(tx * tx, ty, ty)
    bend = nx * torch.addcmul(2 * bx, ax, t, value=6) + ny * torch.addcmul(2 * by, ay, t, value=6)
    # Zero where the outline has a cusp, because there the nearest point jumps: bounded.
    foot = torch.maximum(torch.addcmul(speed, outline.distance, bend, value=-1), 0.1 * speed)
    foot.clamp_min_(torch.finfo(t.dtype).tiny)
    inner = ((t > 0) & (t < 1)).to(t.dtype)

    _, by_distance, by_radius, by_turn = covered_area(
        outline.normal, outline.distance, outline.radius, outline.thin
    )
    if compat:
        segment = plan.segment.index_select(0, outline.pair)
        gradient = gradient * (inner * (speed / foot).clamp_max(2) + _is_cap(t, segments, segment))
        by_turn = torch.zeros_like(by_turn)
    push = gradient * by_distance
    turn = gradient * by_turn
    slide = turn * torch.where(inner > 0, bend / foot, -1 / outline.distance.clamp_min(1e-2))
    along = turn * inner * torch.addcmul(ny * tx, nx, ty, value=-1) / foot
    # Gradients for the nearest point B(t) and for the tangent B'(t), then for the coefficients of t^3, ..., 1.
    point = torch.stack((-push * nx - slide * ny, slide * nx - push * ny))
    tangent = along * outline.normal
    linear = torch.addcmul(tangent, point, t)
    quadratic = (linear + tangent).mul_(t)
    cubic = torch.addcmul(quadratic, tangent, t).mul_(t)
    columns = torch.cat((cubic, quadratic, linear, point, (gradient * by_radius)[None]))
    sums = run_sums(columns, outline.lengths)
    widths = sums.new_zeros(strokes).index_add_(0, segments.stroke, sums[8])
    return sums[:8], widths


def _is_cap(t: Tensor, segments: Segments, segment: Tensor) -> Tensor:
    starts = (t <= 0) & segments.starts.index_select(0, segment)
    ends = (t >= 1) & segments.ends.index_select(0, segment)
    return (starts | ends).to(t.dtype)
