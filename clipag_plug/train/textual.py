"""The text tower's own training: captions of one class together, captions of different classes apart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from .. import losses
from ..model import CLIP
from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .text import TextFeatures

SCALE = 20.0


def train_text(
    model: CLIP,
    vocabulary: Vocabulary,
    steps: int,
    *,
    lr: float = 2e-3,
    group_share: float = 0.03,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the text tower alone and leaves it frozen, with the logit scale at `SCALE`.

    Each step writes two captions for every class, with words and templates drawn afresh; those whose words share a
    class are positives of the multi-positive contrastive loss (Khosla et al. 2020). A fresh text tower gives all
    captions nearly the same feature, and image and text towers that start together keep the classes in a few
    dimensions for a long time; spread apart first, the classes are as far from each other as a classifier's weights.
    """
    weights = [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit_"))]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    encode = TextFeatures(model, trained=True)
    rng = random.Random(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = pair_loss(encode, vocabulary, group_share, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(step, loss.item())
    model.requires_grad_(False)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))


def pair_loss(
    encode: Callable[[list[str]], Tensor],
    vocabulary: Vocabulary,
    group_share: float,
    rng: random.Random,
) -> Tensor:
    """The contrastive loss between two sets of captions, one caption of each class in either set."""
    draws = [[vocabulary.sample_word(c, rng, group_share) for c in range(len(vocabulary.names))]
             for _ in range(2)]  # fmt: skip
    first, second = (
        encode([sentence(word, rng.choice(TEMPLATES)) for word in words]) for words in draws
    )
    a, b = (_covers(vocabulary, words).to(first.device) for words in draws)
    return losses.contrastive(first, second, SCALE, (a @ b.T) > 0)


def _covers(vocabulary: Vocabulary, words: list[str]) -> Tensor:
    table = torch.zeros(len(words), len(vocabulary.names))
    for row, word in enumerate(words):
        table[row, list(vocabulary.cover[word])] = 1
    return table
