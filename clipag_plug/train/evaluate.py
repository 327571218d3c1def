"""Held-out accuracy during training: zero-shot top-1 over the vocabulary's classes, clean and under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attacks import pgd
from ..model import CLIP
from ..vocabulary import Vocabulary, sentence
from .data import Photos
from .text import TextFeatures

PROMPTS = ("a photo of a {}", "a picture of a {}", "an image of a {}", "{}")


@dataclass
class Evaluation:
    """Shares of `images` held-out images that are classified correctly, in [0, 1]."""

    clean: float
    robust: float
    images: int


class ZeroShot:
    """Top-1 accuracy of a model on held-out photographs, clean and under PGD of the given ball.

    The images are resized to `size` beforehand; `eps` is in the units of images of that size.
    """

    def __init__(
        self,
        photos: Photos,
        vocabulary: Vocabulary,
        size: int,
        eps: float,
        norm: str,
        count: int,
        steps: int = 10,
        batch_size: int = 250,
    ) -> None:
        self.photos, self.vocabulary, self.size = photos, vocabulary, size
        self.eps, self.norm, self.steps = eps, norm, steps
        self.count, self.batch_size = min(count, len(photos)), batch_size

    def __call__(self, model: CLIP) -> Evaluation:
        was_training = model.training
        model.eval()
        prompts = class_prompts(model, self.vocabulary)
        device = prompts.device
        clean = robust = 0
        for start in range(0, self.count, self.batch_size):
            rows = torch.arange(start, min(start + self.batch_size, self.count))
            images = resized(self.photos.select(rows), self.size).to(device)
            labels = self.photos.labels[rows].to(device)

            def scores(x: Tensor) -> Tensor:
                return F.normalize(model.encode_image(model.normalize(x)), dim=-1) @ prompts.T

            with torch.no_grad():
                clean += int((scores(images).argmax(1) == labels).sum())
            attacked = pgd(
                lambda x, y=labels: F.cross_entropy(100 * scores(x), y, reduction="none"),  # type: ignore[misc]
                images,
                eps=self.eps,
                norm=self.norm,
                steps=self.steps,
            )
            with torch.no_grad():
                robust += int((scores(attacked).argmax(1) == labels).sum())
        model.train(was_training)
        return Evaluation(clean / self.count, robust / self.count, self.count)


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) at another side: exact area averages when it shrinks, bilinear when it grows."""
    if size <= images.shape[-1]:
        return F.interpolate(images, size=(size, size), mode="area")
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def class_prompts(model: CLIP, vocabulary: Vocabulary) -> Tensor:
    """Unit features (C, D) of the classes: the mean over prompts of the unit text features (prompt ensembling)."""
    encode = TextFeatures(model, trained=False)
    names = vocabulary.class_names
    means = torch.stack(
        [F.normalize(encode([sentence(n, t) for n in names]), dim=-1) for t in PROMPTS]
    ).mean(0)
    return F.normalize(means, dim=-1)
