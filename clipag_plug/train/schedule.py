"""How learning rate and attack radius go over a run."""

from __future__ import annotations

import math

from ..options.train import Train


def learning_rate(options: Train, index: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero or constant."""
    warm = max(1, round(options.warmup * steps))
    if index < warm:
        return options.lr * (index + 1) / warm
    if options.schedule == "constant":
        return options.lr
    return options.lr * 0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, steps - warm)))


def radius(options: Train, index: int, steps: int, shrink: float) -> float:
    """Radius of the attack in the units of the training images.

    shrink: side of the training images over the model's input resolution. An L2 ball of radius eps at the input
    resolution matches one of eps * shrink on the smaller images: the same root-mean-square change of a pixel.
    """
    ramp = options.eps_ramp * steps
    size = options.eps * (shrink if options.norm == "l2" else 1.0)
    return size * (min(1.0, (index + 1) / ramp) if ramp else 1.0)
