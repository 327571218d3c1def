"""CLIP-guided search over a generator: what the number of classes, the budget and the method do for the outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..guide import Guide
from ..options.base import Options, option
from ..options.search import METHODS, RANGES
from ..options.search import Search as SearchOptions
from ..pipelines.gan_search import Found, Problem, class_features, enlarged, ordered, scorer, solve
from ..pipelines.generators import Generator, load_generator
from ..vocabulary import sentence
from .distribution import fid, values
from .generation import marks, verdicts
from .metrics import ranks
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .statistics import paired_difference


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


@task("gan_search", "CLIP-guided search over a generator", GanSearch, needs=("photos", "judge"))
def run(context: Context) -> Measured:
    """Algorithm 1 of Du, Yin & Gu over prompts that name classes, for each number k of nearest classes and method.

    The best score is the guide's own, a diagnostic; the judge says what was found: recognition of the class among
    all, similarity, and FID against the photographs, in the judge's features (not to be compared with Inception's).
    Images needed: until the running best beats the guide's mean score of photographs of the prompt's class; budget + 1
    where it never does.
    """
    options: GanSearch = context.options
    photos, judge = context.need_photos(), context.need_judge()
    generator = load_generator(options.generator, options.truncation)
    guide = Guide(context.model, name=context.name)
    wanted = list(range(0, len(context.classes), options.every))
    wanted = [label for label in wanted if (photos.labels == label).any()]
    prompts = [sentence(context.classes[label], options.template) for label in wanted]
    texts = guide.texts(prompts)
    classes = class_features(guide, generator.classes, "An image of {}")
    bars = torch.tensor(
        [_data_score(context, guide, text, label, options) for text, label in zip(texts, wanted)]
    )
    real = judge.features(photos.pixels(torch.arange(len(photos)), judge.side))
    plan = [(k, "random") for k in options.ks]
    plan += [(options.ks[:2][-1], name) for name in options.methods if name != "random"]
    metrics: dict[str, Metric] = {}
    sheets: dict[str, Sheet] = {}
    curves: dict[str, list[float]] = {}
    for number, (k, method) in enumerate(plan):
        found = []
        for place, text in enumerate(texts):
            labels = ordered(classes, text, k)
            found.append(_search(context, generator, guide, text, labels, method, place))
            context.progress((number + (place + 1) / len(texts)) / len(plan))
        key = f"{method}_k{k or 'all'}"
        name = f"{method}, k = {k or 'all'}"
        running = torch.stack([each.running for each in found])
        curves[key] = [round(float(value), 6) for value in running.mean(0)]
        images = torch.stack([each.image for each in found])
        metrics |= _guides_view(context, key, name, running, bars)
        scores = judge.logits(enlarged(images, judge.side))
        metrics |= _judges_view(context, key, name, images, scores, prompts, wanted, real)
        sheets[name] = Sheet(
            images, prompts, verdicts(judge, scores), marks(ranks(scores, torch.tensor(wanted)))
        )
    notes = {
        "generator": generator.name,
        "classes": len(generator.classes),
        "data_score": round(float(bars.mean()), 6),
        "curves": curves,
        # As the published table has it: when the mean over prompts beats the mean score of the data.
        "needed": {
            key: _needed(torch.tensor(curve), float(bars.mean())) for key, curve in curves.items()
        },
        "against_all": _against_all(metrics, options),
    }
    return Measured(prompts, metrics, sheets, notes)


def _search(
    context: Context,
    generator: Generator,
    guide: Guide,
    text: Tensor,
    labels: Tensor,
    method: str,
    place: int,
) -> Found:
    options: GanSearch = context.options
    problem = Problem(
        generator,
        scorer(guide, text, options.range),
        labels,
        seed=context.seed * 100_003 + place,
        batch=options.batch,
        device=context.device,
    )
    return solve(problem, SearchOptions(method=method, budget=options.budget))


@torch.no_grad()
def _data_score(
    context: Context, guide: Guide, text: Tensor, label: int, options: GanSearch
) -> float:
    """Mean score of the photographs of a class, shown to the guide in the way the generator's pictures are."""
    photos = context.need_photos()
    rows = (photos.labels == label).nonzero()[:, 0]
    outputs = 2 * photos.pixels(rows).to(context.device) - 1
    return float(scorer(guide, text, options.range)(outputs).mean())


def _needed(curve: Tensor, bar: float) -> int:
    """How many pictures it takes until the curve is above the bar; one more than there are where it never is."""
    above = (curve > bar).nonzero()
    return int(above[0]) + 1 if len(above) else len(curve) + 1


def _guides_view(
    context: Context, key: str, name: str, running: Tensor, bars: Tensor
) -> dict[str, Metric]:
    needed = [float(_needed(curve, float(bar))) for curve, bar in zip(running, bars)]
    found = {
        f"best_{key}": (f"best score by the guide, {name}", "cosine", running[:, -1].tolist()),
        f"needed_{key}": (f"pictures needed to beat the data, {name}", "count", needed),
    }
    return {
        label: Metric(title, unit, context.name, numbers, diagnostic=True)
        for label, (title, unit, numbers) in found.items()
    }


def _judges_view(
    context: Context,
    key: str,
    name: str,
    images: Tensor,
    scores: Tensor,
    prompts: list[str],
    wanted: list[int],
    real: Tensor,
) -> dict[str, Metric]:
    judge = context.need_judge()
    features = judge.features(enlarged(images, judge.side))
    cosine = (features * judge.texts(prompts).cpu()).sum(1)
    place = ranks(scores, torch.tensor(wanted))
    found = {
        f"top5_{key}": (f"recognised, top-5, {name}", "share", (place < 5).float().tolist()),
        f"similarity_{key}": (f"similarity to the prompt, {name}", "cosine", cosine.tolist()),
    }
    if len(images) >= 3:
        numbers = values(lambda rows: fid(features[rows], real), len(images), blocks=10)
        found[f"fid_{key}"] = (f"FID in the judge's features, {name}", "distance", numbers)
    return {
        label: Metric(title, unit, judge.name, numbers)
        for label, (title, unit, numbers) in found.items()
    }


def _against_all(metrics: dict[str, Metric], options: GanSearch) -> dict[str, dict[str, float]]:
    """Best score with each k minus that with all classes, the same draws of z: paired over prompts, 95 % interval."""
    every = metrics.get("best_random_kall")
    if every is None:
        return {}
    found = {}
    for k in options.ks:
        if k:
            gap = paired_difference(metrics[f"best_random_k{k}"].values, every.values)
            found[str(k)] = {"value": gap.value, "low": gap.low, "high": gap.high}
    return found
