"""Training images on their way out of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import priors

FAINTEST = 0.3  # the least share of an image that stays; below it hardly one class can be told from another


def noised(
    images: Tensor, share: float, generator: torch.Generator, place: tuple[int, int] | None = None
) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], about `share` of them mixed with a start picture of `init = noise`.

    x' = a x + (1 - a) n with a uniform in [0.3, 1]: what a picture painted from noise looks like on its way. A guide
    that has seen only photographs meets such pictures for the first time when it is asked for their gradient;
    classifiers that guide diffusion are trained on noisy images for the same reason (Dhariwal & Nichol 2021).
    place: (first, total): these images are rows first to first + N of a batch of `total`, and get what they
    would get there. The numbers drawn do not depend on the images.
    """
    first, total = place or (0, len(images))
    mixed, amount = torch.rand(2, total, generator=generator)
    fields = [priors.noise((images.shape[2], images.shape[3]), generator) for _ in range(total)]
    rows = slice(first, first + len(images))
    kept = torch.where(mixed < share, FAINTEST + (1 - FAINTEST) * amount, 1.0)[rows]
    return torch.stack(fields[rows]).lerp(images, kept.view(-1, 1, 1, 1))
