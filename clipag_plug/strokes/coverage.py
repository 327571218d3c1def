"""From curves to coverage: the nearest point of a curve to each pixel, and the derivative of that.

Near a pixel a stroke is taken as the half plane behind the tangent to its outline. Only pixels that an outline
can cross get any geometry. The 16 pixels of a tile are numbered by y, then x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import SAMPLES, SEARCH_GRID, TILE, Plan, Segments, run_sums

PIXELS = TILE * TILE
HALF_DIAGONAL = 0.7072  # beyond this distance an edge misses the pixel
_MIDDLE = (TILE - 1) / 2
_CHUNK = 2048  # edge pairs searched at a time: the work stays in the cache
_UNIT = SEARCH_GRID**2  # squared distances on the search grid are multiples of 1 / _UNIT
_KEYS = 16  # finer than that a key holds the index of its sample
_SLACK = 0.1  # px, more than the search grid moves a sample by


@dataclass(frozen=True)
class Outline:
    """The n pixels that an outline can cross, sorted by segment."""

    pair: Tensor  # (n,)
    pixel: Tensor  # (n,) number within the tile
    segment: Tensor  # (n,)
    t: Tensor  # (n,) parameter of the nearest point
    power: Tensor  # (8, n) power coefficients of the segment, relative to the pixel
    normal: Tensor  # (2, n) unit vector from the curve to the pixel
    distance: Tensor  # (n,)
    radius: Tensor  # (n,)


def half_plane(normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area of {x in the unit square around 0 : normal . x < offset}, and its two derivatives.

    normal (2, n), of unit length; offset (n,). Returns area, d area / d offset (the length of the edge within the
    pixel), and d area / d angle of the normal; each (n,).
    """
    x, y = normal.abs()
    long = torch.maximum(x, y)
    short = torch.minimum(x, y).clamp_min_(1e-12)
    reach = offset.abs()
    # What lies beyond the edge is a triangle that grows up to the first corner, then a trapezoid.
    cut = torch.add(long, short).mul_(0.5).sub_(reach).clamp_min_(0)
    corner = torch.minimum(cut, short)
    share = corner / short
    beyond = torch.addcmul(cut - corner, corner, share, value=0.5) / long
    edge = share / long
    # The edge turns about the foot of the normal: what counts is how far its middle lies from there.
    mirror = torch.sign(normal[0] * normal[1] * (x - y) * offset)
    lever = ((1 - share) * 0.5 - short * reach) / long
    return torch.copysign(0.5 - beyond, offset).add_(0.5), edge, -edge * lever * mirror


def covered_area(outline: Outline) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area of each pixel within its radius of a straight line at its distance, and the derivatives of that by
    distance, radius and the angle of the normal; each (n,)."""
    area, edge, turn = half_plane(outline.normal, outline.radius - outline.distance)
    if not bool((outline.radius < HALF_DIAGONAL).any()):
        return area, -edge, edge, turn
    # Both edges of a thin stroke can cross one pixel.
    other, far_edge, far_turn = half_plane(outline.normal, outline.radius + outline.distance)
    return area + other - 1, far_edge - edge, far_edge + edge, turn + far_turn


def cover(segments: Segments, widths: Tensor, plan: Plan) -> tuple[Tensor, Outline]:
    """Coverage (PIXELS, P + 1) in [0, 1] of the edge pairs; the last column is 1, for rows inside a stroke."""
    square, t = _search(segments, plan)
    radius, gap = segments.radius[plan.segment], segments.fine_gap[plan.segment]
    solid = square < (radius - HALF_DIAGONAL - _SLACK).clamp_min(0).square()
    near = square <= (radius + HALF_DIAGONAL + _SLACK).square() + gap
    crossed = near.logical_xor_(solid).t().reshape(-1).nonzero().squeeze(1)
    pair, pixel = crossed >> 4, crossed & 15
    segment = plan.segment.index_select(0, pair)
    power = segments.power.index_select(1, segment)
    power[6] -= plan.centre[0].index_select(0, pair) + ((pixel & 3) - _MIDDLE)
    power[7] -= plan.centre[1].index_select(0, pair) + ((pixel >> 2) - _MIDDLE)
    start = t.view(-1).index_select(0, pixel * t.shape[1] + pair).to(widths.dtype)
    nearest = _nearest(power, start)
    wide = widths[segments.stroke].index_select(0, segment)
    outline = Outline(pair, pixel, segment, nearest[0], power, *nearest[1:], wide)
    coverage = widths.new_ones(PIXELS, len(radius) + 1)
    coverage[:, :-1] = solid
    place = pixel * coverage.shape[1] + pair
    coverage.view(-1).scatter_(0, place, covered_area(outline)[0])
    return coverage, outline


def _search(segments: Segments, plan: Plan) -> tuple[Tensor, Tensor]:
    """Squared distance from each pixel to the nearest sample of its segment, and that sample's t; (PIXELS, P).

    The minimum carries its own index in bits that the squared distance leaves free, which takes half the time
    of an argmin. float32 has the room for radii up to about 150.
    """
    fine = segments.fine.double() if bool((segments.radius > 128).any()) else segments.fine
    count = len(plan.segment)
    centre = plan.centre.to(fine.dtype)
    key, least = fine.new_empty(PIXELS, count), fine.new_empty(count)
    index = torch.arange(SAMPLES).to(fine).view(-1, 1) / (_UNIT * _KEYS)
    steps = [i - _MIDDLE for i in range(TILE)]
    twice = 2 * fine.new_tensor(steps).view(-1, 1, 1)
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
    square = key.mul_(_UNIT).floor()
    t = key.sub_(square).mul_(_KEYS / (SAMPLES - 1))
    offset = fine.new_tensor([[i * i + j * j] for i in steps for j in steps])
    return square.div_(_UNIT).add_(least).add_(offset), t


def _nearest(power: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Guarded Newton steps from a sample to the nearest point: t, unit normal (2, n), distance (n,).

    A pixel centre exactly on the curve gets an arbitrary normal.
    """
    for _ in range(2 if t.dtype == torch.float32 else 8):
        point, (tangent, second) = _point(power, t), _derivatives(power, t)
        slope, speed = _dot(point, tangent), _dot(tangent, tangent)
        curve = _dot(point, second).add_(speed)
        # Where the distance is not convex Newton would climb: take a step of gradient descent instead.
        curve = torch.maximum(curve, speed.mul_(0.1)).clamp_min_(torch.finfo(t.dtype).tiny)
        step = slope.div_(curve).clamp_(-1 / (SAMPLES - 1), 1 / (SAMPLES - 1))
        t = (t - step).clamp_(0, 1)
    point = _point(power, t)
    point[0] += 1e-12
    distance = _dot(point, point).sqrt_()
    return t, point.div_(-distance), distance


