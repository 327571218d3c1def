"""Zero-shot classification of photographs, clean and under a white-box attack on the measured model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attacks import pgd
from ..options.base import Options, option
from .metrics import top
from .records import Metric
from .registry import Context, Measured, task


@dataclass
class ZeroShot(Options):
    """Settings of the attack and of its batches."""

    eps: float = option(
        1.5, "radius of the attack, in [0, 1] pixels at the model's input resolution", low=0
    )
    norm: str = option("l2", "ball of the attack", choices=("l2", "linf"))
    steps: int = option(20, "PGD steps of size 2.5 * eps / steps", low=1)
    count: int = option(0, "photographs, spread over the sample; 0 for all", low=0)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("zeroshot", "zero-shot classification of photographs", ZeroShot, needs=("photos",))
def run(context: Context) -> Measured:
    """Top-1 and top-5 among all classes, clean and under PGD (Madry et al. 2018) on the cross-entropy."""
    options: ZeroShot = context.options
    photos = context.need_photos()
    classifier = context.classifier()
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count or len(photos))
    clean, attacked = [], []
    for part in rows.split(options.batch):
        images = photos.pixels(part, side).to(context.device)
        labels = photos.labels[part].to(context.device)

        def loss(x: Tensor, y: Tensor = labels) -> Tensor:
            return F.cross_entropy(classifier.logits(x), y, reduction="none")

        # From the photograph itself: no random start, so that the numbers are the same in every run.
        moved = pgd(loss, images, eps=options.eps, norm=options.norm, steps=options.steps)
        with torch.no_grad():
            clean.append(classifier.logits(images).cpu())
            attacked.append(classifier.logits(moved).cpu())
        context.progress(float(sum(map(len, clean))) / len(rows))
    labels = photos.labels[rows]
    before, after = torch.cat(clean), torch.cat(attacked)
    ball = f"{'L2' if options.norm == 'l2' else 'Linf'} {options.eps:g}"
    found = {
        "clean_top1": ("top-1, clean photographs", top(before, labels, 1)),
        "clean_top5": ("top-5, clean photographs", top(before, labels, 5)),
        "robust_top1": (f"top-1 under PGD-{options.steps} {ball}", top(after, labels, 1)),
        "robust_top5": (f"top-5 under PGD-{options.steps} {ball}", top(after, labels, 5)),
    }
    metrics = {
        key: Metric(title, "share", context.name, values.tolist())
        for key, (title, values) in found.items()
    }
    return Measured([photos.keys[row] for row in rows], metrics, notes={"side": side})


def spread(total: int, count: int) -> Tensor:
    """`count` of `total` rows at equal distances: a sample sorted by class stays spread over its classes."""
    count = min(count, total)
    return torch.arange(count) * total // count
