"""The pictures that a run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import priors
from ..images import read_image
from ..options.generate import Generate, parse_size
from .canvases import shrink

if TYPE_CHECKING:
    from ..guide import Guide
    from .objective import Target

# The notebook indexes its 200 samplers with a hard-coded `i // 50`: of 1000 candidates, 50 each come from 20 classes.
_QUIRK_CLASSES, _QUIRK_DRAWS = 20, 50


def start_pictures(
    options: Generate,
    size: tuple[int, int],
    guide: Guide,
    target: Target,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Start pictures (N, 3, H, W) in [0, 1] for resolved options, on the guide's device."""
    if options.init == "gmm":
        return best_candidates(options, size, guide, target, generators)
    if options.init in ("gray", "own"):
        start = torch.full((len(generators), 3, *size), 0.5)
    elif options.init == "image":
        start = fitted(read_image(str(options.image)), size).expand(len(generators), -1, -1, -1)
    if options.init == "noise" or (options.init == "image" and options.strength):
        noise = torch.stack([priors.noise(size, generator) for generator in generators])
        start = noise if options.init == "noise" else start.lerp(noise, options.strength)
    return start.to(guide.device)


def best_candidates(
    options: Generate,
    size: tuple[int, int],
    guide: Guide,
    target: Target,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """For each picture the draw from the mixture that fits its prompt best (supplement 1.3).

    Pictures of one seed choose among the same candidates. With `quirks`, candidates are scored without CLIP's
    normalisation and come from the first 20 classes only, as in the authors' notebook.
    """
    mixture = priors.Mixture.load(options.prior)
    classes, draws = len(mixture.classes), int(options.candidates or 1)
    if options.quirks:
        classes, draws = min(_QUIRK_CLASSES, classes), _QUIRK_DRAWS
    index = torch.arange(classes).repeat_interleave(draws)
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    chosen = []
    for direction, generator in zip(target.direction, generators):
        seed = generator.initial_seed()
        if seed not in drawn:
            candidates = mixture.sample(index, generator)
            drawn[seed] = candidates, score(guide, candidates, normalize=not options.quirks)
        candidates, features = drawn[seed]
        chosen.append(candidates[int((features @ direction).argmax())])
    start = F.interpolate(torch.stack(chosen), size=size, mode="bilinear", align_corners=False)
    return start.to(guide.device)


@torch.no_grad()
def score(guide: Guide, pictures: Tensor, *, normalize: bool = True, batch: int = 0) -> Tensor:
    """Unit features (M, D) of small pictures (M, 3, h, w), enlarged to what the guide wants, in batches."""
    batch = batch or (16 if guide.device.type == "cpu" else 128)  # more leave a CPU's caches
    features = []
    for group in pictures.to(guide.device).split(batch):
        views = F.interpolate(group, size=(guide.side,) * 2, mode="bilinear", align_corners=False)
        features.append(guide.features(views, normalize=normalize))
    return torch.cat(features)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) at `size`: cut centrally to its aspect, then resampled without aliasing. Unchanged at that size."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    scale = min(height / size[0], width / size[1])
    rows, columns = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    top, left = (height - rows) // 2, (width - columns) // 2
    image = image[None, :, top : top + rows, left : left + columns]
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return image[0].clamp(0, 1)


def picture_size(options: Generate, guide: Guide) -> tuple[int, int]:
    """(H, W) of the result: --size, else the start picture's own, else what the model sees."""
    if not options.size and options.init == "image":
        height, width = read_image(str(options.image)).shape[-2:]
        return (int(height), int(width))
    return parse_size(options.size) or (guide.resolution, guide.resolution)


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask (1, H, W): the brightness of a picture at `size`. ValueError where nothing may change."""
    mask = read_image(path).mean(0, keepdim=True)
    mask = shrink(mask[None], size)[0] if min(mask.shape[-2:]) > min(size) else fitted(mask, size)
    if not (mask > 0).any():
        raise ValueError(
            f"mask {str(path)!r} is black everywhere: nothing may change; paint white what may"
        )
    return mask
