"""The differentiable renderer of open cubic Bezier strokes: arguments in, image out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .compositing import composite, composite_backward
from .geometry import PIXELS, cover, cover_backward, merge
from .scene import Topology, scatter_to_points, segments
from .tiles import TILE, plan

DTYPES = (torch.float32, torch.float64)


def render_strokes(
    points: Tensor | Sequence[Tensor],
    widths: Tensor,
    colors: Tensor,
    width: int,
    height: int,
    *,
    counts: Sequence[int] | None = None,
    compat: bool = False,
) -> Tensor:
    """An image (height, width, 4) of open cubic Bezier strokes, differentiable in everything that is a tensor.

    points: (N, 3k + 1, 2) for strokes of k segments each; or N tensors (3k + 1, 2); or all points of all strokes
        (S, 2) with `counts`, the number of points of each stroke. x and y in pixels, y down, the centre of the
        first pixel at (0.5, 0.5). Neighbouring segments of a stroke share a point.
    widths: (N,) in pixels, **half** of the visible width (diffvg's stroke_width). Ends and joints are round.
    colors: (N, 4) straight RGBA in [0, 1]. The first stroke lies at the back.
    compat: give the gradient for points and widths that diffvg estimates, which is biased for open strokes (it
        leaves out the round joints between segments, and that the outline is longer than the curve on the outer
        side of a bend), instead of the exact one. The image is the same.

    Returns straight RGBA on a transparent background, averaged over each pixel as diffvg does it: uncovered parts
    count as (0, 0, 0, 0), so RGB at an edge fades too. float32 or float64, on any device. ValueError for anything
    that does not fit the above, or that is not finite.
    """
    points, counts = _packed(points, counts)
    _check(points, widths, colors, counts, width, height)
    topology = Topology.of(counts, points.device)
    return _Strokes.apply(points, widths, colors, topology, width, height, compat)


class _Strokes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        widths: Tensor,
        colors: Tensor,
        topology: Topology,
        width: int,
        height: int,
        compat: bool,
    ) -> Tensor:
        pieces = segments(points, widths, topology)
        order = plan(pieces, len(widths), width, height)
        coverage, outline = cover(pieces, widths, order)
        rows, place, counts = merge(coverage, outline, order)
        pixels, layers = composite(rows, colors, order)
        ctx.save_for_backward(place, counts)
        ctx.scene = (topology, pieces, order, outline, layers, compat)
        return _to_image(pixels, order.tile, width, height)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        place, counts = ctx.saved_tensors
        topology, pieces, order, outline, layers, compat = ctx.scene
        to_pixels = _from_image(gradient, order.tile)
        to_rows, to_colors = composite_backward(to_pixels, layers, order)
        to_points = to_widths = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            to_coverage = to_rows.view(-1).index_select(0, place) * counts
            to_power, to_widths = cover_backward(
                outline, to_coverage, pieces, order, topology.strokes, compat
            )
            to_points = scatter_to_points(to_power, pieces.cuts, topology)
        return to_points, to_widths, to_colors, None, None, None, None


def _to_image(pixels: Tensor, tile: Tensor, width: int, height: int) -> Tensor:
    """Tiles (4, PIXELS, T) to an image (height, width, 4); a gather, which is faster than strided copies."""
    across, down = -(-width // TILE), -(-height // TILE)
    tiles = len(tile)
    pixels = torch.nn.functional.pad(pixels, (0, 1))  # what every untouched tile shows
    place = torch.full((down * across,), tiles, device=tile.device)
    place.scatter_(0, tile, torch.arange(tiles, device=tile.device))
    number = torch.arange(PIXELS, device=tile.device).view(1, TILE, 1, TILE) * (tiles + 1)
    source = (place.view(down, 1, across, 1) + number).view(down * TILE, across * TILE)
    source = source[:height, :width].reshape(-1)
    return pixels.view(4, -1).index_select(1, source).t().contiguous().view(height, width, 4)


def _from_image(image: Tensor, tile: Tensor) -> Tensor:
    """The inverse of _to_image, for gradients."""
    height, width = image.shape[:2]
    if height % TILE or width % TILE:
        image = torch.nn.functional.pad(image, (0, 0, 0, -width % TILE, 0, -height % TILE))
        height, width = image.shape[:2]
    across = width // TILE
    corner = (tile // across) * (TILE * width) + (tile % across) * TILE
    number = torch.arange(PIXELS, device=tile.device).view(-1, 1)
    source = (corner + (number // TILE) * width + number % TILE).view(-1)
    channels = image.reshape(-1, 4).t().contiguous()
    return channels.index_select(1, source).view(4, PIXELS, -1)


def _packed(
    points: Tensor | Sequence[Tensor], counts: Sequence[int] | None
) -> tuple[Tensor, Sequence[int]]:
    if not isinstance(points, Tensor):
        if counts is not None:
            raise ValueError(
                "counts was given with a list of strokes; it belongs to points of shape (S, 2)"
            )
        if not points:
            raise ValueError("no strokes were given; at least one is needed")
        return torch.cat(list(points)), [len(stroke) for stroke in points]
    if points.dim() == 3 and counts is None:
        return points.flatten(0, 1), [points.shape[1]] * points.shape[0]
    if points.dim() == 2 and counts is not None:
        return points, counts
    raise ValueError(
        f"points has shape {tuple(points.shape)} and counts is {'missing' if counts is None else 'given'}; "
        "accepted: (N, 3k + 1, 2), a list of (3k + 1, 2), or (S, 2) with counts=[points of each stroke]"
    )


def _check(
    points: Tensor, widths: Tensor, colors: Tensor, counts: Sequence[int], width: int, height: int
) -> None:
    n = len(counts)
    expected = {"points": (sum(counts), 2), "widths": (n,), "colors": (n, 4)}
    for name, value in (("points", points), ("widths", widths), ("colors", colors)):
        if tuple(value.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; {n} strokes need {expected[name]}"
            )
        if (
            value.dtype not in DTYPES
            or value.dtype != points.dtype
            or value.device != points.device
        ):
            raise ValueError(
                f"{name} is {value.dtype} on {value.device} and points is {points.dtype} on {points.device}; "
                "all three must be float32 or all float64, on one device: use .to(points)"
            )
        if not bool(torch.isfinite(value.detach()).all()):
            raise ValueError(
                f"{name} holds NaN or infinity; lower the learning rate or check the loss"
            )
    if n == 0 or width < 1 or height < 1:
        raise ValueError(
            f"{n} strokes on a canvas of {width} x {height}; all three must be at least 1"
        )
