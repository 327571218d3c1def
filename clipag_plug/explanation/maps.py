"""Heatmaps of a text in pictures, by any of the methods, scaled to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..guide import Guide, frozen, guide_for
from ..options.explain import METHODS
from .gradcam import CHANNELS, gradcam, gscorecam, plain_gradcam
from .gradients import input_gradient, integrated_gradients
from .layers import find_layer

IMAGES_AT_ONCE = 64


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
) -> Tensor:
    """Where `model` looks in a picture for each text (Ganz & Elad 2024, supplement 2).

    model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`. image: a path, a
    PIL picture, or a tensor (3, H, W) or (N, 3, H, W) in [0, 1]; any aspect, nothing is cropped.
    texts: one or M. method: one of `METHODS`. layer: see `find_layer`. channels: of gscorecam.
    samples: of integrated-gradients.
    Returns maps (M, H, W), or (N, M, H, W) for a batch, each scaled to [0, 1] by its own range. A
    map of zeros says that nothing in the picture raises the score. Raises ValueError for an
    unknown method, an empty text, a picture that is no picture.
    """
    guide = guide_for(model, device=device)
    pictures = as_pictures(image)
    features = text_features(guide, [texts] if isinstance(texts, str) else texts)
    small = squash(pictures, guide)
    maps = heatmaps(
        guide, small, features, method=method, layer=layer, channels=channels, samples=samples
    )
    maps = rescaled(resized(maps, pictures.shape[2], pictures.shape[3]))
    single = not isinstance(image, Tensor) or image.ndim == 3
    return maps[0] if single else maps


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

    texts: unit features, (M, D) for all images or (N, M, D) with texts of its own for each.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")
    with frozen([guide.model]):
        if method == "input-gradient":
            compute = partial(input_gradient, guide)
        elif method == "integrated-gradients":
            compute = partial(integrated_gradients, guide, steps=samples)
        else:
            found = find_layer(guide, layer, first_norm=method == "gradcam-ln1" and layer is None)
            if method == "gscorecam":
                compute = partial(gscorecam, guide, layer=found, channels=channels)
            else:
                compute = partial(
                    plain_gradcam if method == "gradcam-naive" else gradcam, guide, layer=found
                )
        texts = texts.to(guide.device).expand(len(images), *texts.shape[-2:])
        pieces = zip(images.to(guide.device).split(IMAGES_AT_ONCE), texts.split(IMAGES_AT_ONCE))
        raw = [compute(part, of) for part, of in pieces]
    maps = rescaled(torch.cat(raw).float().relu())
    return rescaled(resized(maps, guide.side, guide.side))


def text_features(guide: Guide, texts: Sequence[str]) -> Tensor:
    """Unit features (M, D) of the texts. Raises ValueError where there is none or one is empty."""
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("a text is empty; say what to look for, as 'a dog'")
    return guide.texts(texts)


def as_pictures(image: Any) -> Tensor:
    """A path, a PIL picture or a tensor as a batch (N, 3, H, W) in [0, 1]."""
    if isinstance(image, str | Path):
        from ..images import read_image

        return read_image(image)[None]
    if not isinstance(image, Tensor):
        from ..images import as_rgb, from_pil

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

    Bicubic to CLIP's resolution as CLIP's preprocessing does, then by area where the tower reduces it itself.
    """
    resolution = guide.resolution
    pictures = pictures.to(guide.device)
    if pictures.shape[-2:] != (resolution, resolution):
        pictures = F.interpolate(
            pictures, size=(resolution, resolution), mode="bicubic", antialias=True
        ).clamp(0, 1)
    return (
        pictures
        if guide.side == resolution
        else F.interpolate(pictures, size=(guide.side, guide.side), mode="area")
    )


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, M, h, w) at another size, bilinear; averaged where they shrink."""
    if maps.shape[-2:] == (height, width):
        return maps
    shrinks = height < maps.shape[-2] or width < maps.shape[-1]
    return F.interpolate(
        maps, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )


def rescaled(maps: Tensor) -> Tensor:
    """Each map shifted and stretched to [0, 1]; a flat one becomes zeros."""
    maps = maps - maps.amin((-2, -1), keepdim=True)
    peak = maps.amax((-2, -1), keepdim=True)
    return torch.where(
        peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps)
    )
