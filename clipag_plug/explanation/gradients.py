"""Attribution to pixels: input gradients (Simonyan et al. 2014), integrated gradients (Sundararajan et al. 2017).

Images are (N, 3, side, side) in [0, 1], texts unit features (N, M, D): M texts for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacks import value_and_gradient
from ..guide import Guide


def input_gradient(guide: Guide, images: Tensor, texts: Tensor) -> Tensor:
    """Largest magnitude over the colours of the cosine's gradient at each pixel: (N, M, side, side), not scaled."""
    rows = [_gradient(guide, images, text).abs().amax(1) for text in texts.unbind(1)]
    return torch.stack(rows, dim=1)


def integrated_gradients(
    guide: Guide, images: Tensor, texts: Tensor, *, steps: int = 32, baseline: float = 0.0
) -> Tensor:
    """What each pixel adds to the cosine on the straight way from a grey image: (N, M, side, side), not scaled.

    baseline: the grey, 0 is black. The integral is taken at the midpoints of `steps` pieces; the
    attributions of an image sum to its cosine minus the baseline's, up to that rule's error.
    Negative values, places that lower the cosine, are kept.
    """
    start = torch.full_like(images, baseline)
    rows = []
    for text in texts.unbind(1):
        total = torch.zeros_like(images)
        for step in range(steps):
            total += _gradient(guide, start + (step + 0.5) / steps * (images - start), text)
        rows.append(((images - start) * total / steps).sum(1))
    return torch.stack(rows, dim=1)


def _gradient(guide: Guide, images: Tensor, text: Tensor) -> Tensor:
    return value_and_gradient(lambda x: (guide.features(x) * text).sum(1), images)[1]
