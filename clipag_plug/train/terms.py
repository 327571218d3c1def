"""The losses of a training step: small terms of one call shape, `term(features, targets)` -> a loss per image (N,)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import losses
from ..attacks import apgd, pgd
from ..attacks.pgd import BALLS, Ball, Range
from ..options.train import Train
from .matches import Matches
from .teachers import geometry

BLOCK = (
    2**20
)  # similarities of a loss alive at once, 4 MB a copy: memory does not grow with their number
ROWS = ("labels", "original", "clean", "bank_positives", "taught", "said")


@dataclass
class Targets:
    """What N images are compared with.

    text: features of M captions (M, D). positives: bool (N, M), or `Matches`, which caption describes which image.
    scale, bias: of the logits. options: the run's, for weights and kinds. first: row of `text` that is the first
    image's own caption.
    Of each image, where a term asks for it: labels (N,); features (N, D) by the initial tower (original), by the
    present one of the clean image (clean), by the teachers (taught); what an image teacher says (said); which texts of
    the bank describe it (bank_positives).
    Shared by all: prompts, unit features of the classes (C, D); bank, more texts (B, D), and taught_texts, those as
    the teachers know them; classes, texts of the image teacher's classes, or head, a map to its space; text_said, a
    text teacher's vectors of the captions (M, T), and text_head, a map to them.
    """

    text: Tensor
    positives: Tensor | Matches
    scale: Tensor
    options: Train = field(default_factory=Train)
    bias: Tensor | float = 0.0
    first: int = 0
    labels: Tensor | None = None
    original: Tensor | None = None
    clean: Tensor | None = None
    bank_positives: Tensor | None = None
    taught_texts: Tensor | None = None
    taught: Tensor | None = None
    said: Tensor | None = None
    prompts: Tensor | None = None
    bank: Tensor | None = None
    classes: Tensor | None = None
    head: nn.Module | None = None
    text_said: Tensor | None = None
    text_head: nn.Module | None = None

    def of(self, rows: slice) -> Targets:
        """Those of some of the images."""
        found = dataclasses.replace(self, positives=self.positives[rows], first=rows.start)
        for name in ROWS:
            value = getattr(self, name)
            setattr(found, name, None if value is None else value[rows])
        return found

    def get(self, name: str) -> Any:
        """A field that an objective needs; ValueError where the run has none."""
        if getattr(self, name) is None:
            raise ValueError(f"the objective needs {name!r} of every sample; this run has none")
        return getattr(self, name)

    def right(self, features: Tensor) -> Tensor:
        """Which images are told right, bool (N,): their class among the prompts, else a caption of theirs."""
        if self.prompts is not None:
            return losses.logits(features, self.prompts, 1.0).argmax(1).eq(self.get("labels"))
        best = losses.logits(features, self.text, 1.0).argmax(1)
        return self.positives[:].gather(1, best[:, None])[:, 0]

    def texts(self) -> Tensor:
        """What a distribution over texts is taken over: the class prompts, else the bank, else the captions."""
        return next(t for t in (self.prompts, self.bank, self.text) if t is not None)


def image_to_text(features: Tensor, t: Targets) -> Tensor:
    """The image half of the contrastive loss, the texts of the bank among its negatives."""
    text, positives = t.text, t.positives[:]
    if t.bank is not None:
        text = torch.cat([text, t.bank])
        positives = torch.cat([positives, t.get("bank_positives")], dim=1)
    return losses.image_to_text(features, text, t.scale, positives)


def sigmoid(features: Tensor, t: Targets) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1), summed over the texts of an image."""
    signs = 2.0 * t.positives[:].float() - 1
    return -F.logsigmoid(signs * (losses.logits(features, t.text, t.scale) + t.bias)).sum(1)


def cosine(features: Tensor, t: Targets) -> Tensor:
    """1 - cosine to the image's own caption."""
    return losses.cosine(features, t.text[t.first : t.first + len(features)])


def fare(features: Tensor, t: Targets) -> Tensor:
    """Squared distance to the initial tower's features of the clean image (FARE)."""
    return losses.fare(features, t.get("original"))


def kl(features: Tensor, t: Targets) -> Tensor:
    """KL(clean || attacked) over the texts (TRADES)."""
    return losses.trades(features, t.get("clean"), t.texts(), t.scale)


