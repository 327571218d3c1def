"""Scores of single items as pure functions of logits, features and gradients; averaging is left to `statistics`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """How many other columns of `scores` (N, C) reach the one of `truth` (N,) or beat it: 0 is first. Shape (N,).

    Ties count against the item, so that a scorer which says the same of everything scores nothing.
    """
    own = scores.gather(1, truth[:, None])
    return (scores >= own).sum(dim=1) - 1


def top(scores: Tensor, truth: Tensor, k: int) -> Tensor:
    """1.0 where the true column of `scores` (N, C) is among the first `k`, else 0.0. Shape (N,)."""
    return (ranks(scores, truth) < k).float()


def r_precision(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1.0 where picture i ranks its own caption i first among all captions (VectorFusion, Jain et al. 2023). (N,).

    Features (N, D) need not be normalised. Chance is 1 / N.
    """
    scores = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    return top(scores, torch.arange(len(scores), device=scores.device), 1)


def recall(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """1.0 for each query (row) where a relevant column is among the first `k` of scores (Q, M). Shape (Q,).

    relevant: bool (Q, M), with at least one in a row. Irrelevant columns that tie with the best relevant one count as
    before it, so that a scorer which says the same of everything finds nothing.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return (((scores >= best) & ~relevant).sum(dim=1) < k).float()


def similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of picture i and caption i, (N, D), (N, D) -> (N,)."""
    return F.cosine_similarity(image_features, text_features, dim=-1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """z_a - log mean_{c != a} exp z_c: how far class a stands out of the others, in nats.

    logits (N, C), classes a (N, K) -> (N, K).
    """
    columns = []
    for chosen in classes.T:
        own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen[:, None], True)
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        count = torch.tensor(float(logits.shape[1] - 1), dtype=logits.dtype)
        columns.append(logits.gather(1, chosen[:, None])[:, 0] - others + count.log().to(others))
    return torch.stack(columns, dim=1)


def target_effect(before: Tensor, after: Tensor, targets: Tensor, controls: Tensor) -> Tensor:
    """Shuffle-corrected gain of the target's margin: what a perturbation adds to its own target, minus what it adds
    to targets that were not its own.

    before, after: judge's logits (N, C) of the pictures without and with the perturbation; targets (N,);
    controls (N, K), other classes for each picture. Returns nats, (N,).
    """
    own = margin(after, targets[:, None]) - margin(before, targets[:, None])
    others = margin(after, controls) - margin(before, controls)
    return own[:, 0] - others.mean(dim=1)


def shuffled_targets(targets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row `count` targets (N, count) of other rows, never its own class.

    Drawn from the targets in use, so that what the attack does to every one of them alike cancels.
    """
    if len(targets.unique()) < 2:
        raise ValueError("all targets are one class; a control needs at least two")
    drawn = torch.randint(len(targets), (len(targets), count), generator=generator)
    while True:
        clash = targets[drawn] == targets[:, None]
        if not clash.any():
            return targets[drawn]
        again = torch.randint(len(targets), (int(clash.sum()),), generator=generator)
        drawn[clash] = again


def inside(gradients: Tensor, masks: Tensor) -> Tensor:
    """Share of the squared gradient (N, 3, H, W) that lies inside the masks (N, 1, H, W). Shape (N,)."""
    energy = gradients.square().sum(dim=1, keepdim=True)
    return (energy * masks).sum((1, 2, 3)) / energy.sum((1, 2, 3)).clamp_min(1e-30)
