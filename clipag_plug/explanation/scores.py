"""Numbers for heatmaps: do they point at the object, and do they stay the same under attack?

Maps are (N, H, W) and not negative, objects boolean masks (N, H, W), results (N,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Gaussian window and constants of Wang et al. 2004, for values in [0, 1].
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def pointing_game(maps: Tensor, objects: Tensor) -> Tensor:
    """1 where the map's highest place lies on the object (Zhang et al. 2016).
    Where several places are the highest, the share of them on the object: a flat map scores as pointing at random does.
    """
    highest = maps == maps.amax((1, 2), keepdim=True)
    return (highest & objects).sum((1, 2)) / highest.sum((1, 2))


def energy(maps: Tensor, objects: Tensor) -> Tensor:
    """Share of the map's mass on the object (Wang et al. 2020); a map of zeros counts as uniform."""
    mass = maps.sum((1, 2))
    inside = (maps * objects).sum((1, 2))
    uniform = objects.float().mean((1, 2))
    return torch.where(mass > 0, inside / mass.clamp_min(1e-30), uniform)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks; two empty ones agree."""
    union = (first | second).sum((1, 2))
    return torch.where(union > 0, (first & second).sum((1, 2)) / union.clamp_min(1), 1.0)


def hot(maps: Tensor, threshold: float = 0.5) -> Tensor:
    """Places of at least `threshold` times the map's maximum; none in a map of zeros."""
    peak = maps.amax((1, 2), keepdim=True)
    return (maps >= threshold * peak) & (peak > 0)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of the places of two maps, ties sharing their mean rank.
    A flat map ranks nothing: its correlation with any other is 0."""
    a, b = (torch.stack([_ranks(row) for row in maps.flatten(1)]) for maps in (first, second))
    return F.cosine_similarity(a - a.mean(1, True), b - b.mean(1, True), eps=1e-12)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of maps in [0, 1]: 11x11 Gaussian window, sigma 1.5.
    Windows that cross the border are left out. Raises ValueError for maps smaller than the window."""
    if min(first.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs maps of at least {_WINDOW}x{_WINDOW}; got {first.shape[-1]}x{first.shape[-2]}"
        )
    a, b = first[:, None].double(), second[:, None].double()
    mean_a, mean_b = _blur(a), _blur(b)
    spread = _blur(a * a) - mean_a**2 + _blur(b * b) - mean_b**2
    shared = _blur(a * b) - mean_a * mean_b
    similar = (2 * mean_a * mean_b + _C1) * (2 * shared + _C2)
    similar = similar / ((mean_a**2 + mean_b**2 + _C1) * (spread + _C2))
    return similar.mean((1, 2, 3)).float()


def localisation(maps: Tensor, objects: Tensor) -> dict[str, Tensor]:
    """Every number of a map against an object."""
    scores = {"pointing": pointing_game(maps, objects), "energy": energy(maps, objects)}
    return scores | {"iou": iou(hot(maps), objects)}


def agreement(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Every number of one map against another of the same picture."""
    scores = {"spearman": spearman(first, second), "ssim": ssim(first, second)}
    return scores | {"iou": iou(hot(first), hot(second))}


def _ranks(values: Tensor) -> Tensor:
    """Ranks of a vector from 1, equal values at the mean of theirs."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, device=x.device) - _WINDOW // 2
    kernel = torch.exp(-(offsets.double() ** 2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
