"""Losses of class scores that an attack raises: per sample, of logits (N, C) and labels (N,), shape (N,)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 1e-12  # added to the denominators: scores may tie


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true class."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): above 0 where the label is not the highest score.

    -(z_y - max_{i != y} z_i) / (z_1st - z_3rd), unchanged by shifting or scaling the scores. Raises ValueError for
    fewer than 3 classes.
    """
    _at_least(3, logits, "the DLR loss")
    top = logits.topk(3, dim=1).values
    own = _of(logits, labels)
    other = torch.where(logits.argmax(dim=1) == labels, top[:, 1], top[:, 0])
    return (other - own) / (top[:, 0] - top[:, 2] + LEAST)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR towards the classes `targets` (N,) (Croce & Hein 2020, eq. 7): above 0 where the target beats the label.

    -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2). Raises ValueError for fewer than 4 classes.
    """
    _at_least(4, logits, "the targeted DLR loss")
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_of(logits, targets) - _of(logits, labels)) / (spread + LEAST)


def likeliest_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` highest-scored classes that are not the label, best first, (N, count)."""
    if not 1 <= count < logits.shape[1]:
        raise ValueError(
            f"{count} target classes were asked for; with {logits.shape[1]} classes give 1 to {logits.shape[1] - 1}"
        )
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).topk(count, dim=1).indices


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _at_least(count: int, logits: Tensor, what: str) -> None:
    if logits.ndim != 2 or logits.shape[1] < count:
        raise ValueError(
            f"{what} needs scores (N, C) of at least {count} classes; got {tuple(logits.shape)}; use loss='ce'"
        )