def tecoa(features: Tensor, t: Targets) -> Tensor:
    """Cross-entropy over the class prompts (TeCoA)."""
    return losses.tecoa(features, t.get("prompts"), t.get("labels"), t.scale)


def distil(features: Tensor, t: Targets) -> Tensor:
    """Cross-entropy with the teachers' distribution over the texts (Hinton et al. 2015)."""
    return losses.distillation(features, t.get("taught"), t.texts(), t.scale, t.taught_texts)


def image_teacher(features: Tensor, t: Targets) -> Tensor:
    """Learns what an image teacher says: its softmax (up to its entropy, a constant), or by distance its features."""
    said = t.get("said")
    mine = features if t.head is None else t.head(features)
    if t.options.image_teacher_loss == "features":
        return losses.fare(mine, said)
    if t.classes is not None:
        mine = losses.logits(features, t.classes, t.scale)
    return -(said.softmax(1) * mine.log_softmax(1)).sum(1)


Term = Callable[[Tensor, Targets], Tensor]
OBJECTIVES: dict[str, Term] = {
    "contrastive": image_to_text,
    "image_to_text": image_to_text,
    "sigmoid": sigmoid,
    "cosine": cosine,
    "fare": fare,
    "kl": kl,
    "tecoa": tecoa,
}
# Field of the targets that a term needs, option with its weight, the term: added where both are there.
EXTRA: tuple[tuple[str, str, Term], ...] = (
    ("taught", "distil", distil),
    ("said", "image_teacher_weight", image_teacher),
)


def extra(features: Tensor, t: Targets) -> Tensor | float:
    """The weighted terms beside the objective per image (N,), 0 without any."""
    total: Tensor | float = 0.0
    for needed, weight, term in EXTRA:
        if getattr(t, needed) is not None and getattr(t.options, weight):
            total = total + getattr(t.options, weight) * term(features, t)
    return total


def inner_loss(features: Tensor, t: Targets) -> Tensor:
    """What the attack raises: the inner objective and the extra terms per image (N,), or for the symmetric contrastive
    loss, whose text half is of no single image, their sum."""
    loss, more = OBJECTIVES[t.options.attack_objective](features, t), extra(features, t)
    if t.options.attack_objective != "contrastive":
        return loss + more
    half = losses.multi_positive(losses.logits(t.text, features, t.scale), t.positives[:].T)
    return (loss.sum() + half.sum()) / 2 + torch.as_tensor(more).sum()


def whole_batch(
    objective: str, features: Tensor, t: Targets, own: slice | None = None, more: bool = False
) -> Tensor:
    """The objective of all images together, a scalar; `contrastive` is symmetric here. more: with the extra terms.

    own: the rows (images, and texts where there is a text half) whose share of it is wanted: the shares of all
    workers add up to the whole. Rows are taken in blocks, each computed again on the way back.
    """
    own = slice(0, len(features)) if own is None else own
    # As `image_to_text` and `losses.contrastive` have it, but normalised once, not in every block.
    image, text = F.normalize(features, dim=-1), F.normalize(t.text, dim=-1)
    banked = None if t.bank is None else F.normalize(t.bank, dim=-1)

    def image_half(rows: slice) -> Tensor:
        scores, positives = t.scale * image[rows] @ text.T, t.positives[rows]
        if banked is not None:
            scores = torch.cat([scores, t.scale * image[rows] @ banked.T], dim=1)
            positives = torch.cat([positives, t.get("bank_positives")[rows]], dim=1)
        return losses.multi_positive(scores, positives)

    def text_half(rows: slice) -> Tensor:
        scores = t.scale * text[rows] @ image.T
        return losses.multi_positive(scores, t.positives[:, rows].T)

    def separate(rows: slice) -> Tensor:
        return OBJECTIVES[objective](features[rows], t.of(rows))

    def others(rows: slice) -> Tensor:
        return torch.as_tensor(extra(features[rows], t.of(rows)))

    contrastive = objective in ("contrastive", "image_to_text")
    total = sum_of_blocks(image_half if contrastive else separate, own, len(text))
    if objective == "contrastive":
        total = (total + sum_of_blocks(text_half, own, len(image))) / 2
    total = total / len(features)
    told = 0 if t.said is None else t.said.shape[1]
    told = max(told, 0 if t.taught is None else len(t.texts()))
    if more and told:
        total = total + sum_of_blocks(others, own, told) / len(features)
    return total


