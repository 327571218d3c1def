"""A scene of open cubic strokes as tensors: its segments, the 4x4 tiles of pixels they touch, the order of blending.

A stroke of k cubic segments has 3k + 1 points; neighbouring segments share one. Everything works on the M segments
of all strokes at once. A *pair* is (segment, tile); a *row* is (stroke, tile), the unit of blending. Rows live in
*slots*, sorted by the row's rank within its tile, and within one rank the tiles with most rows first. Then "the
k-th stroke of every tile that has one" is a contiguous slice, over a prefix of the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 4
SAMPLES = 16  # a segment, for the nearest-point search: with 8 curves that turn back lose 1 dB
SEARCH_GRID = 16  # samples lie on multiples of 1 / 16 px, so that sums of the search are exact
LONGEST_GAP = 2.0  # px between neighbouring samples of one piece
MOST_PIECES = 256
COARSE = 8  # samples a segment, for deciding which tiles it can touch
# Rows: coefficients of t^3, t^2, t, 1; columns: the four control points.
TO_POWER = ((-1.0, 3, -3, 1), (3.0, -6, 3, 0), (-3.0, 3, 0, 0), (1.0, 0, 0, 0))

_CHUNK = 8192
REACH = TILE / 2 * 2**0.5 + 1e-3  # from the centre of a tile to its corners


@dataclass(frozen=True)
class Segments:
    """Geometry of the M segments, or of the pieces that long ones are cut into; coordinates in pixels."""

    power: Tensor  # (8, M): x and y of the coefficients of t^3, t^2, t, 1
    fine: Tensor  # (2, SAMPLES, M) float32 points on the curves, for searching
    coarse: Tensor  # (2, COARSE, M) float32, for culling
    fine_gap: Tensor  # (M,) square of half the largest distance between neighbouring samples
    coarse_gap: Tensor  # (M,)
    sag: Tensor  # (M,) how far the curve can leave the chords of `coarse`
    radius: Tensor  # (M,) float32
    stroke: Tensor  # (M,)
    starts: Tensor  # (M,) bool: begins its stroke
    ends: Tensor  # (M,) bool: ends its stroke
    control: Tensor  # (S, 4) which points of the scene control each uncut segment
    parent: Tensor | None  # (M,) which segment each piece is cut from, ascending; None: no cuts
    cut: Tensor | None  # (4, 4, M) power coefficients of a piece from those of its parent

    def to_points(self, gradient: Tensor, points: int) -> Tensor:
        """Gradient for the concatenated points (points, 2) from that for the power coefficients (8, M)."""
        power = gradient.view(4, 2, -1)
        if self.cut is not None and self.parent is not None:
            pieces = torch.einsum("ijm,icm->jcm", self.cut, power).reshape(8, -1)
            power = run_sums(pieces, torch.bincount(self.parent)).view(4, 2, -1)
        matrix = torch.tensor(TO_POWER, dtype=power.dtype, device=power.device)
        control = torch.einsum("ij,icm->mjc", matrix, power).reshape(-1, 2)
        return control.new_zeros(points, 2).index_add_(0, self.control.flatten(), control)


def segments(points: Tensor, widths: Tensor, counts: Sequence[int]) -> Segments:
    """The segments of concatenated points (S, 2) with one width a stroke (N,); counts: points of each stroke."""
    device = points.device
    each = torch.tensor(list(counts), device=device)
    number = (each - 1) // 3
    stroke = torch.repeat_interleave(torch.arange(len(number), device=device), number)
    within = torch.arange(len(stroke), device=device) - (number.cumsum(0) - number)[stroke]
    starts, ends = within == 0, within == number[stroke] - 1
    first = (each.cumsum(0) - each)[stroke] + 3 * within
    control = first[:, None] + torch.arange(4, device=device)
    matrix = torch.tensor(TO_POWER, dtype=points.dtype, device=device)
    corners = points.index_select(0, control.flatten()).view(-1, 4, 2)
    power = torch.einsum("ij,mjc->icm", matrix, corners)

    fine, fine_gap = _sample(power.float(), SAMPLES)
    parent = cut = None
    # Pieces are so short that the search cannot take a wrong turn of the curve for the nearest one.
    pieces = (2 * fine_gap.sqrt() / LONGEST_GAP).ceil().clamp(1, MOST_PIECES).long()
    if bool((pieces > 1).any()):
        parent = torch.repeat_interleave(torch.arange(len(pieces), device=device), pieces)
        place = torch.arange(len(parent), device=device) - (pieces.cumsum(0) - pieces)[parent]
        share = (1 / pieces.to(power.dtype))[parent]
        cut = _subdivision(place * share, share)
        power = torch.einsum("ijm,jcm->icm", cut, power[:, :, parent])
        stroke, starts, ends = stroke[parent], starts[parent], ends[parent]
        starts = starts & (place == 0)
        ends = ends & (place + 1 == pieces[parent])
        fine, fine_gap = _sample(power.float(), SAMPLES)
    coarse, coarse_gap = _sample(power.float(), COARSE)
    second = 6 * power[0].abs() + 2 * power[1].abs()
    return Segments(
        power=power.reshape(8, -1),
        fine=fine.mul_(SEARCH_GRID).round_().div_(SEARCH_GRID),
        coarse=coarse,
        fine_gap=fine_gap,
        coarse_gap=coarse_gap,
        sag=second.float().norm(dim=0) / (8 * (COARSE - 1) ** 2),
        radius=widths.float()[stroke],
        stroke=stroke,
        starts=starts,
        ends=ends,
        control=control,
        parent=parent,
        cut=cut,
    )


def _subdivision(b: Tensor, s: Tensor) -> Tensor:
    """(4, 4, M): power coefficients of the piece from t = b to b + s from those of the whole."""
    none, one = torch.zeros_like(b), torch.ones_like(b)
    rows = [
        (s**3, none, none, none),
        (3 * b * s**2, s**2, none, none),
        (3 * b**2 * s, 2 * b * s, s, none),
        (b**3, b**2, b, one),
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _sample(power: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points at evenly spaced t, (2, count, M), and their largest half gap squared, (M,)."""
    t = torch.linspace(0, 1, count, device=power.device).view(count, 1, 1)
    a, b, c, d = power
    curve = ((a * t + b) * t + c) * t + d
    gaps = (curve[1:] - curve[:-1]).square().sum(1)
    return curve.transpose(0, 1).contiguous(), gaps.amax(0) / 4


