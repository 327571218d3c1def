"""What the tests of the stroke renderer share: random scenes, and how close two results are."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 32


def scene(n: int, seed: int = 0, size: int = SIZE, width: float = 1.5, dtype=torch.float32):
    """CLIPDraw's kind of scene: 1 to 3 segments a stroke, steps of a tenth of the canvas, RGBA uniform."""
    generator = torch.Generator().manual_seed(seed)
    points, counts = [], []
    for _ in range(n):
        count = 3 * int(torch.randint(1, 4, (1,), generator=generator)) + 1
        steps = 0.2 * size * (torch.rand(count, 2, generator=generator) - 0.5)
        steps[0] = torch.rand(2, generator=generator) * size
        points.append(steps.cumsum(0))
        counts.append(count)
    widths = width * (0.5 + torch.rand(n, generator=generator))
    colors = torch.rand(n, 4, generator=generator)
    return torch.cat(points).to(dtype), widths.to(dtype), colors.to(dtype), counts


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a.detach().double() - b.detach().double()).square().mean().log10())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))
