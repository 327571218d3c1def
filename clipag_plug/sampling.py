"""Boxes of pictures at another size: separable, differentiable, free of aliasing."""

from __future__ import annotations

import torch
from torch import Tensor


def fit(images: Tensor, side: int) -> Tensor:
    """The whole picture, squeezed to (side, side)."""
    start = torch.zeros(len(images), 1, device=images.device, dtype=images.dtype)
    height, width = images.shape[-2:]
    return resample(images, (start, start + height), (start, start + width), side)


def resample(
    images: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], side: int
) -> Tensor:
    """Boxes of pictures at (side, side): (N, C, H, W), n boxes each -> (N * n, C, side, side).

    rows, columns: start and length (N, n) of the boxes in pixels. Two matrix products, one per axis: each picture is
    read once whatever n is, and the gradient is two products as well.
    """
    count, channels, height, width = images.shape
    n = rows[0].shape[1]
    down = axis_weights(*rows, height, side).reshape(count, n * side, height)
    across = axis_weights(*columns, width, side).reshape(count * n, side, width)
    strips = down @ images.transpose(1, 2).reshape(count, height, channels * width)
    strips = strips.view(count * n, side, channels, width).flatten(1, 2)
    views = strips @ across.transpose(1, 2)
    return views.view(count * n, side, channels, side).transpose(1, 2)


def axis_weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Interpolation weights (..., side, size) from `size` pixels to `side` samples of [start, start + length).

    A triangle as wide as the sampling distance, at least one pixel: bilinear when enlarging, anti-aliased when
    reducing. Nothing outside the box or the picture is read. Every row sums to 1.
    """
    step = (length / side)[..., None]
    centre = (
        start[..., None] + (torch.arange(side, device=start.device, dtype=start.dtype) + 0.5) * step
    )
    low = start[..., None].clamp(min=0, max=size - 1) + 0.5
    high = torch.maximum((start + length)[..., None].clamp(min=1, max=size) - 0.5, low)
    centre = torch.minimum(torch.maximum(centre, low), high)[..., None]
    place = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    weights = (1 - (place - centre).abs() / step.clamp(min=1)[..., None]).clamp(min=0)
    weights = weights * ((place > low[..., None] - 1) & (place < high[..., None] + 1))
    return weights / weights.sum(-1, keepdim=True)