def run_sums(columns: Tensor, lengths: Tensor) -> Tensor:
    """(k, n) summed over consecutive runs of the given lengths: (k, M), in an order that never varies."""
    lengths = lengths.expand(len(columns), -1).contiguous()
    return torch.segment_reduce(columns, "sum", lengths=lengths, axis=1, unsafe=True)


@dataclass(frozen=True)
class Plan:
    """Everything discrete about one rendering: P edge pairs, R rows, T tiles that anything touches."""

    segment: Tensor  # (P,) segment of each edge pair, ascending
    centre: Tensor  # (2, P) centre of its tile, float32 pixels
    slot: Tensor  # (P,) slot of its row
    repeat: Tensor  # (P,) how many earlier pairs have the same row
    source: Tensor  # (R,) pair that first fills each slot; P for rows wholly inside a stroke
    stroke: Tensor  # (R,) stroke of each slot
    by_stroke: Tensor  # (R,) slots in the order of their strokes
    rows_of: Tensor  # (N,) number of rows of each stroke
    tile: Tensor  # (T,) index of each tile, most rows first
    counts: list[int]  # number of slots of each rank


def plan(segments: Segments, strokes: int, width: int, height: int) -> Plan:
    """The tiles of a width x height canvas that the strokes touch."""
    across, down = -(-width // TILE), -(-height // TILE)
    segment, x, y, inside = _touching(segments, across, down)
    stroke = segments.stroke[segment]
    key, order = torch.sort((y * across + x) * strokes + stroke, stable=True)
    heads, row_sorted, nth = _runs(key)
    row, repeat = _unsort(row_sorted, order), _unsort(nth, order)
    row_tile = torch.div(key[heads], strokes, rounding_mode="floor")
    slot, tiles, counts = _slots(row_tile)
    border = torch.ones_like(heads, dtype=torch.bool).index_fill_(0, row[inside], False)

    edge = border[row].nonzero().squeeze(1)
    edge_slot, edge_repeat = slot[row[edge]], repeat[edge]
    source = torch.full_like(slot, len(edge))
    first = (edge_repeat == 0).nonzero().squeeze(1)
    source[edge_slot[first]] = first
    # Pairs are sorted by segment and so by stroke: their first occurrences list the rows stroke by stroke.
    leading = (repeat == 0).nonzero().squeeze(1)
    by_stroke, leading_stroke = slot[row[leading]], stroke[leading]
    return Plan(
        segment=segment[edge],
        centre=torch.stack((x, y))[:, edge].float() * TILE + TILE / 2,
        slot=edge_slot,
        repeat=edge_repeat,
        source=source,
        stroke=_unsort(leading_stroke, by_stroke),
        by_stroke=by_stroke,
        rows_of=torch.bincount(leading_stroke, minlength=strokes),
        tile=tiles,
        counts=counts,
    )


def _touching(segments: Segments, across: int, down: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segment, x and y of the tile, and whether the stroke covers it all, of the pairs that may be covered."""
    margin = segments.radius + segments.sag + 0.75
    last = torch.tensor((across, down), device=margin.device).view(2, 1)
    low = ((segments.coarse.amin(1) - margin) / TILE).floor().clamp_min(0).minimum(last).long()
    high = ((segments.coarse.amax(1) + margin) / TILE).floor().clamp_min(-1)
    size = (high.minimum(last - 1).long() - low + 1).clamp_min(0)
    count = size[0] * size[1] * (segments.radius > 0)
    segment = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    local = torch.arange(len(segment), device=count.device) - (count.cumsum(0) - count)[segment]
    columns = size[0][segment]
    row = torch.div(local, columns, rounding_mode="floor")
    x, y = low[0][segment] + local - row * columns, low[1][segment] + row

    near = margin.new_empty(len(segment))  # squared distance from a tile's centre to a sample
    for begin in range(0, len(segment), _CHUNK):  # in pieces that stay in the cache
        part = slice(begin, begin + _CHUNK)
        right, below = segments.coarse[:, :, segment[part]]
        right -= x[part] * TILE + TILE // 2
        below -= y[part] * TILE + TILE // 2
        torch.amin(torch.addcmul(right.square_(), below, below), 0, out=near[part])
    # A foot between two samples is nearer than both, but by Pythagoras not by much.
    far = (segments.radius + segments.sag + REACH).square() + segments.coarse_gap
    kept = (near <= far[segment]).nonzero().squeeze(1)
    segment = segment[kept]
    inside = near[kept] < (segments.radius - REACH).clamp_min(0).square()[segment]
    return segment, x[kept], y[kept], inside


def _slots(row_tile: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Slot of each row (rows sorted by tile, then stroke), the tiles by depth, the slots of each rank."""
    heads, place, rank = _runs(row_tile)
    depth = torch.bincount(place, minlength=len(heads))
    order = torch.sort(depth, descending=True, stable=True).indices
    position = _unsort(torch.arange(len(order), device=order.device), order)
    counts = torch.bincount(rank)
    slot = (counts.cumsum(0) - counts)[rank] + position[place]
    return slot, row_tile[heads][order], counts.tolist()


def _runs(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sorted list: where each run of equal values begins, the run of each value, its place within the run."""
    opens = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=opens[1:])
    heads, run = opens.nonzero().squeeze(1), opens.cumsum(0) - 1
    return heads, run, torch.arange(len(values), device=values.device) - heads[run]


def _unsort(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).scatter_(0, order, values)
