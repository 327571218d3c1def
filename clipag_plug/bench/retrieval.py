"""Retrieval between photographs and their captions, clean and under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attacks import pgd
from ..options.base import Options, option
from .metrics import recall
from .records import Metric
from .registry import Context, Measured, task
from .zeroshot import spread


@dataclass
class Retrieval(Options):
    """Depths and the attack."""

    depths: list[int] = option([1, 5, 10], "k of recall at k", low=1)
    eps: float = option(
        1.5, "radius of the attack at the model's input resolution; 0 for none", low=0
    )
    norm: str = option("l2", "ball of the attack", choices=("l2", "linf"))
    steps: int = option(20, "PGD steps of size 2.5 * eps / steps", low=1)
    count: int = option(0, "photographs, spread over the data; 0 for all", low=0)
    batch: int = option(32, "photographs at a time", low=1)


@task("retrieval", "retrieval of captions and photographs", Retrieval, needs=("photos",))
def run(context: Context) -> Measured:
    """Recall at k from photograph to caption and back, over all captions that differ (CLIP_benchmark's convention).

    A photograph's query succeeds where its caption is among the first k; a caption's, counted once for each photograph
    that it belongs to, where any photograph with this caption is. The attack (PGD) raises the cross-entropy of a
    photograph's own caption among all of them; captions then search among attacked photographs.
    """
    options: Retrieval = context.options
    photos, classifier = context.need_photos(), context.classifier()
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count or len(photos))
    said = [context.captions[int(row)] for row in rows]
    captions = list(dict.fromkeys(said))
    own = torch.tensor([captions.index(text) for text in said])
    texts = classifier.texts(captions)
    features: dict[str, list[Tensor]] = {"clean": [], "attacked": []}
    for part, wanted in zip(rows.split(options.batch), own.split(options.batch)):
        images, aim = photos.pixels(part, side).to(context.device), wanted.to(context.device)

        def loss(x: Tensor, y: Tensor = aim) -> Tensor:
            logits = classifier.scale * classifier.features(x) @ texts.T
            return F.cross_entropy(logits, y, reduction="none")

        moved = pgd(loss, images, eps=options.eps, norm=options.norm, steps=options.steps)
        with torch.no_grad():
            features["clean"].append(classifier.features(images).cpu())
            features["attacked"].append(classifier.features(moved).cpu())
        context.progress(sum(map(len, features["clean"])) / len(rows))
    metrics: dict[str, Metric] = {}
    for state in ("clean", "attacked") if options.eps else ("clean",):
        scores = torch.cat(features[state]) @ texts.cpu().T
        relevant = F.one_hot(own, len(captions)).bool()
        for k in options.depths:
            found = {
                f"{state}_caption_r{k}": (
                    f"R@{k} of the caption, {state}",
                    recall(scores, relevant, k),
                ),
                f"{state}_photo_r{k}": (
                    f"R@{k} of the photograph, {state}",
                    recall(scores.T, relevant.T, k)[own],
                ),
            }
            for key, (title, values) in found.items():
                metrics[key] = Metric(title, "share", context.name, values.tolist())
    notes = {"side": side, "captions": len(captions), "attack": f"PGD-{options.steps}"}
    return Measured([photos.keys[int(row)] for row in rows], metrics, notes=notes)
