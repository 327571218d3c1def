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
    groups = options.lock_image_unlocked_groups
    image = {id(p) for p in model.visual.parameters()}
    if options.image == "frozen":
        image = _unlocked(model.visual, groups) if groups else set()
        model.requires_grad_(False)
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if (n.startswith("visual.") and id(p) in image)
        or (not n.startswith("visual.") and options.text == "train")
        or (options.train_scale and n == "logit_scale")
    }
    if not chosen:
        raise ValueError("nothing trains: --image and --text are both frozen; take --text train")
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _unlocked(visual: Any, groups: int) -> set[int]:
    """Ids of the parameters of the last groups of layers: as open_clip's tower locks itself where it can, else of its
    parts in order, a sequence counting as so many parts."""
    visual.requires_grad_(True)
    try:
        visual.lock(groups)
        return {id(p) for p in visual.parameters() if p.requires_grad}
    except (AttributeError, AssertionError):  # no tower of open_clip's, or its ResNet
        parts: list[torch.nn.Module] = []
        for part in visual.children():
            parts += part if isinstance(part, torch.nn.Sequential) else [part]
        parts = [part for part in parts if any(True for _ in part.parameters())]
        return {id(p) for part in parts[len(parts) - groups :] for p in part.parameters()}


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
