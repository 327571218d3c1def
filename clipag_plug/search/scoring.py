"""Prompts against pictures and against class names, by a CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guide import Guide
from ..vocabulary import sentence
from .methods import Score
from .protocol import as_pictures, enlarged


def scorer(guide: Guide, text: Tensor, inputs: str = "correct") -> Score:
    """Cosine of a generator's outputs (n, 3, S, S) in [-1, 1] and a unit text feature (D,).

    inputs: "correct" shows the model pictures in [0, 1], normalised; "legacy" the outputs as they are, as the
    published code of the CLIP-guided search does, whose scores can only be met that way.
    """

    def score(outputs: Tensor) -> Tensor:
        correct = inputs == "correct"
        views = enlarged(as_pictures(outputs) if correct else outputs, guide.side)
        return guide.features(views, normalize=correct) @ text

    return score


def nearest_labels(
    guide: Guide, text: Tensor, classes: Sequence[str], k: int, template: str = "An image of {}"
) -> Tensor:
    """Numbers of the `k` classes whose sentences are nearest to a unit text feature (D,), nearest first; 0 for all."""
    return ordered(class_features(guide, classes, template), text, k)


def class_features(guide: Guide, classes: Sequence[str], template: str) -> Tensor:
    """Unit features (C, D) of the classes' sentences."""
    texts = [sentence(name, template) for name in classes]
    return torch.cat([guide.texts(texts[i : i + 256]) for i in range(0, len(texts), 256)])


def ordered(features: Tensor, text: Tensor, k: int) -> Tensor:
    """Rows of `features` by cosine to `text`, the first `k` of them, or all for 0."""
    order = (features @ text).argsort(descending=True, stable=True).cpu()
    return order[:k] if k else order
