"""The losses of a training step: the inner one that the attack raises and the outer one that the weights lower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import losses
from ..attacks import pgd
from ..attacks.apgd import apgd
from ..options.train import Train
from .described import Described
from .matches import Matches
from .teachers import Taught, geometry

# Similarities of a loss that are alive at once, 4 MB a copy: memory does not grow with their number.
BLOCK = 2**20


@dataclass
class Targets:
    """What images are compared with.

    text: text features (M, D); positives: bool (N, M), or `Matches`; scale: logit scale; original: the initial model's
    features of the clean images (N, D), only where the objective asks for them; so labels (N,) and prompts (C, D).
    bank, bank_positives: more texts (B, D) that the image-to-text half sees, and which describe which image (N, B).
    clean: the present model's features of the clean images (N, D), for "kl". first: row of `text` that is the
    first image's own caption. described: what else is to be told of the images. distil: weight of what `original`,
    then the teachers' features, says of the images. taught: what an image teacher says of them. said: a text
    teacher's vectors (M, T) of the texts, learned with `text_weight`, through `text_head` where there is one.
    """

    text: Tensor
    positives: Tensor | Matches
    scale: Tensor
    original: Tensor | None = None
    labels: Tensor | None = None
    prompts: Tensor | None = None
    bank: Tensor | None = None
    bank_positives: Tensor | None = None
    clean: Tensor | None = None
    first: int = 0
    described: Described | None = None
    distil: float = 0.0
    taught: Taught | None = None
    said: Tensor | None = None
    text_head: torch.nn.Module | None = None
    text_weight: float = 0.0

    def of(self, rows: slice) -> Targets:
        """Those of some of the images."""
        found = dataclasses.replace(self, positives=self.positives[rows], first=rows.start)
        for name in ("original", "labels", "bank_positives", "clean", "described", "taught"):
            value = getattr(self, name)
            setattr(found, name, None if value is None else value[rows])
        return found

    def texts(self) -> Tensor:
        """What a distribution over texts is taken over: the class prompts, else the bank, else the captions."""
        return next(t for t in (self.prompts, self.bank, self.text) if t is not None)

    def telling(self, features: Tensor) -> Tensor | float:
        """The losses of `described` and of `distil` per image (N,), 0 without them."""
        told: Tensor | float = 0.0
        for term in (self.described, self.taught):
            told = told if term is None else told + term.loss(features, self.scale)
        if not self.distil or self.original is None:
            return told
        taught = losses.distillation(features, self.original, self.texts(), self.scale)
        return told + self.distil * taught

    def width(self) -> int:
        """Numbers an image that `telling` makes; 0 where there is nothing to tell."""
        told = 0 if self.described is None else self.described.captions[0].numel()
        taught = 0 if self.taught is None else self.taught.width
        return max(told, taught, len(self.texts()) if self.distil else 0)


def per_image(objective: str, features: Tensor, targets: Targets) -> Tensor:
    """The objective per image (N,): what an attack on single images can raise."""
    if objective in ("contrastive", "image_to_text"):
        return _image_to_text(features, targets)
    if objective == "cosine":  # row i is image i's own caption
        return losses.cosine(features, targets.text[targets.first : targets.first + len(features)])
    if objective == "fare":
        return losses.fare(
            features, _given(targets.original, "fare", "the initial model's features")
        )
    if objective == "kl":
        clean = _given(targets.clean, "kl", "features of the clean images")
        return losses.trades(features, clean, targets.texts(), targets.scale)
    labels = _given(targets.labels, "tecoa", "a class for every sample")
    return losses.tecoa(
        features, _given(targets.prompts, "tecoa", "class prompts"), labels, targets.scale
    )


def whole_batch(
    objective: str, features: Tensor, targets: Targets, own: slice | None = None
) -> Tensor:
    """The objective of all images together, a scalar; `contrastive` is symmetric here.

    own: the rows (images, and texts where there is a text half) whose share of it is wanted: the shares of all
    workers add up to the whole. Rows are taken in blocks, each computed again on the way back.
    """
    own = slice(0, len(features)) if own is None else own
    if objective not in ("contrastive", "image_to_text"):

        def separate(rows: slice) -> Tensor:
            return per_image(objective, features[rows], targets.of(rows))

        return _sum_of_blocks(separate, own, len(targets.text)) / len(features)
    # As `per_image` and `losses.contrastive` have it, but normalised once, not in every block.
    image, text = F.normalize(features, dim=-1), F.normalize(targets.text, dim=-1)
    banked = None if targets.bank is None else F.normalize(targets.bank, dim=-1)

    def image_half(rows: slice) -> Tensor:
        scores, positives = targets.scale * image[rows] @ text.T, targets.positives[rows]
        if banked is not None and targets.bank_positives is not None:
            scores = torch.cat([scores, targets.scale * image[rows] @ banked.T], dim=1)
            positives = torch.cat([positives, targets.bank_positives[rows]], dim=1)
        return losses.multi_positive(scores, positives)

    def text_half(rows: slice) -> Tensor:
        scores = targets.scale * text[rows] @ image.T
        return losses.multi_positive(scores, targets.positives[:, rows].T)

    total = _sum_of_blocks(image_half, own, len(text))
    if objective == "contrastive":
        total = (total + _sum_of_blocks(text_half, own, len(image))) / 2
    return total / len(features)


def _sum_of_blocks(values: Callable[[slice], Tensor], own: slice, width: int) -> Tensor:
    """The sum of `values` over the rows `own`, for which a matrix of so many rows and `width` columns is made."""
    size = max(1, BLOCK // max(1, width))
    blocks = [slice(at, min(at + size, own.stop)) for at in range(own.start, own.stop, size)]
    if len(blocks) == 1:
        return values(blocks[0]).sum()
    sums = [
        checkpoint(lambda b=b: values(b).sum(), use_reentrant=False, preserve_rng_state=False)
        for b in blocks
    ]
    return torch.stack(sums).sum()


def outer_loss(
    features: list[Tensor], targets: Targets, options: Train, own: slice | None = None
) -> Tensor:
    """The loss that the weights lower, a scalar. features: of the attacked images and, where it needs them, the clean.

    Plain: the objective of the attacked images. With `clean_weight` w: its mean with that of the clean ones, which
    count w. With `trades` b: that of the clean ones plus b * KL(clean || attacked) over the texts (Zhang et al. 2019).
    own: see `whole_batch`.
    """
    loss = _image_loss(features, targets, options, own)
    if targets.said is None:
        return loss
    text, said = targets.text, targets.said
    mine = slice(0, len(text)) if own is None else own

    def geometry_of(rows: slice) -> Tensor:
        return geometry(text[rows], said[rows], targets.text_head, (text, said))

    told = _sum_of_blocks(geometry_of, mine, len(text)) / len(text)
    return loss + targets.text_weight * told


def _image_loss(
    features: list[Tensor], targets: Targets, options: Train, own: slice | None
) -> Tensor:
    attacked = features[0]
    if len(features) == 1:
        return _told(options.objective, attacked, targets, own)
    clean_loss = _told(options.objective, features[1], targets, own)
    if options.trades:
        compared = dataclasses.replace(targets, clean=features[1])
        return clean_loss + options.trades * whole_batch("kl", attacked, compared, own)
    weight = options.clean_weight
    attacked_loss = _told(options.objective, attacked, targets, own)
    return (attacked_loss + weight * clean_loss) / (1 + weight)


def _told(objective: str, features: Tensor, targets: Targets, own: slice | None) -> Tensor:
    """The objective of all images together and what is told of them besides; see `whole_batch`."""
    loss = whole_batch(objective, features, targets, own)
    if not (width := targets.width()):
        return loss
    mine = slice(0, len(features)) if own is None else own

    def told(rows: slice) -> Tensor:
        return torch.as_tensor(targets.of(rows).telling(features[rows]))

    return loss + _sum_of_blocks(told, mine, width) / len(features)


def attack_images(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Targets,
    options: Train,
    eps: float,
    generator: torch.Generator,
    loss_scale: float = 1.0,
    std: Tensor | None = None,
) -> Tensor:
    """Adversarial images for a micro-batch, by PGD or APGD on the inner objective (supplement of CLIPAG, section 1.1).

    encode: images in [0, 1] -> features. The targets are constants: the attack never leaves its micro-batch.
    loss_scale: factor on the inner loss for number formats that need it; it changes no direction. std: (3, 1, 1), the
    normalisation's divisor where `eps` is in normalised units: the ball is then one of images / std.
    """
    unit = images.new_ones(3, 1, 1) if std is None else std

    def inner(x: Tensor) -> Tensor:
        x = x if std is None else x * unit
        features = encode(x)
        loss = per_image(options.attack_objective, features, targets)
        return loss_scale * (loss + targets.telling(features))

    ball: dict[str, Any] = {
        "eps": eps,
        "norm": options.norm,
        "steps": options.attack_steps,
        "random_start": options.random_start,
        "generator": generator,
        "project_range": (0.0, 1.0) if std is None else (torch.zeros_like(unit), 1 / unit),
    }
    points = images if std is None else images / unit
    if options.attack == "apgd":
        found = apgd(inner, points, **ball)
    else:
        found = pgd(
            inner,
            points,
            step_size=options.step_ratio * eps or None,
            momentum=options.momentum,
            best=options.best,
            **ball,
        )
    return found if std is None else (found * unit).clamp_(0, 1)


def _image_to_text(features: Tensor, targets: Targets) -> Tensor:
    """The image half of the contrastive loss against the batch's texts and, where there is one, the bank's."""
    text, positives = targets.text, targets.positives[:]
    if targets.bank is not None and targets.bank_positives is not None:
        text = torch.cat([text, targets.bank])
        positives = torch.cat([positives, targets.bank_positives], dim=1)
    return losses.image_to_text(features, text, targets.scale, positives)


def _given(value: Tensor | None, objective: str, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"objective {objective!r} needs {what}; this run has none")
    return value
