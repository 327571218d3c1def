"""Input gradients of photographs as pictures, and the share of them that lies on the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import Loss, value_and_gradient
from ..options.base import Options, option
from .alignment import fine_share, roughness, slope, stability
from .metrics import inside
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .zeroshot import spread

TITLES = {
    "on_object": ("share of the gradient on the object, {area:.0%} of the picture", "share"),
    "fine": ("share of the gradient's energy above a quarter of Nyquist", "share"),
    "slope": ("slope of the gradient's power spectrum", "ratio"),
    "roughness": ("roughness of the gradient", "ratio"),
    "stability": ("stability of the gradient under noise", "cosine"),
}


@dataclass
class Gradients(Options):
    """Photographs to take gradients of, and how many of them to show."""

    count: int = option(0, "photographs, spread over the sample; 0 for all", low=0)
    shown: int = option(16, "photographs on the sheets", low=1)
    noise: float = option(
        0.02, "standard deviation of the noise that the gradient is to bear", low=0
    )
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("gradients", "input gradients of photographs", Gradients, needs=("photos",))
def run(context: Context) -> Measured:
    """Gradient of the cosine between a photograph and the prompt of its class, with respect to the pixels.

    No judge is needed. A gradient that is equal everywhere has the box's share of the area on the object, which is
    that metric's chance level and stands in its title. White noise has 95 % of its energy above a quarter of
    Nyquist, slope 0 and roughness 1.41; photographs have a slope about -2. Stability: cosine with the gradient at the
    photograph plus noise.
    """
    options: Gradients = context.options
    photos = context.need_photos()
    names = context.classes
    classifier = context.classifier()
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count or len(photos))
    shown = set(rows[spread(len(rows), options.shown)].tolist())
    areas, pictures = [], []
    found: dict[str, list[Tensor]] = {key: [] for key in TITLES}
    noise = context.generator(1)
    for part in rows.split(options.batch):
        prompts = classifier.prompts[photos.labels[part].to(context.device)]

        def cosine(x: Tensor, y: Tensor = prompts) -> Tensor:
            return (classifier.features(x) * y).sum(dim=1)

        images = photos.pixels(part, side)
        gradients = _gradients(cosine, images, context)
        # The noise is drawn photograph by photograph: a batch's size changes nothing.
        shaken = torch.stack(
            [x + options.noise * torch.randn(x.shape, generator=noise) for x in images]
        )
        masks = photos.masks(part, side)
        values = {
            "on_object": inside(gradients, masks),
            "fine": fine_share(gradients),
            "slope": slope(gradients),
            "roughness": roughness(gradients),
            "stability": stability(gradients, _gradients(cosine, shaken, context)),
        }
        for key, value in values.items():
            found[key].append(value)
        areas.append(masks.mean((1, 2, 3)))
        pictures += [picture(g) for g, row in zip(gradients, part.tolist()) if row in shown]
        context.progress(sum(map(len, areas)) / len(rows))
    area = float(torch.cat(areas).mean())
    metrics = {
        key: Metric(title.format(area=area), unit, context.name, torch.cat(found[key]).tolist())
        for key, (title, unit) in TITLES.items()
        if context.boxed or key != "on_object"
    }
    kept = torch.tensor(sorted(shown))
    titles = [names[int(label)] for label in photos.labels[kept]]
    sheets = {
        "photographs": Sheet(photos.pixels(kept, side), titles),
        "gradients": Sheet(torch.stack(pictures), titles),
    }
    notes = {"side": side, "area_of_the_boxes": area}
    return Measured([photos.keys[row] for row in rows], metrics, sheets, notes)


def _gradients(cosine: Loss, images: Tensor, context: Context) -> Tensor:
    return value_and_gradient(cosine, images.to(context.device))[1].cpu()


def picture(gradient: Tensor) -> Tensor:
    """A gradient (3, H, W) as a picture around mid-grey, its 99.5th percentile of magnitude at full contrast."""
    size = gradient.abs().flatten()
    limit = size.kthvalue(max(int(0.995 * len(size)), 1)).values.clamp_min(1e-30)
    return (gradient / (2 * limit) + 0.5).clamp(0, 1)
