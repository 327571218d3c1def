"""Held-out numbers during training: zero-shot accuracy, contrastive loss and retrieval, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import losses
from ..attacks import pgd
from ..model import CLIP
from ..vocabulary import PROMPTS, sentence
from .data import Photos
from .distributed import Workers
from .lessons import TextFeatures
from .teachers import TextTeacher


class Validation:
    """A model's shares and losses on a random sample of held-out images, clean and under PGD of the given ball.

    Args:
        photos: held-out samples. With captions they give the loss and retrieval, with classes zero-shot accuracy.
        names: a name for each class; empty without classes.
        size: side the images are brought to beforehand; eps is in the units of images of that size.
        count: images to draw; each worker evaluates its share of them.
    Raises: ValueError where samples have neither captions nor classes, or a class is missing or out of range.
    """

    def __init__(
        self,
        photos: Photos,
        names: Sequence[str],
        size: int,
        eps: float,
        norm: str,
        count: int = 1000,
        *,
        prompts: Sequence[str] = PROMPTS,
        steps: int = 10,
        batch_size: int = 250,
        seed: int = 0,
        workers: Workers | None = None,
    ) -> None:
        self.photos, self.names, self.prompts, self.size = photos, list(names), prompts, size
        self.eps, self.norm, self.steps, self.batch_size = eps, norm, steps, batch_size
        self.workers = workers or Workers()
        order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed))
        count = min(count, len(photos)) // self.workers.size * self.workers.size
        self.rows = order[:count][self.workers.rank :: self.workers.size]
        self.captioned = all(photos.texts)
        wrong = (photos.labels < 0) | (photos.labels >= len(self.names))
        if names and bool(wrong.any()):
            raise ValueError(
                f"{int(wrong.sum())} of {len(photos)} samples of --validation have no class below {len(names)}, as "
                f"{photos.labels[wrong][0]}; give KEY.cls, class folders or another --class-names"
            )
        if not names and not self.captioned:
            raise ValueError("--validation has neither captions nor classes with names")

    def __call__(self, model: CLIP) -> dict[str, float]:
        """`clean` and `robust` top-1, `loss` and recall at 1 and 5 in both directions; `_attacked` behind a name."""
        was_training, found = model.training, {"images": float(len(self.rows) * self.workers.size)}
        model.eval()
        device = model.logit_scale.device
        if self.names:
            prompts = class_prompts(model, self.names, self.prompts)
            labels = self.photos.labels[self.rows].to(device)
            one = F.one_hot(labels, len(self.names)).bool()
            for name, features in self._features(model, prompts, one).items():
                right = ((features @ prompts.T).argmax(1) == labels).sum().float()
                key = "robust" if name else "clean"
                found[key] = float(self.workers.sum(right)) / found["images"]
        if self.captioned:
            texts = [self.photos.texts[int(row)] for row in self.rows]
            whole = self.workers.lists(texts)
            encoded = F.normalize(TextFeatures(model, trained=False)(whole), dim=-1)
            same = torch.tensor([[a == b for b in whole] for a in texts], device=device)
            everyone = self.workers.all(same)
            for name, features in self._features(model, encoded, same).items():
                scores = self.workers.all(features) @ encoded.T
                scale = model.logit_scale.detach().exp()
                sides = ((scores, everyone), (scores.T, everyone.T))
                both = [losses.multi_positive(scale * s, p).mean() for s, p in sides]
                found[f"loss{name}"] = float(sum(both)) / 2
                for way, (s, p) in zip(("image_to_text", "text_to_image"), sides, strict=True):
                    for k in (1, 5):
                        top = s.topk(min(k, s.shape[1])).indices
                        found[f"{way}_{k}{name}"] = float(p.gather(1, top).any(1).float().mean())
        model.train(was_training)
        return found

    def _features(self, model: CLIP, texts: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """This worker's unit image features, clean ("") and attacked away from their texts."""
        found: dict[str, list[Tensor]] = {"": [], "_attacked": []}

        def encode(images: Tensor) -> Tensor:
            return F.normalize(model.encode_image(model.normalize(images)).float(), dim=-1)

        for start in range(0, len(self.rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            images = resized(self.photos.select(self.rows[part]), self.size).to(texts.device)
            wanted = positives[part]
            attacked = pgd(
                lambda x, y=wanted: losses.multi_positive(100 * encode(x) @ texts.T, y),  # type: ignore[misc]
                images,
                eps=self.eps,
                norm=self.norm,
                steps=self.steps,
            )
            with torch.no_grad():
                for name, each in zip(found, (images, attacked), strict=True):
                    found[name].append(encode(each))
        return {name: torch.cat(parts) for name, parts in found.items()}


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) at another side: exact area averages when it shrinks, bilinear when it grows."""
    if size <= images.shape[-1]:
        return F.interpolate(images, size=(size, size), mode="area")
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def class_prompts(
    model: CLIP,
    names: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    articles: bool = True,
    stored: TextTeacher | None = None,
) -> Tensor:
    """Unit features (C, D) of the classes: the mean over prompts of the unit text features (prompt ensembling).

    articles: "an orange" where the prompt has "a {}". stored: features in place of the text tower's."""
    encode = TextFeatures(model, trained=False, stored=stored)
    fill = sentence if articles else _plain
    each = [F.normalize(encode([fill(n, t) for n in names]), dim=-1) for t in prompts]
    return F.normalize(torch.stack(each).mean(0), dim=-1)


def _plain(word: str, template: str) -> str:
    return template.format(word)
