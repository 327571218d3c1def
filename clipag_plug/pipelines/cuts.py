"""Cutouts of VQGAN+CLIP: squares of the picture, then random changes, then noise.

Methods as nerdyrodent/VQGAN-CLIP has them: `latest` squeezes the whole picture (the mean of average and maximum
pooling) and relies on the changes; `pooling` does so with random squares; `updated` and `original` resample random
squares, the latter without any changes. The changes are affine maps, perspective, colours and erasing with that
script's numbers. Two things differ from the library it uses: the hue turns in YIQ, and what is erased is black.

Ours: `plain` is the whole picture, resampled, and nothing else; `moved` is `updated` without colours and erasing. A
guide of 40 pixels recognises much by colour, and a hue turned by up to 36 degrees tells it that any will do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..augment import fit, resample
from .warps import random_affine, random_perspective, uniform

SHARE = 0.7  # of the cutouts that each change is applied to
NOISE = 0.1


def cutouts(
    image: Tensor, count: int, side: int, method: str, power: float, generator: torch.Generator
) -> Tensor:
    """Cutouts (count, 3, side, side) of one picture (1, 3, H, W) in [0, 1]; with noise they may leave [0, 1]."""
    if method == "plain":
        return fit(image, side).expand(count, -1, -1, -1)
    if method == "latest":
        cut = pooled(image, side).expand(count, -1, -1, -1)
    else:
        rows, columns = squares(image, count, side, power, generator)
        if method == "pooling":
            boxes = zip(*(part[0].long().tolist() for part in (*rows, *columns)))
            cut = torch.cat(
                [pooled(image[..., y : y + h, x : x + w], side) for y, h, x, w in boxes]
            )
        else:
            cut = resample(image, rows, columns, side)
    if method == "original":
        return cut
    cut = moved(cut, generator)
    if method != "moved":
        cut = _some(jittered(cut, generator), cut, generator)
        cut = _some(erased(cut, generator), cut, generator)
    return noisy(cut, generator)


def pooled(image: Tensor, side: int) -> Tensor:
    """The mean of adaptive average and adaptive maximum pooling."""
    return (F.adaptive_avg_pool2d(image, side) + F.adaptive_max_pool2d(image, side)) / 2


def squares(
    image: Tensor, count: int, side: int, power: float, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows and columns, start and length (1, count) each, of random squares between `side` and the picture's own."""
    height, width = image.shape[-2:]
    most, least = min(height, width), min(height, width, side)
    numbers = uniform(generator, 3, 1, count, like=image)
    length = (numbers[0].pow(power) * (most - least) + least).floor()
    top = (numbers[1] * (height - length + 1)).floor()
    left = (numbers[2] * (width - length + 1)).floor()
    return (top, length), (left, length)


def moved(cut: Tensor, generator: torch.Generator) -> Tensor:
    """Affine maps and perspective, each where its draw says so."""
    affine = random_affine(cut, generator, degrees=15, translate=0.1, shear=5)
    cut = _some(affine, cut, generator)
    return _some(random_perspective(cut, generator, 0.7), cut, generator)


def noisy(cut: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise whose deviation is drawn for each cutout from [0, 0.1]."""
    factor = uniform(generator, len(cut), 1, 1, 1) * NOISE
    return cut + (factor * torch.randn(cut.shape, generator=generator)).to(cut)


def jittered(cut: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation x 0.9..1.1, hue +-0.1 of the circle, for each cutout."""
    bright, contrast, saturation, hue = (
        2 * uniform(generator, 4, len(cut), 1, 1, 1, like=cut) - 1
    ) * 0.1
    cut = (cut * (1 + bright)).clamp(0, 1)
    mean = _grey(cut).mean((1, 2, 3), keepdim=True)
    cut = (mean + (cut - mean) * (1 + contrast)).clamp(0, 1)
    grey = _grey(cut)
    cut = (grey + (cut - grey) * (1 + saturation)).clamp(0, 1)
    return torch.einsum("vij,vjhw->vihw", _turn(hue.flatten() * 2 * math.pi), cut).clamp(0, 1)


def erased(cut: Tensor, generator: torch.Generator) -> Tensor:
    """The same box black in all: 0.1 to 0.4 of the area, an aspect of 0.3 to 3.3."""
    height, width = cut.shape[-2:]
    area, aspect, y, x = torch.rand(4, generator=generator).tolist()
    area = (0.1 + 0.3 * area) * height * width
    aspect = 0.3 + (1 / 0.3 - 0.3) * aspect
    down = min(round(math.sqrt(area * aspect)), height)
    across = min(round(math.sqrt(area / aspect)), width)
    top, left = int(y * (height - down + 1)), int(x * (width - across + 1))
    mask = cut.new_ones(1, 1, height, width)
    mask[..., top : top + down, left : left + across] = 0
    return cut * mask


def _some(changed: Tensor, cut: Tensor, generator: torch.Generator) -> Tensor:
    chosen = uniform(generator, len(cut), 1, 1, 1, like=cut) < SHARE
    return torch.where(chosen, changed, cut)


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _turn(angle: Tensor) -> Tensor:
    """Matrices (V, 3, 3) on RGB that turn the colour plane of YIQ."""
    to_yiq = angle.new_tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    turn = torch.zeros(len(angle), 3, 3, device=angle.device, dtype=angle.dtype)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
