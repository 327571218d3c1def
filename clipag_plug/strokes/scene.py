"""Strokes as tensors: what a scene of open cubic paths looks like to the renderer.

A stroke of k cubic segments has 3k + 1 points; neighbouring segments share one. All strokes of a scene are
concatenated, and everything below works on the M segments of all strokes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES = 16  # per segment, for the nearest-point search: with 8 curves that turn back lose 1 dB or more
SEARCH_GRID = 16  # samples lie on multiples of 1 / 16 px, so that sums of the search are exact
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
    """Geometry of the M segments, coordinates in pixels."""

    power: Tensor  # (8, M): x and y of the coefficients of t^3, t^2, t, 1
    fine: Tensor  # (2, SAMPLES, M) float32 points on the curves, for searching
    coarse: Tensor  # (2, COARSE, M) float32, for culling
    fine_gap: Tensor  # (M,) square of half the largest distance between neighbouring samples
    coarse_gap: Tensor  # (M,)
    sag: Tensor  # (M,) how far the curve can leave the chords of `coarse`
    radius: Tensor  # (M,) float32


def segments(points: Tensor, widths: Tensor, topology: Topology) -> Segments:
    """The segments of concatenated points (S, 2) with one width a stroke (N,)."""
    matrix = torch.tensor(TO_POWER, dtype=points.dtype, device=points.device)
    control = points.index_select(0, topology.control.flatten()).view(-1, 4, 2)
    power = torch.einsum("ij,mjc->icm", matrix, control).reshape(8, -1)
    searchable = power.to(torch.float32).view(4, 2, -1)
    second = 6 * searchable[0].abs() + 2 * searchable[1].abs()
    fine, fine_gap = _sample(searchable, SAMPLES)
    coarse, coarse_gap = _sample(searchable, COARSE)
    return Segments(
        power=power,
        fine=fine.mul_(SEARCH_GRID).round_().div_(SEARCH_GRID),
        coarse=coarse,
        fine_gap=fine_gap,
        coarse_gap=coarse_gap,
        sag=second.norm(dim=0) / (8 * (COARSE - 1) ** 2),
        radius=widths.to(torch.float32).index_select(0, topology.stroke),
    )


def _sample(power: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points at evenly spaced t, (2, count, M), and their largest half gap squared, (M,)."""
    t = torch.linspace(0, 1, count, device=power.device).view(count, 1, 1)
    a, b, c, d = power
    curve = ((a * t + b) * t + c) * t + d
    gaps = (curve[1:] - curve[:-1]).square().sum(1)
    return curve.transpose(0, 1).contiguous(), gaps.amax(0) / 4


def scatter_to_points(power_gradient: Tensor, topology: Topology) -> Tensor:
    """Gradient for the concatenated points (S, 2) from that for the power coefficients (8, M)."""
    matrix = torch.tensor(TO_POWER, dtype=power_gradient.dtype, device=power_gradient.device)
    control = torch.einsum("ij,icm->mjc", matrix, power_gradient.view(4, 2, -1))
    out = control.new_zeros(topology.points, 2)
    return out.index_add_(0, topology.control.flatten(), control.reshape(-1, 2))
