"""A CLIP as a classifier over class prompts, and as the independent judge of pictures that others made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model import CLIP
from ..train.evaluate import PROMPTS
from ..train.text import TextFeatures
from ..vocabulary import sentence

BATCH = 256


class Classifier:
    """Zero-shot classification: logits are scaled cosines to the mean unit feature of each class's prompts."""

    def __init__(
        self, model: CLIP, classes: Sequence[str], templates: Sequence[str] = PROMPTS
    ) -> None:
        self.model, self.classes = model.eval(), list(classes)
        self._texts = TextFeatures(model, trained=False)
        with torch.no_grad():
            prompts = [
                self.texts([sentence(name, form) for name in self.classes]) for form in templates
            ]
            self.prompts = F.normalize(torch.stack(prompts).mean(0), dim=-1)
            self.scale = float(model.logit_scale.exp())

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (M, D) of texts."""
        return F.normalize(self._texts(list(texts)).float(), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Unit features (N, D) of images in [0, 1]; differentiable."""
        return F.normalize(self.model.encode_image(self.model.normalize(images)).float(), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, C) of images in [0, 1]; differentiable."""
        return self.scale * self.features(images) @ self.prompts.T


class Judge(Classifier):
    """Looks at finished pictures, in batches and without gradients: it must never steer."""

    def __init__(self, model: CLIP, name: str, classes: Sequence[str]) -> None:
        super().__init__(model, classes)
        self.name = name
        self.side = int(model.visual.input_resolution)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Unit features (N, D) on the CPU."""
        device = self.prompts.device
        parts = [super(Judge, self).features(part.to(device)) for part in images.split(BATCH)]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, C) on the CPU."""
        return self.scale * self.features(images) @ self.prompts.cpu().T
