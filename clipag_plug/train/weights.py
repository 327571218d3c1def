"""What trains: the chosen parameters, their decay, their moving average, the frozen original."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..model import CLIP
from ..options.train import Train


def trained_weights(model: CLIP, options: Train) -> dict[str, torch.nn.Parameter]:
    """The parameters that train; every other one is frozen."""
    model.requires_grad_(False)
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if options.text == "train"
        or n.startswith("visual.")
        or (options.train_scale and n == "logit_scale")
    }
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def decay_groups(
    model: CLIP, weights: dict[str, torch.nn.Parameter], decay: float
) -> list[dict[str, Any]]:
    """Weight decay acts on matrices and kernels, not on gains, biases, scales and embeddings."""
    plain = [p for n, p in weights.items() if p.ndim < 2 or "embedding" in n]
    matrices = [p for n, p in weights.items() if not (p.ndim < 2 or "embedding" in n)]
    return [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def original_tower(model: CLIP) -> torch.nn.Module:
    """A frozen copy of the image tower as it is now: FARE's reference."""
    return copy.deepcopy(model.visual).eval().requires_grad_(False)


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], weights: dict[str, torch.nn.Parameter], decay: float, step: int
) -> None:
    """Moves the average towards the weights. It warms up: early weights are far from the end and must not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, weight in weights.items():
        average[name].lerp_(weight.detach(), 1 - decay)
