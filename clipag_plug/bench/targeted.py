"""Photographs pushed towards another class within balls of several radii: does a judge see the target?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import pgd
from ..options.base import Options, option
from .generation import marks, verdicts
from .judge import Classifier, Judge
from .metrics import ranks, shuffled_targets, target_effect, top
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .zeroshot import spread

CONTROLS = 16
SHOWN = 16


@dataclass
class Targeted(Options):
    """Photographs, radii and the attack."""

    count: int = option(101, "photographs, spread over the sample", low=2)
    radii: list[float] = option(
        [3.0, 6.0, 10.0, 15.0, 20.0], "L2 radii at the model's input resolution", low=0
    )
    steps: int = option(30, "PGD steps of size 2.5 * radius / steps", low=1)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@task("targeted", "photographs pushed towards another class", Targeted, needs=("photos", "judge"))
def run(context: Context) -> Measured:
    """Target recovery and shuffle-corrected margin gain, by the judge, at each radius.

    The guide raises its own log-probability of the target, and its best step is kept. Whether it then
    reaches its target by its own classification is a diagnostic: at a radius where it does not, the judge's view
    says little.
    """
    options: Targeted = context.options
    photos, judge = context.need_photos(), context.need_judge()
    names = context.classes
    guide = context.classifier()
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count)
    labels = photos.labels[rows]
    targets = other_classes(labels, len(names), context.generator(1))
    controls = shuffled_targets(targets, CONTROLS, context.generator(2))
    images = photos.pixels(rows, side)
    before = judge.logits(images)
    metrics: dict[str, Metric] = {}
    sheets = {"photographs": _sheet(images, labels, labels, before, judge, names)}
    for number, radius in enumerate(options.radii):

        def report(share: float, done: int = number) -> None:
            context.progress((done + share) / len(options.radii))

        moved, reached = _push(context, guide, images, targets, radius, report)
        metrics |= _scores(
            judge, context.name, before, judge.logits(moved), reached, targets, controls, radius
        )
        sheets[f"radius {radius:g}"] = _sheet(
            moved, labels, targets, judge.logits(moved), judge, names
        )
    return Measured(
        [photos.keys[row] for row in rows], metrics, sheets, {"side": side, "radii": options.radii}
    )


def other_classes(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """For each label a class drawn uniformly from the others."""
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels + shift) % classes


def _push(
    context: Context,
    guide: Classifier,
    images: Tensor,
    targets: Tensor,
    radius: float,
    report: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """Targeted PGD in L2: the moved images, and the guide's logits (N, C) of them."""
    options: Targeted = context.options
    moved, logits = [], []
    done = 0
    for part, wanted in zip(images.split(options.batch), targets.split(options.batch)):
        aim = wanted.to(context.device)

        def gain(x: Tensor, y: Tensor = aim) -> Tensor:
            return guide.logits(x).log_softmax(dim=1).gather(1, y[:, None])[:, 0]

        result = pgd(
            gain, part.to(context.device), eps=radius, norm="l2", steps=options.steps, best=True
        )
        with torch.no_grad():
            logits.append(guide.logits(result).cpu())
        moved.append(result.cpu())
        done += len(part)
        report(done / len(images))
    return torch.cat(moved), torch.cat(logits)


def _scores(
    judge: Judge,
    name: str,
    before: Tensor,
    after: Tensor,
    own: Tensor,
    targets: Tensor,
    controls: Tensor,
    radius: float,
) -> dict[str, Metric]:
    """The metrics of one radius."""
    effect = target_effect(before, after, targets, controls)
    found = [
        ("guide_top1", "the guide itself sees the target", "share", name, top(own, targets, 1)),
        (
            "target_top1",
            "judge sees the target, top-1",
            "share",
            judge.name,
            top(after, targets, 1),
        ),
        (
            "target_top5",
            "judge sees the target, top-5",
            "share",
            judge.name,
            top(after, targets, 5),
        ),
        ("margin_gain", "target's margin gain, shuffle-corrected", "nats", judge.name, effect),
    ]
    return {
        f"{key}@{radius:g}": Metric(
            f"{title}, L2 {radius:g}", unit, by, values.tolist(), at=radius, diagnostic=by == name
        )
        for key, title, unit, by, values in found
    }


def _sheet(
    images: Tensor, labels: Tensor, targets: Tensor, scores: Tensor, judge: Judge, names: list[str]
) -> Sheet:
    rows = spread(len(images), SHOWN)
    titles = [
        names[int(labels[row])]
        + ("" if labels[row] == targets[row] else f" → {names[int(targets[row])]}")
        for row in rows
    ]
    return Sheet(
        images[rows],
        titles,
        verdicts(judge, scores[rows]),
        marks(ranks(scores[rows], targets[rows])),
    )
