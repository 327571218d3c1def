"""A prompt against the other words: the softmax that a classifier is trained with, in place of the cosine alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..guide import Guide
from ..vocabulary import bundled_vocabulary, sentence


@dataclasses.dataclass
class Rivals:
    """Words that N pictures should not look like.

    features: (M, D), unit; own: (N, M), True where a word is part of the prompt itself; scale: of the cosines.
    """

    features: Tensor
    own: Tensor
    scale: float

    @classmethod
    def of(
        cls, guide: Guide, prompts: Sequence[Sequence[tuple[str, float]]], scale: float
    ) -> Rivals:
        """The classes of the bundled vocabulary, but for a picture those that its prompt speaks of: of "a dog" no
        breed is a rival. Parts of negative weight do not count as spoken of."""
        vocabulary = bundled_vocabulary()
        names = vocabulary.class_names
        own = torch.zeros(len(prompts), len(names), dtype=torch.bool)
        for row, parts in enumerate(prompts):
            for text, weight in parts:
                if weight > 0:
                    own[row, list(vocabulary.meant(text))] = True
        features = guide.texts([sentence(name, "a {}") for name in names])
        return cls(features, own.to(features.device), scale)

    def losses(self, features: Tensor, near: Tensor, direction: Tensor, pictures: slice) -> Tensor:
        """Cross-entropy of the prompt among itself and its rivals, divided by the scale: (n, views), 0 at best.

        features: (n, views, D); near: their products (n, views) with direction (n, D). The prompt enters the softmax
        by its direction alone; a weighted one keeps its length as weight of the whole, as it has without rivals.
        """
        length = direction.norm(dim=-1, keepdim=True)
        near = near / length.clamp_min(1e-12)
        far = (features @ self.features.T).masked_fill(self.own[pictures, None], -torch.inf)
        everything = torch.cat([near[..., None], far], -1)
        soft = torch.logsumexp(everything * self.scale, -1) / self.scale
        return length * (soft - near)
