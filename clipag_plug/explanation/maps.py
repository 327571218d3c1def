"""Heatmaps of a text in pictures, by any of the methods, scaled to [0, 1], the attack on them, and their scores: do
they point at the object, and do they stay the same under attack? In the scores maps are (N, H, W) and not negative,
objects boolean masks (N, H, W), results (N,).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import losses
from ..attacks import pgd
from ..guide import Guide, frozen, guide_for
from ..images import as_rgb, from_pil, read_image, resize
from ..options.explain import METHODS
from .cam import CHANNELS, find_layer, gradcam, gscorecam, input_gradient, integrated_gradients

IMAGES_AT_ONCE = 64
# Of SSIM: Gaussian window and constants of Wang et al. 2004, for values in [0, 1].
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def explain(
    model: Any,
    image: Any,
    texts: str | Sequence[str],
    *,
    method: str = "gradcam",
    layer: str | None = None,
    channels: int = CHANNELS,
    samples: int = 32,
    device: str | None = None,
    precision: str = "auto",
) -> Tensor:
    """Where `model` looks in a picture for each text (Ganz & Elad 2024, supplement 2).

    Args:
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        image: a path, a PIL picture, or a tensor (3, H, W) or (N, 3, H, W) in [0, 1]; nothing is cropped.
        texts: one or M.
        method: one of `METHODS`.
        layer: a module of the image tower; see `find_layer`.
        channels: of gscorecam; samples: of integrated-gradients. precision: as of `clipag explain`.
    Returns: maps (M, H, W), or (N, M, H, W) for a batch, each scaled to [0, 1] by its own range. A map of zeros says
        that nothing in the picture raises the score.
    Raises: ValueError for an unknown method, an empty text, a picture that is no picture.
    """
    guide = guide_for(model, device=device, precision=precision)
    pictures = _pictures(image)
    features = text_features(guide, [texts] if isinstance(texts, str) else texts)
    how = {"method": method, "layer": layer, "channels": channels, "samples": samples}
    maps = heatmaps(guide, squash(pictures, guide), features, **how)  # type: ignore[arg-type]
    maps = rescaled(resize(maps, (pictures.shape[2], pictures.shape[3]), "bilinear"))
    return maps if isinstance(image, Tensor) and image.ndim == 4 else maps[0]


def heatmaps(
    guide: Guide,
    images: Tensor,
    texts: Tensor,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    channels: int = CHANNELS,
    samples: int = 32,
) -> Tensor:
    """Maps (N, M, side, side) in [0, 1] of squashed images (N, 3, side, side).
    texts: unit features, (M, D) for all images or (N, M, D) with texts of its own for each."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")
    with frozen([guide.model]):
        if method == "input-gradient":
            compute = partial(input_gradient, guide)
        elif method == "integrated-gradients":
            compute = partial(integrated_gradients, guide, steps=samples)
        else:
            found = find_layer(guide, layer, first_norm=method == "gradcam-ln1" and layer is None)
            compute = partial(gradcam, guide, layer=found, naive=method == "gradcam-naive")
            if method == "gscorecam":
                compute = partial(gscorecam, guide, layer=found, channels=channels)
        texts = texts.to(guide.device).expand(len(images), *texts.shape[-2:])
        pieces = zip(images.to(guide.device).split(IMAGES_AT_ONCE), texts.split(IMAGES_AT_ONCE))
        raw = torch.cat([compute(part, of) for part, of in pieces])
    return rescaled(resize(rescaled(raw.float().relu()), guide.side, "bilinear"))


def negation_attack(
    guide: Guide,
    images: Tensor,
    texts: Tensor,
    negations: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = 1 / 255,
) -> Tensor:
    """Equation (1) of Ganz & Elad 2024 (supplement): PGD on L_SIM(x, t) - L_SIM(x, not t), with the paper's defaults.

    L_SIM is the cosine loss, so raising the difference drives an image from its text to the negation of it.

    Args:
        images: (N, 3, side, side) in [0, 1].
        texts, negations: features (N, D) or (1, D).
    """

    def loss(x: Tensor) -> Tensor:
        features = guide.features(x)
        return losses.cosine(features, texts) - losses.cosine(features, negations)

    return pgd(loss, images, eps=eps, norm=norm, steps=steps, step_size=step_size)


def text_features(guide: Guide, texts: Sequence[str]) -> Tensor:
    """Unit features (M, D) of the texts. Raises ValueError where there is none or one is empty."""
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("a text is empty; say what to look for, as 'a dog'")
    return guide.texts(texts)


def _pictures(image: Any) -> Tensor:
    """A path, a PIL picture or a tensor as a batch (N, 3, H, W) in [0, 1]."""
    if isinstance(image, str | Path):
        return read_image(image)[None]
    if not isinstance(image, Tensor):
        return from_pil(as_rgb(image))[None]
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.is_floating_point() or 0 in batch.shape:
        raise ValueError(
            f"an image is {image.dtype} of shape {tuple(image.shape)}; "
            "floats (3, H, W) or (N, 3, H, W) in [0, 1] are needed"
        )
    if not (batch.min() >= 0 and batch.max() <= 1):
        raise ValueError("an image leaves [0, 1]; give pictures before the model's normalisation")
    return batch


def squash(pictures: Tensor, guide: Guide) -> Tensor:
    """Pictures (N, 3, H, W) as what the tower sees, (N, 3, side, side): nothing is cropped, the aspect is not kept.
    Bicubic to CLIP's resolution as CLIP's preprocessing does, then by area where the tower reduces it itself."""
    return resize(resize(pictures.to(guide.device), guide.resolution), guide.side, "area")


def rescaled(maps: Tensor) -> Tensor:
    """Each map shifted and stretched to [0, 1]; a flat one becomes zeros."""
    maps = maps - maps.amin((-2, -1), keepdim=True)
    peak = maps.amax((-2, -1), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


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
