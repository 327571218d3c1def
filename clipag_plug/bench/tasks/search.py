"""CLIP-guided search over a generator: what the number of classes, the budget and the method do for the outcome."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guide import Guide
from ...options.base import Options, option
from ...options.search import METHODS, RANGES
from ...options.search import Search as SearchOptions
from ...pipelines.gan_search import Problem, class_features, ordered, scorer, solve
from ...pipelines.generators import load_generator
from ...vocabulary import sentence
from ..metrics import fid, jackknife, ranks, similarity
from ..records import Metric
from ..stats import paired_difference
from . import Context, Measured, Sheet, marks, task


@dataclass
class GanSearch(Options):
    """Prompts, class counts, budget and methods."""

    generator: str = option("bundled", "generator, as --generator of clipag search takes it")
    every: int = option(4, "prompts: every n-th class of the photographs", low=1)
    template: str = option("a photo of a {}", "prompt of a class")
    ks: list[int] = option([1, 10, 20, 50, 100, 0], "classes drawn from, 0 for all", low=0)
    methods: list[str] = option(
        ["random", "evolve", "refine"], "methods at the second of the ks", choices=METHODS
    )
    budget: int = option(100, "pictures of a search", low=2)
    range: str = option("correct", "what the model is shown", choices=RANGES)
    truncation: float = option(0.3, "spread of the generator's noise", low=1e-3, high=1)
    batch: int = option(50, "pictures at a time", low=1)


@task(
    "gan_search",
    "CLIP-guided search over a generator",
    GanSearch,
    judged=True,
    reads=("generator",),
)
def run(context: Context) -> Measured:
    """Algorithm 1 of Du, Yin & Gu over prompts that name classes, for each number k of nearest classes and method.

    The best score is the guide's own, a diagnostic; the judge says what was found: recognition of the class among
    all, similarity, and FID against the photographs, in the judge's features (not to be compared with Inception's).
    Images needed: until the running best beats the guide's mean score of photographs of the prompt's class; budget + 1
    where it never does.
    """
    options: GanSearch = context.options
    photos, judge, names = context.data.photos, context.judge, context.data.classes
    generator = load_generator(options.generator, options.truncation)
    guide = Guide(context.model, name=context.name)
    wanted = [
        label for label in context.data.every(options.every) if (photos.labels == label).any()
    ]
    prompts = [sentence(names[label], options.template) for label in wanted]
    texts = guide.texts(prompts)
    classes = class_features(guide, generator.classes, "An image of {}")
    scorers = [scorer(guide, text, options.range) for text in texts]
    bars = []  # what photographs of the class score, shown in the way the generator's pictures are
    with torch.no_grad():
        for score, label in zip(scorers, wanted):
            shown = photos.pixels((photos.labels == label).nonzero()[:, 0]).to(
                context.resources.device
            )
            bars.append(float(score(2 * shown - 1).mean()))
    bar = sum(bars) / len(bars)
    real = judge.features(photos.pixels(torch.arange(len(photos)), judge.side))
    plan = [(k, "random") for k in options.ks]
    plan += [(options.ks[:2][-1], name) for name in options.methods if name != "random"]
    metrics: dict[str, Metric] = {}
    sheets: dict[str, Sheet] = {}
    curves: dict[str, list[float]] = {}
    for number, (k, method) in enumerate(plan):
        found = []
        for place, (text, score) in enumerate(zip(texts, scorers)):
            problem = Problem(
                generator,
                score,
                ordered(classes, text, k),
                seed=context.seed * 100_003 + place,
                batch=options.batch,
                device=context.resources.device,
            )
            found.append(solve(problem, SearchOptions(method=method, budget=options.budget)))
            context.progress((number + (place + 1) / len(texts)) / len(plan))
        key, name = f"{method}_k{k or 'all'}", f"{method}, k = {k or 'all'}"
        running = torch.stack([each.running for each in found])
        curves[key] = [round(float(value), 6) for value in running.mean(0)]
        images = torch.stack([each.image for each in found])
        shown = judge.enlarged(images)
        scores, features = judge.logits(shown), judge.features(shown)
        place_of = ranks(scores, torch.tensor(wanted))
        needed = [float(_needed(curve, level)) for curve, level in zip(running, bars)]
        cosine = similarity(features, judge.texts(prompts).cpu())
        columns: dict[str, tuple[str, str, str, Any]] = {
            "best": ("best score by the guide", "cosine", context.name, running[:, -1].tolist()),
            "needed": ("pictures needed to beat the data", "count", context.name, needed),
            "top5": ("recognised, top-5", "share", judge.name, (place_of < 5).float().tolist()),
            "similarity": ("similarity to the prompt", "cosine", judge.name, cosine.tolist()),
        }
        for what, (title, unit, by, values) in columns.items():
            metrics[f"{what}_{key}"] = Metric(
                f"{title}, {name}", unit, by, values, diagnostic=by == context.name
            )
        if len(images) >= 3:
            values, blocks = jackknife(
                functools.partial(_fid, features, real), len(images), blocks=10
            )
            title = f"FID in the judge's features, {name}, n = {len(images)}"
            metrics[f"fid_{key}"] = Metric(title, "distance", judge.name, values, blocks=blocks)
        sheets[name] = Sheet(images, prompts, judge.verdicts(scores), marks(place_of))
    notes = {
        "generator": generator.name,
        "classes": len(generator.classes),
        "data_score": round(bar, 6),
        "curves": curves,
        # As the published table has it: when the mean over prompts beats the mean score of the data.
        "needed": {key: _needed(torch.tensor(curve), bar) for key, curve in curves.items()},
        "against_all": _against_all(metrics, options),
    }
    return Measured(prompts, metrics, sheets, notes)


def _fid(made: Tensor, real: Tensor, rows: Tensor) -> float:
    return fid(made[rows], real)


def _needed(curve: Tensor, bar: float) -> int:
    """How many pictures it takes until the curve is above the bar; one more than there are where it never is."""
    above = (curve > bar).nonzero()
    return int(above[0]) + 1 if len(above) else len(curve) + 1


def _against_all(metrics: dict[str, Metric], options: GanSearch) -> dict[str, dict[str, float]]:
    """Best score with each k minus that with all classes, the same draws of z: paired over prompts, 95 % interval."""
    every = metrics.get("best_random_kall")
    found = {}
    for k in options.ks if every else ():
        if every and k:
            gap = paired_difference(metrics[f"best_random_k{k}"].values, every.values)
            if gap.high - gap.low < float("inf"):
                found[str(k)] = {"value": gap.value, "low": gap.low, "high": gap.high}
    return found
