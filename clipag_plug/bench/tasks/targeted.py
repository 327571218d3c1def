"""Photographs pushed towards another class, to equal distances: does a judge see the target?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...attacks import pgd
from ...options.base import Options, option
from ..metrics import shuffled_targets, target_effect, top
from ..records import Metric
from . import Context, Measured, Sheet, evenly, marks, task

CONTROLS = 16
SHOWN = 16


@dataclass
class Targeted(Options):
    """Photographs, radii and the attack."""

    count: int = option(101, "photographs, spread over the classes", low=2)
    radii: list[float] = option([3.0, 6.0, 10.0, 15.0, 20.0], "L2 distances", low=0)
    steps: int = option(30, "PGD steps of size 2.5 * radius / steps", low=1)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("targeted", "photographs pushed towards another class", Targeted, judged=True)
def run(context: Context) -> Measured:
    """Target recovery and shuffle-corrected margin gain, by the judge, at each distance.
    The guide raises its own log-probability of the target, its best step is kept and carried out to the sphere, so that
    every picture has moved equally far. Whether the guide then reaches its target by its own classification is a
    diagnostic: at a distance where it does not, the judge's view says little."""
    options: Targeted = context.options
    judge, guide, names = context.judge, context.classifier, context.data.classes
    rows = context.rows()
    labels = context.data.photos.labels[rows]
    targets = other_classes(labels, len(names), context.generator(1))
    controls = shuffled_targets(targets, CONTROLS, context.generator(2))
    images = context.data.photos.pixels(rows, context.side)
    shown = evenly(len(rows), SHOWN)
    own = [names[int(labels[row])] for row in shown]
    metrics: dict[str, Metric] = {}
    before = judge.logits(images)
    with torch.no_grad():
        parts = [part.to(context.resources.device) for part in images.split(options.batch)]
        ours = torch.cat([guide.logits(part).argmax(1).cpu() for part in parts])

    def sheet(pictures: Tensor, titles: list[str], seen: Tensor, truth: Tensor) -> Sheet:
        seen, truth = seen[shown], truth[shown]
        return Sheet(pictures[shown], titles, judge.verdicts(seen), marks(seen, truth))

    sheets = {"photographs": sheet(images, own, before, labels)}
    asked = [f"{name} → {names[int(targets[row])]}" for name, row in zip(own, shown)]
    for number, radius in enumerate(options.radii):
        moved, seen = [], []
        for part, wanted in zip(images.split(options.batch), targets.split(options.batch)):
            aim = wanted.to(context.resources.device)

            def gain(x: Tensor, y: Tensor = aim) -> Tensor:
                return guide.logits(x).log_softmax(dim=1).gather(1, y[:, None])[:, 0]

            start = part.to(context.resources.device)
            result = pgd(gain, start, eps=radius, norm="l2", steps=options.steps, best=True)
            result = at_distance(start, result, radius)
            with torch.no_grad():
                seen.append(guide.logits(result).cpu())
            moved.append(result.cpu())
            done = number + sum(map(len, moved)) / len(images)
            context.progress(done / len(options.radii))
        found = torch.cat(moved)
        after = judge.logits(found)
        reached = top(torch.cat(seen), targets, 1)
        effect = target_effect(before, after, targets, controls)
        far = (found - images).flatten(1).norm(dim=1)
        for key, title, unit, values in (
            ("guide_top1", "the guide itself sees the target", "share", reached),
            ("target_top1", "judge sees the target, top-1", "share", top(after, targets, 1)),
            ("target_top5", "judge sees the target, top-5", "share", top(after, targets, 5)),
            ("margin_gain", "target's margin gain, shuffle-corrected", "nats", effect),
            ("norm", "distance from the photograph", "ratio", far),
        ):
            diagnostic = key in ("guide_top1", "norm")
            by = context.name if diagnostic else judge.name
            better = "neither" if key == "norm" else ""
            titled = f"{title}, L2 {radius:g}"
            metric = Metric(titled, unit, by, values, radius, diagnostic, better)
            metrics[f"{key}@{radius:g}"] = metric
        sheets[f"radius {radius:g}"] = sheet(found, asked, after, targets)
    shared = common_errors(ours, before.argmax(1), labels)
    remark = f"{context.name} and {judge.name} name one wrong class in {shared}"
    notes = {"side": images.shape[-1], "remarks": [remark]}
    return Measured(context.keys(rows), metrics, sheets, notes)


def common_errors(ours: Tensor, theirs: Tensor, labels: Tensor) -> str:
    """How often a judge names the guide's own wrong class where both err: a judge of its kind is no witness."""
    both = (ours != labels) & (theirs != labels)
    same = int((ours == theirs)[both].sum())
    return f"{same} of {int(both.sum())} photographs that both misread"


def other_classes(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """For each label a class drawn uniformly from the others."""
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels + shift) % classes


def at_distance(images: Tensor, moved: Tensor, radius: float) -> Tensor:
    """`moved` (N, 3, H, W) carried on along its direction, within [0, 1], until each is `radius` from its image.
    The distance grows with the factor, so bisection finds it; where the direction reaches the border of [0, 1] before
    the distance, the picture stays at the border."""
    delta = moved - images
    low, high = torch.zeros(len(images), 1, 1, 1), torch.full((len(images), 1, 1, 1), 1e4)
    low, high = low.to(images), high.to(images)
    for _ in range(50):
        middle = (low + high) / 2
        reached = ((images + middle * delta).clamp(0, 1) - images).flatten(1).norm(dim=1)
        short = (reached < radius).view(-1, 1, 1, 1)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (images + low * delta).clamp(0, 1)
