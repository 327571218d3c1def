"""Which stroke touches which 4x4 tile of pixels, and the order in which a tile's strokes are blended.

A *pair* is (segment, tile); a *row* is (stroke, tile), the unit of blending. Rows live in *slots*: slots are
sorted by the row's rank within its tile, and within one rank the tiles with most rows come first. Then
"the k-th stroke of every tile that has one" is a contiguous slice, over a prefix of the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import Segments

TILE = 4
_CHUNK = 8192
REACH = TILE / 2 * 2**0.5 + 1e-3  # from the centre of a tile to its corners


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


@dataclass(frozen=True)
class _Pairs:
    segment: Tensor
    x: Tensor
    y: Tensor
    inside: Tensor


def plan(segments: Segments, strokes: int, width: int, height: int) -> Plan:
    """The tiles of a width x height canvas that the strokes touch."""
    grid = (-(-width // TILE), -(-height // TILE))
    pairs = _touching(segments, grid)
    stroke = segments.stroke.index_select(0, pairs.segment)
    tile = pairs.y * grid[0] + pairs.x
    key, order = torch.sort(tile * strokes + stroke, stable=True)
    opens = _changes(key)  # first pair of each row
    heads = opens.nonzero().squeeze(1)
    row_sorted = opens.cumsum(0) - 1
    row = _unsort(row_sorted, order)
    repeat = _unsort(
        torch.arange(len(key), device=key.device) - heads.index_select(0, row_sorted), order
    )

    key = key.index_select(0, heads)
    row_tile = torch.div(key, strokes, rounding_mode="floor")
    slot, tiles, counts = _slots(row_tile)
    border = torch.ones(len(heads), dtype=torch.bool, device=key.device)
    border.index_fill_(0, row.masked_select(pairs.inside), False)

    edge = border.index_select(0, row).nonzero().squeeze(1)
    edge_slot, edge_repeat = (
        slot.index_select(0, row.index_select(0, edge)),
        repeat.index_select(0, edge),
    )
    source = torch.full_like(slot, len(edge))
    first = (edge_repeat == 0).nonzero().squeeze(1)
    source.scatter_(0, edge_slot.index_select(0, first), first)
    # Pairs are sorted by segment and so by stroke: their first occurrences list the rows stroke by stroke.
    leading = (repeat == 0).nonzero().squeeze(1)
    by_stroke = slot.index_select(0, row.index_select(0, leading))
    leading_stroke = stroke.index_select(0, leading)
    centre = (
        torch.stack((pairs.x, pairs.y)).index_select(1, edge).to(torch.float32) * TILE + TILE / 2
    )
    return Plan(
        segment=pairs.segment.index_select(0, edge),
        centre=centre,
        slot=edge_slot,
        repeat=edge_repeat,
        source=source,
        stroke=_unsort(leading_stroke, by_stroke),
        by_stroke=by_stroke,
        rows_of=torch.bincount(leading_stroke, minlength=strokes),
        tile=tiles,
        counts=counts,
    )


def _touching(segments: Segments, grid: tuple[int, int]) -> _Pairs:
    """Pairs from the bounding boxes of the segments, without those that are too far to be covered."""
    device = segments.power.device
    margin = segments.radius + segments.sag + 0.75
    last = torch.tensor(grid, device=device).view(2, 1)
    low = ((segments.coarse.amin(1) - margin) / TILE).floor().clamp_min(0).minimum(last).long()
    high = (
        ((segments.coarse.amax(1) + margin) / TILE).floor().clamp_min(-1).minimum(last - 1).long()
    )
    size = (high - low + 1).clamp_min(0)
    count = size[0] * size[1] * (segments.radius > 0)
    segment = torch.repeat_interleave(torch.arange(len(count), device=device), count)
    local = torch.arange(len(segment), device=device) - (count.cumsum(0) - count).index_select(
        0, segment
    )
    columns = size[0].index_select(0, segment)
    down = torch.div(local, columns, rounding_mode="floor")
    x = low[0].index_select(0, segment) + local - down * columns
    y = low[1].index_select(0, segment) + down

    near = _square_distance(segments, segment, x, y)
    # A foot between two samples is nearer than both, but by Pythagoras not by much.
    far = (segments.radius + segments.sag + REACH).square() + segments.coarse_gap
    full = (segments.radius - REACH).clamp_min(0).square()
    kept = (near <= far.index_select(0, segment)).nonzero().squeeze(1)
    segment, near = segment.index_select(0, kept), near.index_select(0, kept)
    inside = near < full.index_select(0, segment)
    return _Pairs(segment, x.index_select(0, kept), y.index_select(0, kept), inside)


def _square_distance(segments: Segments, segment: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """From the centres of tiles to the nearest coarse sample; in pieces that stay in the cache."""
    out = segments.radius.new_empty(len(segment))
    for begin in range(0, len(segment), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        right = segments.coarse[0].index_select(1, segment[part])
        down = segments.coarse[1].index_select(1, segment[part])
        right -= x[part] * TILE + TILE // 2
        down -= y[part] * TILE + TILE // 2
        torch.amin(torch.addcmul(right.square_(), down, down), 0, out=out[part])
    return out


def _slots(row_tile: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Slot of each row (rows sorted by tile, then stroke), the tiles by depth, the slots of each rank."""
    opens = _changes(row_tile)
    heads = opens.nonzero().squeeze(1)
    place = opens.cumsum(0) - 1
    rank = torch.arange(len(row_tile), device=row_tile.device) - heads.index_select(0, place)
    depth = torch.bincount(place, minlength=len(heads))
    order = torch.sort(depth, descending=True, stable=True).indices
    position = _unsort(torch.arange(len(order), device=order.device), order)
    counts = torch.bincount(rank)
    base = counts.cumsum(0) - counts
    slot = base.index_select(0, rank) + position.index_select(0, place)
    return slot, row_tile.index_select(0, heads).index_select(0, order), counts.tolist()


def _changes(values: Tensor) -> Tensor:
    """True where a sorted list begins or takes a new value."""
    out = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=out[1:])
    return out


def _unsort(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).scatter_(0, order, values)
