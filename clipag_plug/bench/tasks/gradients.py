"""Input gradients of photographs as pictures, and the share of them that lies on the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attacks import value_and_gradient
from ...options.base import Options, option
from ...priors import Mixture
from ...vocabulary import bundled_vocabulary
from ..metrics import fine_share, inside, mixture_score, roughness, slope, stability
from ..records import Metric
from . import Context, Measured, Sheet, evenly, task

# Title, unit, and which way is better: fine, rough gradients of flat spectrum are noise to a viewer.
ON_OBJECT = "share of the gradient on the object, {area:.0%} of the picture"
AGREEMENT = "agreement of the gradient with the score of the class's Gaussian"
METRICS = {
    "on_object": (ON_OBJECT, "share", "higher"),
    "fine": ("share of the gradient's energy above a quarter of Nyquist", "share", "lower"),
    "slope": ("slope of the gradient's power spectrum", "ratio", "lower"),
    "roughness": ("roughness of the gradient", "ratio", "lower"),
    "stability": ("stability of the gradient under noise", "cosine", "higher"),
    "score": (AGREEMENT, "cosine", "higher"),
}
SPECTRA = {"fine": fine_share, "slope": slope, "roughness": roughness}


@dataclass
class Gradients(Options):
    """Photographs to take gradients of, and how many of them to show."""

    count: int = option(0, "photographs, spread over the classes; 0 for all", low=0)
    shown: int = option(16, "photographs on the sheets", low=1)
    noise: float = option(0.02, "deviation of the noise that the gradient is to bear", low=0)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("gradients", "input gradients of photographs", Gradients)
def run(context: Context) -> Measured:
    """Gradient of the cosine between a photograph and the prompt of its class, with respect to the pixels.

    No judge is needed. A gradient that is equal everywhere has the box's share of the area on the object, which is that
    metric's chance level and stands in its title. What white noise has in the three numbers of the spectrum depends on
    how a tower reduces its input, and is measured for each; photographs have a slope about -2. Stability: cosine with
    the gradient at the photograph plus noise. Score (Srinivas et al. 2023): cosine of the gradient, at the bundled
    mixture's side, with the gradient of the class's log-density in the mixture, where it has the class.
    """
    options: Gradients = context.options
    photos, classifier = context.data.photos, context.classifier
    side, rows = context.side, context.rows()
    shown = rows[evenly(len(rows), options.shown)]
    areas, pictures = [], []
    found: dict[str, list[Tensor]] = {key: [] for key in METRICS}
    noise, mixture = context.generator(1), Mixture.load()
    known = context.data.classes == bundled_vocabulary().class_names  # the mixture's numbers
    for part in rows.split(options.batch):
        prompts = classifier.prompts[photos.labels[part].to(context.resources.device)]

        def gradient(images: Tensor, y: Tensor = prompts) -> Tensor:
            def cosine(seen: Tensor) -> Tensor:
                return (classifier.features(seen) * y).sum(dim=1)

            return value_and_gradient(cosine, images.to(y.device))[1].cpu()

        images, masks = photos.pixels(part, side), photos.masks(part, side)
        gradients = gradient(images)
        # The noise is drawn photograph by photograph: a batch's size changes nothing.
        shaken = [x + options.noise * torch.randn(x.shape, generator=noise) for x in images]
        found["on_object"].append(inside(gradients, masks))
        found["stability"].append(stability(gradients, gradient(torch.stack(shaken))))
        for key, measure in SPECTRA.items():
            found[key].append(measure(gradients))
        if known:
            small = [F.adaptive_avg_pool2d(each, mixture.side) for each in (images, gradients)]
            score = mixture_score(mixture, small[0], photos.labels[part])
            found["score"].append(torch.cosine_similarity(small[1].flatten(1), score))
        areas.append(masks.mean((1, 2, 3)))
        pictures += [picture(g) for g, row in zip(gradients, part) if row in shown]
        context.progress(sum(map(len, areas)) / len(rows))
    area, metrics = float(torch.cat(areas).mean()), {}
    for key, (title, unit, better) in METRICS.items():
        if found[key] and (context.data.boxed or key != "on_object"):
            given = title.format(area=area), unit, context.name, torch.cat(found[key])
            metrics[key] = Metric(*given, better=better)
    titles = [context.data.classes[int(label)] for label in photos.labels[shown]]
    sheets = {
        "photographs": Sheet(photos.pixels(shown, side), titles),
        "gradients": Sheet(torch.stack(pictures), titles),
    }
    levels = white_noise(context.model.visual, side)
    remark = "; ".join(f"{METRICS[key][0]} {level:.2f}" for key, level in levels.items())
    remarks = [f"white noise passed back through the input of {context.name} has: {remark}"]
    notes = {"side": side, "area_of_the_boxes": area, "white_noise": levels, "remarks": remarks}
    return Measured(context.keys(rows), metrics, sheets, notes)


def white_noise(visual: torch.nn.Module, side: int, count: int = 32) -> dict[str, float]:
    """What the spectrum's numbers are for a gradient that is white noise where the tower has reduced its input.
    A tower that reduces inside (`visual.reduce`) spreads it over several pixels on the way back."""
    noise = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, side, side, requires_grad=True)
    reduced = visual.reduce(images) if hasattr(visual, "reduce") else images  # type: ignore[operator]
    upstream = torch.randn(reduced.shape, generator=noise)
    (gradients,) = torch.autograd.grad(reduced, images, upstream.to(reduced))
    return {key: float(measure(gradients).mean()) for key, measure in SPECTRA.items()}


def picture(gradient: Tensor) -> Tensor:
    """A gradient (3, H, W) as a picture around mid-grey, its 99.5th percentile of magnitude at full contrast."""
    size = gradient.abs().flatten()
    limit = size.kthvalue(max(int(0.995 * len(size)), 1)).values.clamp_min(1e-30)
    return (gradient / (2 * limit) + 0.5).clamp(0, 1)
