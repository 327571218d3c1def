"""CLIP-guided search over a generator: what the number of classes, the budget and the method do for the outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...guide import Guide
from ...options.base import Options, option
from ...options.search import METHODS, RANGES
from ...options.search import Search as SearchOptions
from ...pipelines.gan_search import Problem, class_features, ordered, scorer, solve
from ...pipelines.generators import load_generator
from ..data import read_prompts
from ..metrics import fid, jackknife
from ..records import Metric
from . import Context, Measured, Sheet, task
from .pictures import captioned


@dataclass
class GanSearch(Options):
    """Prompts, class counts, budget and methods."""

    generator: str = option("bundled", "generator, as --generator of clipag search takes it")
    prompts: str = option("captions", "list of captions, a text file, or MS-COCO's captions_*.json")
    count: int = option(50, "prompts to take, 0 for all", low=0)
    ks: list[int] = option([1, 10, 20, 50, 100, 0], "classes drawn from, 0 for all", low=0)
    methods: list[str] = option(
        ["random", "evolve", "refine"], "methods at the second of the ks", choices=METHODS
    )
    budget: int = option(100, "pictures of a search", low=2)
    range: str = option("correct", "what the model is shown", choices=RANGES)
    truncation: float = option(0.3, "spread of the generator's noise", low=1e-3, high=1)
    batch: int = option(50, "pictures at a time", low=1)


TITLE = "CLIP-guided search over a generator"


@task("gan_search", TITLE, GanSearch, judged=True, reads=("generator", "prompts"))
def run(context: Context) -> Measured:
    """Algorithm 1 of Du, Yin & Gu over captions, for each number k of nearest classes and each method.
    The best score is the guide's own, a diagnostic; the judge says what was found: R-Precision, similarity, and FID
    against the photographs, in the judge's features (not to be compared with Inception's). Images needed: until the
    running best beats the guide's mean score of the photographs with their captions; budget + 1 where it never does."""
    options: GanSearch = context.options
    photos, judge = context.data.photos, context.judge
    generator = load_generator(options.generator, options.truncation)
    guide = Guide(context.model, name=context.name)
    prompts = read_prompts(options.prompts, options.count, context.seed, context.data.split)
    texts = guide.texts(prompts)
    classes = class_features(guide, generator.classes, "An image of {}")
    bar = data_score(context, guide)
    real = judge.features(photos.pixels(torch.arange(len(photos)), judge.side))
    plan = [(k, "random") for k in options.ks]
    plan += [(options.ks[:2][-1], name) for name in options.methods if name != "random"]
    metrics: dict[str, Metric] = {}
    sheets, curves = dict[str, Sheet](), dict[str, list[float]]()
    for number, (k, method) in enumerate(plan):
        found = []
        for place, text in enumerate(texts):
            score, labels = scorer(guide, text, options.range), ordered(classes, text, k)
            how = (context.seed * 100_003 + place, options.batch, context.resources.device)
            problem = Problem(generator, score, labels, *how)
            found.append(solve(problem, SearchOptions(method=method, budget=options.budget)))
            context.progress((number + (place + 1) / len(texts)) / len(plan))
        key, name = f"{method}_k{k or 'all'}", f", {method}, k = {k or 'all'}"
        running = torch.stack([each.running for each in found])
        curves[key] = [round(float(value), 6) for value in running.mean(0)]
        counts = [float(_needed(curve, bar)) for curve in running]
        for what, title, unit, values in (
            ("best", f"best score by the guide{name}", "cosine", running[:, -1]),
            ("needed", f"pictures needed to beat the data{name}", "count", counts),
        ):
            own = Metric(title, unit, context.name, values, diagnostic=True)
            metrics[f"{what}_{key}"] = own
        images = torch.stack([each.image for each in found])
        shown = judge.enlarged(images)
        seen = captioned(judge, shown, prompts, by=name)
        metrics |= {f"{what}_{key}": metric for what, metric in seen.items()}
        if len(images) >= 3:
            made = judge.features(shown)

            def distance(rows: Tensor, made: Tensor = made) -> float:
                return fid(made[rows], real)

            values, blocks = jackknife(distance, len(images), blocks=10)
            title = f"FID in the judge's features{name}, n = {len(images)}"
            metrics[f"fid_{key}"] = Metric(title, "distance", judge.name, values, blocks=blocks)
        sheets[name.strip(", ")] = Sheet(images, prompts, judge.verdicts(judge.logits(shown)))
    notes = {
        "generator": generator.name,
        "classes": len(generator.classes),
        "data_score": round(bar, 6),
        "curves": curves,
        # As the published table has it: when the mean over prompts beats the mean score of the data.
        "needed": {key: _needed(torch.tensor(curve), bar) for key, curve in curves.items()},
    }
    return Measured(prompts, metrics, sheets, notes)


@torch.no_grad()
def data_score(context: Context, guide: Guide) -> float:
    """The guide's mean score of the photographs with their captions, shown in the way the generator's pictures are."""
    data, total = context.data, 0.0
    for caption in dict.fromkeys(data.captions):
        rows = [row for row, own in enumerate(data.captions) if own == caption]
        score = scorer(guide, guide.texts([caption])[0], context.options.range)
        shown = data.photos.pixels(rows).to(context.resources.device)
        total += float(score(2 * shown - 1).sum())
    return total / len(data.captions)


def _needed(curve: Tensor, bar: float) -> int:
    """How many pictures it takes until the curve is above the bar; one more than there are where it never is."""
    above = (curve > bar).nonzero()
    return int(above[0]) + 1 if len(above) else len(curve) + 1
