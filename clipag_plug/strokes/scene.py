"""Strokes as tensors: what a scene of open cubic paths looks like to the renderer.

A stroke of k cubic segments has 3k + 1 points; neighbouring segments share one. All strokes of a scene are
concatenated, and everything below works on the M segments of all strokes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES = (
    16  # per segment, for the nearest-point search: with 8 curves that turn back lose 1 dB or more
)
SEARCH_GRID = 16  # samples lie on multiples of 1 / 16 px, so that sums of the search are exact
LONGEST_GAP = 2.0  # px between neighbouring samples of one piece
MOST_PIECES = 256
COARSE = 8  # per segment, for deciding which tiles a segment can touch
# Rows: coefficients of t^3, t^2, t, 1; columns: the four control points.
TO_POWER = (
    (-1.0, 3.0, -3.0, 1.0),
    (3.0, -6.0, 3.0, 0.0),
    (-3.0, 3.0, 0.0, 0.0),
    (1.0, 0.0, 0.0, 0.0),
)


@dataclass(frozen=True)
class Topology:
    """Which points and which stroke each of the M segments belongs to."""

    first_point: Tensor  # (M,) index into the concatenated points
    stroke: Tensor  # (M,)
    starts: Tensor  # (M,) bool: the segment begins its stroke
    ends: Tensor  # (M,) bool: the segment ends its stroke
    strokes: int
    points: int

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Topology:
        """counts: points of each stroke; ValueError unless each is 4, 7, 10, ..."""
        wrong = [n for n in counts if n < 4 or n % 3 != 1]
        if wrong:
            raise ValueError(
                f"a stroke has {wrong[0]} points; an open path of k cubic segments has 3 * k + 1 "
                "(4, 7, 10, ...): convert lines and quadratics to cubics first"
            )
        points = torch.tensor(list(counts), dtype=torch.int64, device=device)
        segments = (points - 1) // 3
        stroke = torch.repeat_interleave(torch.arange(len(counts), device=device), segments)
        last = segments.cumsum(0)
        within = torch.arange(len(stroke), device=device) - (last - segments)[stroke]
        first_point = (points.cumsum(0) - points)[stroke] + 3 * within
        return cls(
            first_point,
            stroke,
            within == 0,
            within == segments[stroke] - 1,
            len(counts),
            sum(counts),
        )

    @property
    def control(self) -> Tensor:
        """(M, 4) indices of the control points of each segment."""
        return self.first_point[:, None] + torch.arange(4, device=self.first_point.device)


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
    cuts: Cuts | None  # None where no segment was cut


@dataclass(frozen=True)
class Cuts:
    """Pieces of segments: piece m is `parent` from t = `begin` to `begin` + `share`."""

    parent: Tensor  # (M,) int64, ascending
    begin: Tensor  # (M,)
    share: Tensor  # (M,)

    def matrix(self) -> Tensor:
        """(4, 4, M): power coefficients of a piece from those of its parent."""
        b, s = self.begin, self.share
        none = torch.zeros_like(b)
        rows = (
            (s**3, none, none, none),
            (3 * b * s**2, s**2, none, none),
            (3 * b**2 * s, 2 * b * s, s, none),
            (b**3, b**2, b, torch.ones_like(b)),
        )
        return torch.stack([torch.stack(row) for row in rows])


def segments(points: Tensor, widths: Tensor, topology: Topology) -> Segments:
    """The segments of concatenated points (S, 2) with one width a stroke (N,)."""
    matrix = torch.tensor(TO_POWER, dtype=points.dtype, device=points.device)
    control = points.index_select(0, topology.control.flatten()).view(-1, 4, 2)
    power = torch.einsum("ij,mjc->icm", matrix, control)
    stroke, starts, ends = topology.stroke, topology.starts, topology.ends
    fine, fine_gap = _sample(power.float(), SAMPLES)
    cuts = _cut(fine_gap, power.dtype)
    if cuts is not None:
        power = torch.einsum("ijm,jcm->icm", cuts.matrix(), power.index_select(2, cuts.parent))
        stroke, starts, ends = (x.index_select(0, cuts.parent) for x in (stroke, starts, ends))
        starts = starts & (cuts.begin == 0)
        ends = ends & (cuts.begin + 1.5 * cuts.share > 1)
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
        radius=widths.float().index_select(0, stroke),
        stroke=stroke,
        starts=starts,
        ends=ends,
        cuts=cuts,
    )


def _cut(fine_gap: Tensor, dtype: torch.dtype) -> Cuts | None:
    """Pieces short enough that the search cannot take a wrong turn of the curve for the nearest one."""
    pieces = (2 * fine_gap.sqrt() / LONGEST_GAP).ceil().clamp(1, MOST_PIECES).long()
    if not bool((pieces > 1).any()):
        return None
    parent = torch.repeat_interleave(torch.arange(len(pieces), device=pieces.device), pieces)
    first = (pieces.cumsum(0) - pieces).index_select(0, parent)
    share = (1 / pieces.to(dtype)).index_select(0, parent)
    index = torch.arange(len(parent), device=parent.device) - first
    return Cuts(parent, index * share, share)


def _sample(power: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points at evenly spaced t, (2, count, M), and their largest half gap squared, (M,)."""
    t = torch.linspace(0, 1, count, device=power.device).view(count, 1, 1)
    a, b, c, d = power
    curve = ((a * t + b) * t + c) * t + d
    gaps = (curve[1:] - curve[:-1]).square().sum(1)
    return curve.transpose(0, 1).contiguous(), gaps.amax(0) / 4


def scatter_to_points(power_gradient: Tensor, cuts: Cuts | None, topology: Topology) -> Tensor:
    """Gradient for the concatenated points (S, 2) from that for the power coefficients (8, M)."""
    matrix = torch.tensor(TO_POWER, dtype=power_gradient.dtype, device=power_gradient.device)
    power = power_gradient.view(4, 2, -1)
    if cuts is not None:
        pieces = torch.einsum("ijm,icm->jcm", cuts.matrix(), power).reshape(8, -1)
        power = run_sums(pieces, torch.bincount(cuts.parent)).view(4, 2, -1)
    control = torch.einsum("ij,icm->mjc", matrix, power)
    out = control.new_zeros(topology.points, 2)
    return out.index_add_(0, topology.control.flatten(), control.reshape(-1, 2))


def run_sums(columns: Tensor, lengths: Tensor) -> Tensor:
    """(k, n) summed over consecutive runs of the given lengths: (k, M), in an order that never varies."""
    lengths = lengths.expand(len(columns), -1).contiguous()
    return torch.segment_reduce(columns, "sum", lengths=lengths, axis=1, unsafe=True)
