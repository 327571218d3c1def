"""Losses on features. Features are (N, D) and need not be normalised; every function normalises for itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1 - cosine similarity, per pair: (N, D), (N, D) or (1, D) -> (N,)."""
    return 1 - F.cosine_similarity(image_features, text_features, dim=-1)


def logits(image_features: Tensor, text_features: Tensor, scale: Tensor | float) -> Tensor:
    """Scaled cosine similarities (N, M) between images (N, D) and texts (M, D)."""
    return scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T


def multi_positive(scores: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each row of `scores` (N, M) against the uniform distribution over its positives.

    positives: bool (N, M). With one positive a row this is InfoNCE (van den Oord et al. 2018); with several it is
    the supervised form L_out of Khosla et al. 2020. A row without a positive contributes 0. Returns (N,).
    """
    weights = positives.to(scores.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
    return -(weights * scores.log_softmax(dim=1)).sum(dim=1)


def image_to_text(
    image_features: Tensor, text_features: Tensor, scale: Tensor | float, positives: Tensor
) -> Tensor:
    """The image half of the contrastive loss, per image (N,): what a per-sample attack can raise."""
    return multi_positive(logits(image_features, text_features, scale), positives)


def contrastive(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    positives: Tensor | None = None,
) -> Tensor:
    """CLIP's symmetric contrastive loss (Radford et al. 2021), a scalar.

    positives: bool (N, M), which text describes which image; None means that pair i is (image i, text i) and
    nothing else matches.
    """
    scores = logits(image_features, text_features, scale)
    if positives is None:
        positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return (
        multi_positive(scores, positives).mean() + multi_positive(scores.T, positives.T).mean()
    ) / 2


def tecoa(
    image_features: Tensor, prompt_features: Tensor, labels: Tensor, scale: Tensor | float
) -> Tensor:
    """Cross-entropy over class prompts (TeCoA, Mao et al. 2023), per image (N,). labels: int (N,)."""
    return F.cross_entropy(logits(image_features, prompt_features, scale), labels, reduction="none")


def fare(image_features: Tensor, original_features: Tensor) -> Tensor:
    """Squared L2 distance to the original model's clean features (FARE, Schlarmann et al. 2024), per image (N,).

    The features are raw: neither side is normalised.
    """
    return (image_features - original_features).square().sum(dim=-1)


def distillation(
    image_features: Tensor,
    teacher_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    teacher_texts: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of p(image) against p(teacher) over the texts (Hinton et al. 2015), per image (N,).

    p is the softmax over an image's scaled similarities to the texts (M, D); the teacher's, to `teacher_texts` (M, D)
    where its features of them are others, is a constant.
    """
    with torch.no_grad():
        known = text_features if teacher_texts is None else teacher_texts
        taught = logits(teacher_features, known, scale).softmax(dim=1)
    own = logits(image_features, text_features, scale).log_softmax(dim=1)
    return -(taught * own).sum(dim=1)


def trades(
    attacked_features: Tensor, clean_features: Tensor, text_features: Tensor, scale: Tensor | float
) -> Tensor:
    """KL(p(clean) || p(attacked)) over the texts (TRADES, Zhang et al. 2019, eq. 5), per image (N,).

    p is the softmax over an image's scaled similarities to the texts (M, D).
    """
    clean = logits(clean_features, text_features, scale).log_softmax(dim=1)
    attacked = logits(attacked_features, text_features, scale).log_softmax(dim=1)
    return (clean.exp() * (clean - attacked)).sum(dim=1)
