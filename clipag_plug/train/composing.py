"""Teaches a text tower what a caption of several parts means, from the features that it gives to the parts."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import losses
from ..losses.attributes import ATTRIBUTES, KINDS
from ..model import CLIP
from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .text import TextFeatures
from .textual import lower

WEIGHT = 0.7  # of an attribute's direction beside the subject's unit feature
RELATIONS = ("and", "on", "in", "with", "next to", "in front of", "over", "near", "under", "behind")


def teach_compositions(
    model: CLIP,
    vocabulary: Vocabulary,
    steps: int,
    *,
    lr: float = 3e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the text tower alone, towards the features that compositions should have, and leaves it frozen.

    A caption of two subjects gets the sum of their unit features, one with an attribute the subject's plus a
    direction of the attribute, where no subject has anything; captions of one subject keep what they have. So image
    towers that know the subjects go on knowing them, and composing is not left to chance.
    Raises ValueError for a text tower without a last matrix or with too few dimensions.
    """
    words = vocabulary.words
    kept = _Kept(model, words)
    plain = kept.of([(word, "a {}") for word in words])
    projection = model.text_projection
    if not isinstance(projection, Tensor):
        raise ValueError("the lesson needs a text tower that ends in a matrix; this one does not")
    directions = free_directions(plain, projection.detach(), len(ATTRIBUTES))
    encode, rng = TextFeatures(model, trained=True), random.Random(seed)

    def loss() -> Tensor:
        texts, aims = lesson(words, kept, directions, rng)
        return losses.cosine(encode(texts), aims).mean()

    lower(model, loss, steps, lr, report)


class _Kept:
    """Unit features of plain captions as the tower gives them before its lesson."""

    def __init__(self, model: CLIP, words: list[str]) -> None:
        encode = TextFeatures(model, trained=False)
        self.rows = {
            (w, t): row for row, (w, t) in enumerate((w, t) for w in words for t in TEMPLATES)
        }
        self.features = F.normalize(encode([sentence(w, t) for w, t in self.rows]), dim=-1)

    def of(self, captions: list[tuple[str, str]]) -> Tensor:
        """(N, D) for words and templates."""
        return self.features[[self.rows[caption] for caption in captions]]


def free_directions(features: Tensor, projection: Tensor, count: int) -> Tensor:
    """Orthonormal directions (count, D) that the tower can reach and in which the unit features (N, D) have least.

    projection (W, D): the tower's last matrix; a tower narrower than its features reaches W of D dimensions alone.
    Raises ValueError where that are fewer than `count`.
    """
    reach = torch.linalg.qr(projection.double().T).Q  # (D, min(W, D))
    if count > reach.shape[1]:
        raise ValueError(f"{count} directions asked for; the text tower reaches {reach.shape[1]}")
    inside = features.double() @ reach
    vectors = torch.linalg.eigh(inside.T @ inside).eigenvectors  # ascending
    return (reach @ vectors[:, :count]).T.to(features)


def lesson(
    words: list[str], kept: _Kept, directions: Tensor, rng: random.Random, size: int = 64
) -> tuple[list[str], Tensor]:
    """Captions and the features that they should have: 2 `size` of one subject, `size` each with an attribute of its
    own, with one of its background besides, and of two subjects."""
    plain = [(rng.choice(words), rng.choice(TEMPLATES)) for _ in range(2 * size)]
    texts, aims = [sentence(w, t) for w, t in plain], [kept.of(plain)]
    described = [rng.choice(words) for _ in range(2 * size)]
    marks = torch.zeros(len(described), len(directions), device=directions.device)
    for place, word in enumerate(described):
        attribute = rng.randrange(len(ATTRIBUTES))
        marks[place, attribute] = WEIGHT
        if place < size:
            texts.append(ATTRIBUTES[attribute].caption(word, rng))
            continue
        subject, background = (
            rng.randrange(KINDS[0].stop),
            rng.randrange(KINDS[1].start, KINDS[1].stop),
        )
        marks[place] = 0
        marks[place, [subject, background]] = WEIGHT
        texts.append(ATTRIBUTES[background].caption(f"{ATTRIBUTES[subject].name} {word}", rng))
    aims.append(kept.of([(word, "a {}") for word in described]) + marks @ directions)
    pairs = [(rng.choice(words), rng.choice(words)) for _ in range(size)]
    for first, second in pairs:
        relation = rng.choice(RELATIONS)
        texts.append(
            f"{sentence(first, rng.choice(TEMPLATES))} {relation} {sentence(second, 'a {}')}"
        )
    ends = [kept.of([(pair[side], "a {}") for pair in pairs]) for side in (0, 1)]
    aims.append(ends[0] + ends[1])
    return texts, torch.cat(aims)
