"""Heatmaps of photographs: do they point at the object, and what does an attack leave of them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...explanation import heatmaps, negation_attack, squash, text_features
from ...explanation.figure import fitted, overlay
from ...explanation.maps import agreement, localisation, rescaled
from ...guide import Guide
from ...images import resize
from ...options.base import Options, option
from ...options.explain import METHODS
from ...vocabulary import sentence
from ..records import Metric
from . import Context, Measured, Sheet, evenly, task

TITLES = {
    "pointing": ("highest place on the object", "share"),
    "energy": ("share of the map on the object", "share"),
    "iou": ("overlap (IoU) of the map's upper half with the box", "share"),
    "spearman": ("rank correlation, clean and attacked map", "cosine"),
    "ssim": ("SSIM, clean and attacked map", "cosine"),
    "overlap": ("overlap (IoU) of clean and attacked map", "share"),
}
SHOWN_SIDE = 128


@dataclass
class Heatmaps(Options):
    """The method of the maps, the attack on them, and how many of them to show."""

    method: str = option("gradcam", "how the maps are made", choices=METHODS)
    layer: str = option("", "module of the image tower to read; empty chooses")
    template: str = option("a photo of a {}", "text of a photograph; {} stands for its class")
    negation: str = option(
        "not {}",
        "text the attack drives towards; {} stands for the text, {other} for the text of another class",
    )
    eps: float = option(8 / 255, "Linf radius of the attack, in [0, 1] pixels", low=0)
    steps: int = option(20, "steps of the attack", low=0)
    step_size: float = option(1 / 255, "step of the attack, in the units of eps", low=0)
    count: int = option(0, "photographs, spread over the classes; 0 for all", low=0)
    shown: int = option(16, "photographs on the sheets", low=1)
    batch: int = option(64, "photographs at a time", low=1)


@task("heatmaps", "heatmaps of photographs", Heatmaps)
def run(context: Context) -> Measured:
    """Supplement 2 of Ganz & Elad 2024 in numbers: the map of a photograph's class, clean and under equation (1).
    Maps are compared at the size of the photographs. A flat map has the box's share of the area in the first two
    numbers, which is their chance level and is recorded beside them."""
    options: Heatmaps = context.options
    photos = context.data.photos
    size = photos.images.shape[-2], photos.images.shape[-1]
    if not context.data.boxed:
        raise ValueError(
            "heatmaps are scored against boxes, which these photographs lack; leave the entry out"
        )
    guide, rows = Guide(context.model, name=context.name), context.rows()
    texts, negations = sentences(options, context.data.classes)
    wanted, unwanted = text_features(guide, texts), text_features(guide, negations)
    attack = {"eps": options.eps, "steps": options.steps, "step_size": options.step_size}
    method: dict[str, Any] = {"method": options.method, "layer": options.layer or None}
    values: dict[str, list[Tensor]] = {}
    kept: dict[str, list[Tensor]] = {"clean": [], "attacked": []}
    fell = []
    for part in rows.split(options.batch):
        aim, away = wanted[photos.labels[part]], unwanted[photos.labels[part]]
        images = squash(photos.pixels(part), guide)
        attacked = negation_attack(guide, images, aim, away, **attack)  # type: ignore[arg-type]
        objects = photos.masks(part)[:, 0] >= 0.5
        for state, shown in (("clean", images), ("attacked", attacked)):
            maps = heatmaps(guide, shown, aim[:, None], **method)
            maps = rescaled(resize(maps, size, "bilinear"))[:, 0].cpu()
            kept[state].append(maps)
            for key, found in localisation(maps, objects).items():
                values.setdefault(f"{state}_{key}", []).append(found)
        for key, found in agreement(kept["clean"][-1], kept["attacked"][-1]).items():
            values.setdefault("overlap" if key == "iou" else key, []).append(found)
        with torch.no_grad():
            fell.append(((guide.features(images) - guide.features(attacked)) * aim).sum(1))
        context.progress(sum(map(len, fell)) / len(rows))
    metrics = {}
    for key, parts in values.items():
        state, _, place = key.rpartition("_")
        title, unit = TITLES[place]
        title += f", {state}" if state else ""
        metrics[key] = Metric(title, unit, context.name, torch.cat(parts).double())
    notes = {
        "side": guide.side,
        "area_of_the_boxes": float(photos.masks(rows).mean()),
        "cosine_lost_to_the_attack": float(torch.cat(fell).mean()),
    }
    chosen = evenly(len(rows), options.shown)
    pictures = [fitted(picture, SHOWN_SIDE) for picture in photos.pixels(rows[chosen])]
    titles = [texts[int(label)] for label in photos.labels[rows[chosen]]]
    sheets = {"photographs": Sheet(torch.stack(pictures), titles)}
    for name, stack in kept.items():
        maps = resize(torch.cat(stack)[chosen][:, None], SHOWN_SIDE, "bilinear")[:, 0]
        sheets[name] = Sheet(torch.stack([overlay(p, m) for p, m in zip(pictures, maps)]), titles)
    return Measured(context.keys(rows), metrics, sheets, notes)


def sentences(options: Heatmaps, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """For each class its text and what the attack drives it towards; `{other}` is half the classes away."""
    texts = [sentence(name, options.template) for name in names]
    half = len(texts) // 2
    others = texts[half:] + texts[:half]
    negated = [options.negation.replace("{}", text) for text in texts]
    return texts, [text.replace("{other}", other) for text, other in zip(negated, others)]
