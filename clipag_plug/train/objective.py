"""The losses of a training step: the inner one that the attack raises and the outer one that the weights lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..apgd import apgd
from ..attacks import pgd
from ..options.train import Train


@dataclass
class Targets:
    """What the images of a micro-batch are compared with.

    text: text features (M, D); positives: bool (N, M); scale: logit scale; original: the initial model's features
    of the clean images (N, D), only where the objective asks for them; labels (N,) and prompts (C, D) likewise.
    bank, bank_positives: more texts (B, D) that the image-to-text half sees, and which describe which image (N, B).
    """

    text: Tensor
    positives: Tensor
    scale: Tensor
    original: Tensor | None = None
    labels: Tensor | None = None
    prompts: Tensor | None = None
    bank: Tensor | None = None
    bank_positives: Tensor | None = None


def per_image(objective: str, features: Tensor, targets: Targets) -> Tensor:
    """The objective per image (N,): what an attack on single images can raise."""
    if objective in ("contrastive", "image_to_text"):
        return _image_to_text(features, targets)
    if objective == "cosine":
        return losses.cosine(features, targets.text)  # row i is image i's own caption
    if objective == "fare":
        return losses.fare(
            features, _given(targets.original, "fare", "the initial model's features")
        )
    labels = _given(targets.labels, "tecoa", "a class for every sample")
    return losses.tecoa(
        features, _given(targets.prompts, "tecoa", "class prompts"), labels, targets.scale
    )


def whole_batch(objective: str, features: Tensor, targets: Targets) -> Tensor:
    """The objective of all images together, a scalar; `contrastive` is symmetric here."""
    if objective == "contrastive":
        scores = losses.logits(targets.text, features, targets.scale)
        text_half = losses.multi_positive(scores, targets.positives.T).mean()
        return (_image_to_text(features, targets).mean() + text_half) / 2
    return per_image(objective, features, targets).mean()


def outer_loss(features: list[Tensor], targets: Targets, options: Train) -> Tensor:
    """The loss that the weights lower, a scalar. features: of the attacked images and, where it needs them, the clean.

    Plain: the objective of the attacked images. With `clean_weight` w: its mean with that of the clean ones, which
    count w. With `trades` b: that of the clean ones plus b * KL(clean || attacked) over the texts (Zhang et al. 2019).
    """
    attacked = features[0]
    if len(features) == 1:
        return whole_batch(options.objective, attacked, targets)
    clean_loss = whole_batch(options.objective, features[1], targets)
    if options.trades:
        text = targets.text if targets.prompts is None else targets.prompts
        text = text if targets.bank is None else targets.bank
        gap = losses.trades(attacked, features[1], text, targets.scale).mean()
        return clean_loss + options.trades * gap
    weight = options.clean_weight
    return (whole_batch(options.objective, attacked, targets) + weight * clean_loss) / (1 + weight)


def attack_images(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Targets,
    options: Train,
    eps: float,
    generator: torch.Generator,
    loss_scale: float = 1.0,
) -> Tensor:
    """Adversarial images for a micro-batch, by PGD or APGD on the inner objective (supplement of CLIPAG, section 1.1).

    encode: images in [0, 1] -> features. The targets are constants: the attack never leaves its micro-batch.
    loss_scale: factor on the inner loss for number formats that need it; it changes no direction.
    """

    def inner(x: Tensor) -> Tensor:
        return loss_scale * per_image(options.attack_objective, encode(x), targets)

    ball: dict[str, Any] = {
        "eps": eps,
        "norm": options.norm,
        "steps": options.attack_steps,
        "random_start": options.random_start,
        "generator": generator,
    }
    if options.attack == "apgd":
        return apgd(inner, images, **ball)
    return pgd(
        inner,
        images,
        step_size=options.step_ratio * eps or None,
        momentum=options.momentum,
        best=options.best,
        **ball,
    )


def _image_to_text(features: Tensor, targets: Targets) -> Tensor:
    """The image half of the contrastive loss against the batch's texts and, where there is one, the bank's."""
    text, positives = targets.text, targets.positives
    if targets.bank is not None and targets.bank_positives is not None:
        text = torch.cat([text, targets.bank])
        positives = torch.cat([positives, targets.bank_positives], dim=1)
    return losses.image_to_text(features, text, targets.scale, positives)


def _given(value: Tensor | None, objective: str, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"objective {objective!r} needs {what}; this run has none")
    return value
