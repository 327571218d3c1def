"""The text tower's own training: captions of one class together, those of different classes apart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import losses
from ..model import CLIP
from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .teachers import TextTeacher, geometry
from .text import TextFeatures

SCALE = 20.0  # logit scale that the image tower starts with
SOFT_SCALE = (
    8.0  # of the spreading: the lower it is, the longer close classes go on repelling each other
)


def train_text(
    model: CLIP,
    vocabulary: Vocabulary,
    steps: int,
    *,
    lr: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the text tower alone and leaves it frozen, with the logit scale at `SCALE`.

    Each step writes two captions for every class, with names and templates drawn afresh, and sets them apart from
    those of other classes. A fresh text tower gives all
    captions nearly the same feature, and image and text towers that start together keep the classes in a few
    dimensions for a long time; spread apart first, the classes are as far from each other as a classifier's weights.
    """
    encode, rng = TextFeatures(model, trained=True), random.Random(seed)
    lower(model, lambda: spreading_loss(encode, vocabulary, rng), steps, lr, report)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))


def lower(
    model: CLIP,
    loss_of_step: Callable[[], Tensor],
    steps: int,
    lr: float,
    report: Callable[[int, float], None],
    more: Sequence[torch.nn.Parameter] = (),
) -> None:
    """Lowers a loss by the weights of the text tower alone, and leaves the model frozen.

    loss_of_step: the next step's loss, a scalar. lr: the peak, after 20 steps; then a cosine to zero. report hears
    each step and its loss.
    """
    weights = [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit_"))]
    weights += more
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(step, loss.item())
    model.requires_grad_(False)


def learn_geometry(
    model: CLIP,
    teacher: TextTeacher,
    texts: list[str],
    steps: int,
    *,
    linear: bool = True,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the text tower alone towards the geometry of a frozen encoder's vectors, and leaves it frozen.

    linear: by the cosine distance through a linear map that is thrown away afterwards; else by the matrices of cosine
    similarities of a batch. Raises ValueError without texts.
    """
    if not texts:
        raise ValueError(
            "--text-steps under --text-teacher needs texts; give --text-teacher-texts FILE with one a line"
        )
    encode, rng = TextFeatures(model, trained=True), random.Random(seed)
    head = None
    if linear:
        width = int(model.visual.output_dim)
        head = torch.nn.Linear(width, teacher.width, bias=False).to(model.logit_scale.device)

    def loss() -> Tensor:
        chosen = rng.sample(texts, min(batch, len(texts)))
        return geometry(encode(chosen), teacher(chosen), head).mean()

    lower(model, loss, steps, lr, report, [] if head is None else list(head.parameters()))


def spreading_loss(
    encode: Callable[[list[str]], Tensor], vocabulary: Vocabulary, rng: random.Random
) -> Tensor:
    """The contrastive loss between two captions of every class, plus the distance of every group word to its classes.

    A group word follows the mean of its classes, which are constants to it: pulled by their groups, classes of one
    group would end up close together, and a model could hardly tell them apart.
    """
    classes = range(len(vocabulary.names))
    first, second = (
        encode([_caption(vocabulary.sample_word(c, rng, 0.0), rng) for c in classes])
        for _ in range(2)
    )
    same = torch.eye(len(vocabulary.names), dtype=torch.bool, device=first.device)
    members = torch.zeros(len(vocabulary.groups), len(vocabulary.names), device=first.device)
    for row, group in enumerate(vocabulary.groups.values()):
        members[row, list(group)] = 1
    groups = encode([_caption(word, rng) for word in vocabulary.groups])
    means = members @ F.normalize(second.detach(), dim=-1)
    return losses.contrastive(first, second, SOFT_SCALE, same) + losses.cosine(groups, means).mean()


def _caption(word: str, rng: random.Random) -> str:
    return sentence(word, rng.choice(TEMPLATES))