def sum_of_blocks(values: Callable[[slice], Tensor], own: slice, width: int) -> Tensor:
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


def outer_loss(features: list[Tensor], t: Targets, own: slice | None = None) -> Tensor:
    """The loss that the weights lower, a scalar. features: of the attacked images and, where it needs them, the clean.

    Plain: the objective of the attacked images. With `clean_weight` w: its mean with that of the clean ones, which
    count w. With `trades` b: that of the clean ones plus b * KL(clean || attacked) over the texts (Zhang et al. 2019).
    Under a text teacher the geometry of the captions is added. own: see `whole_batch`.
    """
    options, loss = t.options, whole_batch
    if len(features) == 1:
        total = loss(options.objective, features[0], t, own, more=True)
    elif options.trades:
        clean = loss(options.objective, features[1], t, own, more=True)
        compared = dataclasses.replace(t, clean=features[1])
        total = clean + options.trades * loss("kl", features[0], compared, own)
    else:
        clean, attacked = (loss(options.objective, f, t, own, more=True) for f in features[::-1])
        total = (attacked + options.clean_weight * clean) / (1 + options.clean_weight)
    if t.text_said is None:
        return total
    direct = t.options.text_teacher_loss == "cosine"
    said, mine = t.text_said, slice(0, len(t.text)) if own is None else own

    def geometry_of(rows: slice) -> Tensor:
        return geometry(t.text[rows], said[rows], t.text_head, (t.text, said), direct)

    told = sum_of_blocks(geometry_of, mine, len(t.text)) / len(t.text)
    return total + options.text_teacher_weight * told


def drawn_radii(norm: str, low: float, count: int, generator: torch.Generator) -> type[Ball]:
    """A ball for `count` images whose radii and steps are eps times a number of each image's own, from `low` to 1."""
    device = generator.device
    share = torch.empty(count, 1, 1, 1, device=device).uniform_(low, 1, generator=generator)

    base: Any = BALLS[norm]

    class Drawn(base):
        def __init__(self, eps: float, limits: Range) -> None:
            super().__init__(eps * share, limits)

        def normalise(self, gradient: Tensor) -> Tensor:
            return share * torch.as_tensor(super().normalise(gradient))

    return Drawn


def attack_images(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    t: Targets,
    eps: float,
    generator: torch.Generator,
    loss_scale: float = 1.0,
    std: Tensor | None = None,
) -> Tensor:
    """Adversarial images for a micro-batch, by PGD or APGD on the inner loss (supplement of CLIPAG, section 1.1).

    encode: images in [0, 1] -> features. The targets are constants: the attack never leaves its micro-batch.
    loss_scale: factor on the inner loss for number formats that need it; it changes no direction. std: (3, 1, 1), the
    normalisation's divisor where `eps` is in normalised units: the ball is then one of images / std.
    """
    options, unit = t.options, images.new_ones(3, 1, 1) if std is None else std

    def inner(x: Tensor) -> Tensor:
        return loss_scale * inner_loss(encode(x if std is None else x * unit), t)

    norm: str | type[Ball] = options.norm
    if options.eps_low < 1:
        norm = drawn_radii(options.norm, options.eps_low, len(images), generator)
    ball: dict[str, Any] = {
        "eps": eps,
        "norm": norm,
        "steps": options.attack_steps,
        "random_start": options.random_start,
        "generator": generator,
        "project_range": (0.0, 1.0) if std is None else (torch.zeros_like(unit), 1 / unit),
    }
    points = images if std is None else images / unit
    if options.attack == "apgd":
        found = apgd(inner, points, **ball)
    else:
        ball |= {"step_size": options.step_ratio * eps or None, "best": options.best}
        ball |= {"momentum": options.momentum}
        ball["normalised_velocity"] = options.momentum_form == "normalized"
        found = pgd(inner, points, **ball)
    return found if std is None else (found * unit).clamp_(0, 1)
