"""A differentiable renderer of open cubic Bezier strokes in plain PyTorch, with the semantics of diffvg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compositing import composite, composite_backward
from .coverage import PIXELS, cover, cover_backward, merge
from .scene import TILE, plan, segments
from .svg import strokes_from_svg, strokes_to_svg

__all__ = ["render_strokes", "strokes_from_svg", "strokes_to_svg"]


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

    Args:
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
    if isinstance(points, Tensor):
        if points.dim() != (3 if counts is None else 2):
            raise ValueError(
                f"points has shape {tuple(points.shape)} and counts is {'missing' if counts is None else 'given'}; "
                "accepted: (N, 3k + 1, 2), a list of (3k + 1, 2), or (S, 2) with counts=[points of each stroke]"
            )
        counts = [points.shape[1]] * points.shape[0] if counts is None else counts
        points = points.reshape(-1, points.shape[-1])
    elif counts is not None or not points:
        raise ValueError(
            "no strokes, or counts with a list of them; give strokes, and counts with (S, 2) only"
        )
    else:
        points, counts = torch.cat(list(points)), [len(stroke) for stroke in points]
    _check(points, widths, colors, counts, width, height)
    return _Strokes.apply(points, widths, colors, tuple(counts), width, height, compat)


class _Strokes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, widths: Tensor, colors: Tensor, *scene: Any) -> Tensor:
        counts, width, height, compat = scene
        pieces = segments(points, widths, counts)
        order = plan(pieces, len(widths), width, height)
        coverage, outline = cover(pieces, widths, order)
        rows, place, own = merge(coverage, outline, order)
        pixels, layers = composite(rows, colors, order)
        ctx.save_for_backward(place, own)
        ctx.scene = (pieces, order, outline, layers, compat, len(widths), len(points))
        # Tiles (4, PIXELS, T) to an image; untouched ones are transparent.
        down, across = -(-height // TILE), -(-width // TILE)
        tiles = pixels.new_zeros(4, PIXELS, down * across).index_copy_(2, order.tile, pixels)
        image = tiles.view(4, TILE, TILE, down, across).permute(3, 1, 4, 2, 0)
        return image.reshape(down * TILE, across * TILE, 4)[:height, :width].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        place, own = ctx.saved_tensors
        pieces, order, outline, layers, compat, strokes, points = ctx.scene
        height, width = gradient.shape[:2]
        image = F.pad(gradient, (0, 0, 0, -width % TILE, 0, -height % TILE))
        tiles = image.unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE)).permute(4, 1, 3, 0, 2)
        to_pixels = tiles.reshape(4, PIXELS, -1).index_select(2, order.tile)
        to_rows, to_colors = composite_backward(to_pixels, layers, order)
        to_points = to_widths = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            to_coverage = to_rows.view(-1).index_select(0, place) * own
            to_power, to_widths = cover_backward(outline, to_coverage, pieces, strokes, compat)
            to_points = pieces.to_points(to_power, points)
        return to_points, to_widths, to_colors, None, None, None, None


def _check(
    points: Tensor, widths: Tensor, colors: Tensor, counts: Sequence[int], width: int, height: int
) -> None:
    n = len(counts)
    wrong = [count for count in counts if count < 4 or count % 3 != 1]
    if wrong:
        raise ValueError(
            f"a stroke has {wrong[0]} points; an open path of k cubic segments has 3 * k + 1 "
            "(4, 7, 10, ...): convert lines and quadratics to cubics first"
        )
    shapes = {"points": (sum(counts), 2), "widths": (n,), "colors": (n, 4)}
    for (name, shape), value in zip(shapes.items(), (points, widths, colors)):
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; {n} strokes need {shape}")
        kinds = {(value.dtype, value.device), (points.dtype, points.device)}
        if len(kinds) > 1 or value.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {value.dtype} on {value.device} and points is {points.dtype} on {points.device}; "
                "all three must be float32 or all float64, on one device: use .to(points)"
            )
        if not bool(torch.isfinite(value.detach()).all()):
            raise ValueError(
                f"{name} holds NaN or infinity; lower the learning rate or check the loss"
            )
    if min(n, width, height) < 1:
        raise ValueError(f"{n} strokes on a canvas of {width} x {height}; all must be at least 1")