def _point(power: Tensor, t: Tensor) -> Tensor:
    """Points (2, n) of n curves, each at its t."""
    a, b, c, d = power.view(4, 2, -1)
    return torch.addcmul(d, torch.addcmul(c, torch.addcmul(b, a, t), t), t)


def _derivatives(power: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Their first and second derivatives by t, (2, n) each."""
    a, b, c, _ = power.view(4, 2, -1)
    b = 2 * b
    tangent = torch.addcmul(c, torch.addcmul(b, a, t, value=3), t)
    return tangent, torch.addcmul(b, a, t, value=6)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return torch.addcmul(left[0] * right[0], left[1], right[1])


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
    outline: Outline, gradient: Tensor, segments: Segments, strokes: int, compat: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (8, M) for the power coefficients and (N,) for the widths, from that for the coverage (n,).

    Exact for the coverage above, including how the half plane turns with the curve. `compat` follows diffvg's
    estimate instead: it integrates along the curve rather than along the outline, and leaves out the round
    joints between segments.
    """
    t, (nx, ny) = outline.t, outline.normal
    motion, second = _derivatives(outline.power, t)
    speed, bend = _dot(motion, motion), (outline.normal * second).sum(0)
    # Zero where the outline has a cusp, because there the nearest point jumps: bounded.
    foot = torch.maximum(torch.addcmul(speed, outline.distance, bend, value=-1), 0.1 * speed)
    foot.clamp_min_(torch.finfo(t.dtype).tiny)
    inner = ((t > 0) & (t < 1)).to(t.dtype)

    _, by_distance, by_radius, by_turn = covered_area(outline)
    if compat:
        cap = (t <= 0) & segments.starts[outline.segment]
        cap |= (t >= 1) & segments.ends[outline.segment]
        gradient = gradient * (inner * (speed / foot).clamp_max(2) + cap.to(t.dtype))
        by_turn = torch.zeros_like(by_turn)
    push, turn = gradient * by_distance, gradient * by_turn
    slide = turn * torch.where(inner > 0, bend / foot, -1 / outline.distance.clamp_min(1e-2))
    along = turn * inner * torch.addcmul(ny * motion[0], nx, motion[1], value=-1) / foot
    # Gradients for the nearest point B(t) and for the tangent B'(t), then for the coefficients of t^3, ..., 1.
    point = torch.stack((-push * nx - slide * ny, slide * nx - push * ny))
    tangent = along * outline.normal
    linear = torch.addcmul(tangent, point, t)
    quadratic = (linear + tangent).mul_(t)
    cubic = torch.addcmul(quadratic, tangent, t).mul_(t)
    columns = torch.cat((cubic, quadratic, linear, point, (gradient * by_radius)[None]))
    sums = run_sums(columns, torch.bincount(outline.segment, minlength=len(segments.stroke)))
    return sums[:8], sums.new_zeros(strokes).index_add_(0, segments.stroke, sums[8])
