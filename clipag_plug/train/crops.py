"""Random crops of training images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crops(
    images: Tensor, size: int, smallest: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """A random square crop of each image, of between `smallest` and all of its area, resized to `size`.

    images (N, 3, H, W) -> (N, 3, size, size); half of them mirrored when `flip` is on. Bilinear at no less than the
    photographs' own resolution, then averaged: free of aliasing, as the reduction of a picture at use is.
    """
    return crops(images, size, smallest, flip, draws(len(images), generator))


def draws(count: int, generator: torch.Generator) -> Tensor:
    """The random numbers (4, count) in [0, 1) that decide the crops of `count` images: area, place x, place y, side."""
    return torch.rand(4, count, generator=generator)


def crops(images: Tensor, size: int, smallest: float, flip: bool, draw: Tensor) -> Tensor:
    """The crops that the numbers `draw` (4, N) stand for; see random_crops."""
    count = len(images)
    finer = -(-images.shape[-1] // size)
    side = (smallest + (1 - smallest) * draw[0]).sqrt()
    mirror = torch.where(draw[3] < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
    theta[:, 0, 2], theta[:, 1, 2] = (2 * draw[1] - 1) * (1 - side), (2 * draw[2] - 1) * (1 - side)
    grid = F.affine_grid(theta, [count, 3, size * finer, size * finer], align_corners=False)
    cut = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp_(0, 1)
    return F.avg_pool2d(cut, finer) if finer > 1 else cut
