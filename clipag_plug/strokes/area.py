"""How much of a unit pixel a straight-edged stroke covers, exactly, and the derivatives of that."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_DIAGONAL = 0.7072  # beyond this distance an edge misses the pixel


def half_plane(normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area of {x in the unit square around 0 : normal . x < offset}, and its two derivatives.

    normal (2, n), of unit length; offset (n,). Returns area, d area / d offset (the length of the edge within the
    pixel), and d area / d angle of the normal; each (n,).
    """
    x, y = normal[0].abs(), normal[1].abs()
    long = torch.maximum(x, y)
    short = torch.minimum(x, y).clamp_min_(1e-12)
    reach = offset.abs()
    # What lies beyond the edge is a triangle that grows up to the first corner, then a trapezoid.
    cut = torch.add(long, short).mul_(0.5).sub_(reach).clamp_min_(0)
    corner = torch.minimum(cut, short)
    share = corner / short
    beyond = torch.addcmul(cut - corner, corner, share, value=0.5) / long
    area = torch.copysign(0.5 - beyond, offset).add_(0.5)
    edge = share / long
    # The edge turns about the foot of the normal: what counts is how far its middle lies from there.
    mirror = torch.sign(normal[0] * normal[1] * (x - y) * offset)
    lever = ((1 - share) * 0.5 - short * reach) / long
    return area, edge, -edge * lever * mirror


def covered_area(
    normal: Tensor, distance: Tensor, radius: Tensor, thin: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area of a pixel within `radius` of a straight line whose normal through the pixel has length `distance`.

    thin: whether any radius is below HALF_DIAGONAL, so that both edges can cross one pixel.
    Returns the area and its derivatives by distance, radius and the angle of the normal; each (n,).
    """
    area, edge, turn = half_plane(normal, radius - distance)
    if not thin:
        return area, -edge, edge, turn
    opposite, opposite_edge, opposite_turn = half_plane(normal, radius + distance)
    return (
        area + opposite - 1,
        opposite_edge - edge,
        opposite_edge + edge,
        turn + opposite_turn,
    )
