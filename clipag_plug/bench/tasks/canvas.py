"""Pictures on one canvas at one budget, under settings that are equal for all canvases but for the update rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...guide import Guide
from ...options.base import Options, option
from ...vocabulary import sentence
from ..data import read_prompts
from ..metrics import fine_share
from ..records import Metric
from . import Context, Measured, Sheet, task
from .pictures import by_imagenet, captioned, draw

# What `synthesize` is given beside the step size, where the search for it begins.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "pixels": ({"canvas": "pixels", "optimizer": "adam"}, 0.05),
    "tilt 1": ({"canvas": "pixels", "optimizer": "spectral", "tilt": 1.0}, 0.02),
    "pyramid": ({"canvas": "pyramid", "optimizer": "sgd"}, 0.6),
    "fourier": ({"canvas": "fourier", "optimizer": "adam"}, 0.05),
    "phase": ({"canvas": "phase", "optimizer": "nadam", "init": "own"}, 1.0),
}
EQUAL: dict[str, Any] = {"init": "gray", "schedule": "cosine", "keep": "last", "memory": 1024}
EQUAL |= {"contrast": 0, "grid": 0, "margin": 0.0, "patches": 0}


@dataclass
class Painted(Options):
    """A canvas, its budget and step size, and the prompts."""

    method: str = option("pixels", "canvas with its rule", choices=tuple(METHODS))
    views: int = option(4, "random views of a step, 0 for the bare picture", low=0)
    passes: int = option(200, "views through a guide, forward and backward, for a picture", low=1)
    lr: float = option(0.05, "step size", low=0)
    prompts: str = option("things", "list of names, or a text file with one a line")
    split: str = option("test", "part of the list", choices=("development", "test"))
    count: int = option(20, "names to take, 0 for all", low=0)
    template: str = option("a photo of a {}", "sentence that a name is put into")
    ensemble: list[str] = option([], "further guides, among which the passes are divided")
    batch: int = option(10, "pictures that are drawn together", low=1)

    def steps(self) -> int:
        """Updates that the passes allow."""
        return max(self.passes // (max(self.views, 1) * (1 + len(self.ensemble))), 1)


@task("canvas", "pictures on a canvas", Painted, judged=True, reads=("prompts", "ensemble"))
def run(context: Context) -> Measured:
    """Grey start (phase: its own), cosine schedule, last picture. Recognition among ImageNet's 1,000 classes,
    similarity and R-Precision by the judge, the guide's own cosine, and the energy above 0.25 cycles a pixel."""
    options: Painted = context.options
    for name in options.ensemble:
        context.check_other(context.judge.name, name, "judge its own pictures")
    names = read_prompts(options.prompts, options.count, context.seed, options.split)
    prompts = [sentence(name, options.template) for name in names]
    settings = EQUAL | METHODS[options.method][0] | {"ensemble": options.ensemble}
    settings |= {"views": options.views, "steps": options.steps(), "lr": options.lr}
    images, _ = draw(context, prompts, **settings)
    metrics, empty = by_imagenet(context, images, prompts)
    metrics |= captioned(context.judge, context.judge.enlarged(images), prompts)
    guide = Guide(context.model)
    with torch.no_grad():
        parts = images.to(context.resources.device).split(options.batch)
        features = torch.cat([guide.features(part) for part in parts])
    own = "the guide's own cosine", "cosine", context.name
    metrics["own"] = Metric(*own, (features * guide.texts(prompts)).sum(1), diagnostic=True)
    fine = "share of the picture's energy above 0.25 cycles a pixel", "share", context.judge.name
    metrics["fine"] = Metric(*fine, fine_share(images, above=0.5), better="neither")
    sheets = {"pictures": Sheet(images, prompts)} if options.split == "test" else {}
    return Measured(prompts, metrics, sheets, {"side": images.shape[-1], "empty": empty})
