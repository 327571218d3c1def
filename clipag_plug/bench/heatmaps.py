"""Heatmaps of photographs: do they point at the object, and what does an attack leave of them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bundled.photos import Photographs
from ..explanation import heatmaps, negation_attack, squash, text_features
from ..explanation.figure import fitted, overlay
from ..explanation.maps import rescaled, resized
from ..explanation.scores import agreement, localisation
from ..guide import Guide
from ..options.base import Options, option
from ..options.explain import METHODS
from ..vocabulary import bundled_vocabulary, sentence
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .zeroshot import spread

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
    count: int = option(0, "photographs, spread over the sample; 0 for all", low=0)
    shown: int = option(16, "photographs on the sheets", low=1)
    batch: int = option(64, "photographs at a time", low=1)


@task("heatmaps", "heatmaps of photographs", Heatmaps, needs=("photos",))
def run(context: Context) -> Measured:
    """Supplement 2 of Ganz & Elad 2024 in numbers: the map of a photograph's class, clean and under equation (1).

    Maps are compared at the size of the photographs. A flat map has the box's share of the area in
    the first two numbers, which is their chance level and is recorded beside them.
    """
    options: Heatmaps = context.options
    photos = context.need_photos()
    if not context.boxed:
        raise ValueError(
            "heatmaps are scored against boxes, which these photographs lack; leave the entry out"
        )
    guide = Guide(context.model, name=context.name)
    texts, negations = sentences(options, context.classes)
    wanted, unwanted = text_features(guide, texts), text_features(guide, negations)
    rows = spread(len(photos), options.count or len(photos))
    values: dict[str, list[Tensor]] = {}
    kept: dict[str, list[Tensor]] = {"clean": [], "attacked": []}
    fell = []
    for part in rows.split(options.batch):
        labels = photos.labels[part]
        images = squash(photos.pixels(part), guide)
        attacked = negation_attack(
            guide,
            images,
            wanted[labels],
            unwanted[labels],
            eps=options.eps,
            steps=options.steps,
            step_size=options.step_size,
        )
        maps = [_maps(options, guide, x, wanted[labels], photos) for x in (images, attacked)]
        for key, found in _score(maps[0], maps[1], photos.masks(part)[:, 0] >= 0.5).items():
            values.setdefault(key, []).append(found)
        with torch.no_grad():
            fell.append(
                ((guide.features(images) - guide.features(attacked)) * wanted[labels]).sum(1)
            )
        for name, stack in zip(kept, maps):
            kept[name].append(stack)
        context.progress(sum(map(len, fell)) / len(rows))
    metrics = {key: _metric(key, torch.cat(parts), context.name) for key, parts in values.items()}
    notes = {
        "side": guide.side,
        "area_of_the_boxes": float(photos.masks(rows).mean()),
        "cosine_lost_to_the_attack": float(torch.cat(fell).mean()),
    }
    sheets = _sheets(photos, rows, {name: torch.cat(s) for name, s in kept.items()}, texts, options)
    return Measured([photos.keys[row] for row in rows], metrics, sheets, notes)


def sentences(options: Heatmaps, names: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """For each class its text and what the attack drives it towards; `{other}` is half the classes away."""
    texts = [sentence(name, options.template) for name in names or bundled_vocabulary().class_names]
    half = len(texts) // 2
    others = [texts[(number + half) % len(texts)] for number in range(len(texts))]
    negations = [
        options.negation.replace("{}", text).replace("{other}", other)
        for text, other in zip(texts, others)
    ]
    return texts, negations


def _maps(
    options: Heatmaps, guide: Guide, images: Tensor, texts: Tensor, photos: Photographs
) -> Tensor:
    """Maps (n, H, W) of images for a text each, at the size of the photographs."""
    maps = heatmaps(
        guide, images, texts[:, None], method=options.method, layer=options.layer or None
    )
    height, width = photos.images.shape[-2:]
    return rescaled(resized(maps, height, width))[:, 0].cpu()


def _score(clean: Tensor, attacked: Tensor, objects: Tensor) -> dict[str, Tensor]:
    found = {f"clean_{key}": values for key, values in localisation(clean, objects).items()}
    found |= {f"attacked_{key}": values for key, values in localisation(attacked, objects).items()}
    kept = agreement(clean, attacked)
    kept["overlap"] = kept.pop("iou")
    return found | kept


def _metric(key: str, values: Tensor, name: str) -> Metric:
    state, _, rest = key.partition("_")
    title, unit = TITLES[rest or key]
    return Metric(f"{title}, {state}" if rest else title, unit, name, values.double().tolist())


def _sheets(
    photos: Photographs, rows: Tensor, maps: dict[str, Tensor], texts: list[str], options: Heatmaps
) -> dict[str, Sheet]:
    """The first maps over their photographs, for the report."""
    chosen = spread(len(rows), options.shown)
    pictures = [fitted(picture, SHOWN_SIDE) for picture in photos.pixels(rows[chosen])]
    titles = [texts[int(label)] for label in photos.labels[rows[chosen]]]
    sheets = {"photographs": Sheet(torch.stack(pictures), titles)}
    for name, stack in maps.items():
        shown = resized(stack[chosen][:, None], SHOWN_SIDE, SHOWN_SIDE)[:, 0]
        sheets[name] = Sheet(torch.stack([overlay(p, m) for p, m in zip(pictures, shown)]), titles)
    return sheets
