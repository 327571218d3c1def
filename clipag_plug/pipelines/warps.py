"""Random views with numbers from a generator: perspectives, affine maps and crops of batches, differentiable.

Each function takes the random numbers it needs as a tensor of its own, so that a view depends on nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..augment import resample

FAR = 1e5  # pixels: outside of every picture


def uniform(generator: torch.Generator, *shape: int, like: Tensor | None = None) -> Tensor:
    """Numbers in [0, 1) drawn on the CPU, so that every device sees the same, and moved to `like`."""
    numbers = torch.rand(shape, generator=generator)
    return numbers if like is None else numbers.to(like)


def perspective(views: Tensor, corners: Tensor, fill: float = 0.0) -> Tensor:
    """Views (V, C, H, W) in which the picture's corners have moved to `corners` (V, 4, 2), in pixels, x first, from
    the top left clockwise (RandomPerspective of torchvision). What comes in from outside has the value `fill`."""
    height, width = views.shape[-2:]
    frame = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    ends = torch.tensor(frame, dtype=torch.float64).expand(len(views), 4, 2)
    maps = homography(corners.double().cpu(), ends)
    # torchvision puts pixel centres at half-integers and corners at whole ones; so does this.
    return warp(views, maps.to(views), fill)


def moved_corners(numbers: Tensor, height: int, width: int, distortion: float) -> Tensor:
    """Corners (V, 4, 2) as RandomPerspective draws them, from numbers (V, 8): each up to distortion * half inwards."""
    steps = [int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1]
    moves = (numbers.view(-1, 4, 2) * torch.tensor(steps, device=numbers.device)).floor()
    frame = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    inward = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return frame.to(numbers) + inward.to(numbers) * moves


def homography(source: Tensor, target: Tensor) -> Tensor:
    """Matrices (V, 3, 3) that take the four points `source` (V, 4, 2) to `target`."""
    x, y = source.unbind(-1)
    u, v = target.unbind(-1)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    above = torch.stack([x, y, one, none, none, none, -u * x, -u * y], -1)
    below = torch.stack([none, none, none, x, y, one, -v * x, -v * y], -1)
    known = torch.cat([u, v], 1)
    solved = torch.linalg.solve(torch.cat([above, below], 1), known)
    return torch.cat([solved, torch.ones_like(solved[:, :1])], 1).view(-1, 3, 3)


def warp(views: Tensor, maps: Tensor, fill: float = 0.0) -> Tensor:
    """Views read at the places that `maps` (V, 3, 3) send each pixel's centre to, in pixels; bilinear."""
    height, width = views.shape[-2:]
    ys = torch.arange(height, device=views.device, dtype=views.dtype) + 0.5
    xs = torch.arange(width, device=views.device, dtype=views.dtype) + 0.5
    grid = torch.stack(
        [*torch.meshgrid(xs, ys, indexing="xy"), torch.ones_like(xs.expand(height, -1))]
    )
    places = maps @ grid.flatten(1)
    # A strong perspective has its horizon inside the frame; what lies on it is infinitely far, which is outside.
    places = (places[:, :2] / places[:, 2:]).nan_to_num(FAR).clamp(-FAR, FAR)
    scale = torch.tensor([2 / width, 2 / height], device=views.device, dtype=views.dtype)
    places = (places * scale[:, None] - 1).transpose(1, 2).view(len(views), height, width, 2)
    if fill:  # outside is 0 for grid_sample: shift the values so that 0 is what should come in
        views = views - fill
    read = F.grid_sample(views, places, align_corners=False)
    return read + fill if fill else read


def random_perspective(
    views: Tensor, generator: torch.Generator, distortion: float, fill: float = 0.0
) -> Tensor:
    """`perspective` with corners of its own for each view."""
    numbers = uniform(generator, len(views), 8, like=views)
    height, width = views.shape[-2:]
    corners = moved_corners(numbers, height, width, distortion)
    return perspective(views, corners, fill)


def crop_boxes(numbers: Tensor, height: int, width: int, low: float, high: float) -> Tensor:
    """Boxes (V, 4), top, left, height, width, as RandomResizedCrop draws them from numbers (V, 4): an area of low to
    high of the whole, an aspect of 3/4 to 4/3 (log-uniform). A box that would leave the picture is cut to it."""
    area = height * width * (low + numbers[:, 0] * (high - low))
    aspect = (math.log(3 / 4) + numbers[:, 1] * math.log(16 / 9)).exp()
    across = (area * aspect).sqrt().round().clamp(max=width)
    down = (area / aspect).sqrt().round().clamp(max=height)
    top = (numbers[:, 2] * (height - down + 1)).floor()
    left = (numbers[:, 3] * (width - across + 1)).floor()
    return torch.stack([top, left, down, across], 1)


def crops(views: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The boxes (V, 4) of views (V, C, H, W) at (side, side), anti-aliased where they shrink."""
    top, left, down, across = boxes.unbind(1)
    return resample(views, (top[:, None], down[:, None]), (left[:, None], across[:, None]), side)


def random_affine(
    views: Tensor, generator: torch.Generator, degrees: float, translate: float, shear: float
) -> Tensor:
    """Rotated, moved by up to `translate` of the side and sheared along x, about the centre; black comes in."""
    count, (height, width) = len(views), views.shape[-2:]
    numbers = 2 * uniform(generator, count, 4) - 1
    angle, slant = torch.deg2rad(numbers[:, 0] * degrees), torch.deg2rad(numbers[:, 3] * shear)
    maps = torch.eye(3).repeat(count, 1, 1)
    # Places are read, so this is the inverse map: x' = R (x - centre - shift) + centre, then the slant.
    maps[:, 0, 0], maps[:, 0, 1] = angle.cos(), angle.sin() + slant.tan()
    maps[:, 1, 0], maps[:, 1, 1] = -angle.sin(), angle.cos()
    centre = torch.tensor([width / 2, height / 2])
    shift = numbers[:, 1:3] * translate * torch.tensor([width, height])
    moved = (maps[:, :2, :2] @ (centre + shift)[..., None])[..., 0]
    maps[:, :2, 2] = centre - moved
    return warp(views, maps.to(views))
