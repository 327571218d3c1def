"""The attack of equation (1) in CLIPAG's supplement: away from a text, towards its negation."""

from __future__ import annotations

from torch import Tensor

from .. import losses
from ..attacks import pgd
from ..guide import Guide

EPS = 8 / 255
STEP_SIZE = 1 / 255
STEPS = 20


def negation_attack(
    guide: Guide,
    images: Tensor,
    texts: Tensor,
    negations: Tensor,
    *,
    eps: float = EPS,
    norm: str = "linf",
    steps: int = STEPS,
    step_size: float | None = STEP_SIZE,
) -> Tensor:
    """Equation (1) of Ganz & Elad 2024 (supplement): PGD on L_SIM(x, t) - L_SIM(x, not t).

    L_SIM is the cosine loss, so raising the difference drives an image from its text to the
    negation of it. images: (N, 3, side, side) in [0, 1]; texts, negations: (N, D) or (1, D)
    features. The defaults are the paper's. Returns images within `eps`.
    """

    def loss(x: Tensor) -> Tensor:
        features = guide.features(x)
        return losses.cosine(features, texts) - losses.cosine(features, negations)

    return pgd(loss, images, eps=eps, norm=norm, steps=steps, step_size=step_size)
