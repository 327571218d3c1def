"""Pictures drawn from text by each model's gradients, from the same starts, and what the judge sees in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options.base import Options, option
from ..paint import Step, synthesize
from ..vocabulary import sentence
from .judge import Judge
from .metrics import r_precision, ranks, similarity
from .records import Metric
from .registry import Context, Measured, Sheet, task


@dataclass
class Generation(Options):
    """Which prompts, and settings of `synthesize`."""

    every: int = option(
        2, "draw every n-th class of the vocabulary: a rule, so that nobody picks", low=1
    )
    template: str = option("a {}", "prompt of a class")
    preset: str = option("fast", "preset of synthesize")
    views: int = option(
        4, "random views of a step, 0 for plain gradient ascent on the picture", low=0
    )
    steps: int = option(60, "updates of the picture", low=1)
    init: str = option("noise", "start of a picture", choices=("noise", "gray", "gmm"))
    batch: int = option(26, "pictures that are drawn together and share their start", low=1)


@task("generation", "pictures drawn from text", Generation, needs=("judge",))
def run(context: Context) -> Measured:
    """Recognition by the judge among all classes, R-Precision among the prompts, and similarity to the prompt."""
    options: Generation = context.options
    judge = context.need_judge()
    names = context.classes
    classes = list(range(0, len(names), options.every))
    prompts = [sentence(names[index], options.template) for index in classes]
    images = draw(context, prompts)
    scores, features, texts = (
        judge.logits(images),
        judge.features(images),
        judge.texts(prompts).cpu(),
    )
    rank = ranks(scores, torch.tensor(classes))
    found = {
        "top1": ("recognised, top-1", "share", (rank < 1).float()),
        "top5": ("recognised, top-5", "share", (rank < 5).float()),
        "r_precision": (
            f"R-Precision among {len(prompts)} prompts",
            "share",
            r_precision(features, texts),
        ),
        "similarity": ("similarity to the prompt", "cosine", similarity(features, texts)),
    }
    metrics = {
        key: Metric(title, unit, judge.name, values.tolist())
        for key, (title, unit, values) in found.items()
    }
    sheet = Sheet(images, prompts, verdicts(judge, scores), marks(rank))
    return Measured(
        prompts, metrics, {"pictures": sheet}, {"side": images.shape[-1], "classes": len(names)}
    )


def draw(context: Context, prompts: list[str]) -> Tensor:
    """The pictures (N, 3, side, side) of the prompts. Each batch has a seed, and so a start, of its own."""
    options: Generation = context.options
    pictures: list[Tensor] = []
    for number, start in enumerate(range(0, len(prompts), options.batch)):
        part = prompts[start : start + options.batch]

        def report(step: Step, done: int = start, count: int = len(part)) -> None:
            context.progress((done + count * (step.index + 1) / options.steps) / len(prompts))

        results = synthesize(
            part,
            model=context.model,
            seed=context.seed * 1000 + number,
            callback=report,
            preset=options.preset,
            views=options.views,
            steps=options.steps,
            init=options.init,
            # Guides are compared by the published loss and rule, whatever the preset.
            contrast=0,
            optimizer="adam",
        )
        pictures += [result.image for result in results]
    return torch.stack(pictures)


def verdicts(judge: Judge, scores: Tensor) -> list[str]:
    """What the judge calls each picture, from its logits (N, C)."""
    return [judge.classes[int(index)] for index in scores.argmax(dim=1)]


def marks(rank: Tensor) -> list[str]:
    """'hit' for a first place, 'near' for the first five, else 'miss'."""
    return ["hit" if place < 1 else "near" if place < 5 else "miss" for place in rank.tolist()]
