"""Input gradients of photographs as pictures, and the share of them that lies on the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import value_and_gradient
from ..options.base import Options, option
from ..vocabulary import bundled_vocabulary
from .metrics import inside
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .zeroshot import spread


@dataclass
class Gradients(Options):
    """Photographs to take gradients of, and how many of them to show."""

    count: int = option(0, "photographs, spread over the sample; 0 for all", low=0)
    shown: int = option(16, "photographs on the sheets", low=1)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("gradients", "input gradients of photographs", Gradients, needs=("photos",))
def run(context: Context) -> Measured:
    """Gradient of the cosine between a photograph and the prompt of its class, with respect to the pixels.

    The share of its energy inside the object's box needs no judge; a gradient that is equal everywhere has the
    box's share of the area, which is the metric's chance level and stands in its title.
    """
    options: Gradients = context.options
    photos = context.need_photos()
    names = bundled_vocabulary().class_names
    classifier = context.classifier()
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count or len(photos))
    shown = set(rows[spread(len(rows), options.shown)].tolist())
    shares, areas, pictures = [], [], []
    for part in rows.split(options.batch):
        prompts = classifier.prompts[photos.labels[part].to(context.device)]

        def cosine(x: Tensor, y: Tensor = prompts) -> Tensor:
            return (classifier.features(x) * y).sum(dim=1)

        gradients = value_and_gradient(cosine, photos.pixels(part, side).to(context.device))[
            1
        ].cpu()
        masks = photos.masks(part, side)
        shares.append(inside(gradients, masks))
        areas.append(masks.mean((1, 2, 3)))
        pictures += [picture(g) for g, row in zip(gradients, part.tolist()) if row in shown]
        context.progress(sum(map(len, shares)) / len(rows))
    area = float(torch.cat(areas).mean())
    title = f"share of the gradient on the object, {area:.0%} of the picture"
    on_object = Metric(title, "share", context.name, torch.cat(shares).tolist())
    kept = torch.tensor(sorted(shown))
    titles = [names[int(label)] for label in photos.labels[kept]]
    sheets = {
        "photographs": Sheet(photos.pixels(kept, side), titles),
        "gradients": Sheet(torch.stack(pictures), titles),
    }
    notes = {"side": side, "area_of_the_boxes": area}
    return Measured([photos.keys[row] for row in rows], {"on_object": on_object}, sheets, notes)


def picture(gradient: Tensor) -> Tensor:
    """A gradient (3, H, W) as a picture around mid-grey, its 99.5th percentile of magnitude at full contrast."""
    size = gradient.abs().flatten()
    limit = size.kthvalue(max(int(0.995 * len(size)), 1)).values.clamp_min(1e-30)
    return (gradient / (2 * limit) + 0.5).clamp(0, 1)
