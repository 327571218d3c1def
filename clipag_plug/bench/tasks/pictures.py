"""Pictures drawn from text by each model's gradients, from the same starts, and what judges see in them.

The protocols are those of Ganz & Elad 2024 and its supplement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import pipelines
from ...options.base import Options, option
from ...paint import Step, synthesize
from ...vocabulary import bundled_vocabulary, sentence
from ..data import read_prompts, subject
from ..judges import Judge, class_named
from ..metrics import Inception, fid, inception_score, jackknife, kid, r_precision, similarity
from ..records import Metric
from . import Context, Measured, Sheet, evenly, marks, task, tops

AESTHETIC = "aesthetic score"
NONSENSE = "qzx vrrk blorfgh"


@dataclass
class Painting(Options):
    """Settings of `synthesize`."""

    preset: str = option("fast", "preset of synthesize")
    views: int = option(4, "random views of a step, 0 for the bare picture", low=0)
    steps: int = option(60, "updates of the picture", low=1)
    init: str = option("noise", "start of a picture", choices=("noise", "gray", "gmm"))
    contrast: float = option(
        -1, "scale of the softmax against known words; 0: cosine, -1: what suits the model", low=-1
    )
    batch: int = option(26, "pictures that are drawn together and share their start", low=1)


@dataclass
class Generation(Painting):
    """Which classes are drawn, and settings of `synthesize`."""

    every: int = option(2, "draw every n-th class: a rule, so that nobody picks", low=1)
    template: str = option("a photo of a {}", "prompt of a class")


@dataclass
class Pictures(Options):
    """Which prompts, and who scores besides the judge."""

    prompts: str = option("captions", "one of our lists, a text file, or COCO's captions_*.json")
    count: int = option(100, "prompts to take, 0 for all", low=0)
    template: str = option("{}", "sentence for each of them, as 'an oil painting of {}'")
    second: str = option("", "a second CLIP to score with, by key or file; it may not guide")
    inception: str = option("", "torch-fidelity's Inception file; empty: the judge's features")


@dataclass
class GeneratorFree(Painting, Pictures):
    """Prompts, and settings of `synthesize`."""

    init: str = option("gmm", "start of a picture", choices=("noise", "gray", "gmm"))
    trajectory: bool = option(False, "show starts and pictures half way, too")
    sets: bool = option(True, "FID, KID and Inception Score as well, which need the extra bench")
    batch: int = option(25, "pictures that are drawn together and share their start", low=1)


@dataclass
class Drawings(Pictures):
    """Settings of CLIPDraw."""

    prompts: str = option("drawings", "one of our lists, a text file, or COCO's file")
    preset: str = option("demo", "preset of clipdraw")
    augment: bool = option(True, "look at random views")
    steps: int = option(60, "updates, 0 for the preset's", low=0)


@dataclass
class Codes(Pictures):
    """Settings of VQGAN+CLIP."""

    preset: str = option("demo", "preset of vqgan_clip")
    autoencoder: str = option("vqgan-mini", "its autoencoder, by name or file")
    steps: int = option(60, "updates, 0 for the preset's", low=0)


@dataclass
class Styles(Pictures):
    """Settings of CLIPStyler."""

    prompts: str = option("styles", "styles, or a text file")
    count: int = option(0, "styles to take, 0 for all", low=0)
    photographs: int = option(4, "photographs that are put into each style", low=1)
    preset: str = option("demo", "preset of clipstyler")
    mode: str = option("network", "what is optimised", choices=("network", "pixels"))
    steps: int = option(40, "updates, 0 for the preset's", low=0)


READS = ("prompts", "second", "inception")


@task("generation", "pictures drawn from text", Generation, judged=True)
def generation(context: Context) -> Measured:
    """Recognition by the judge among all classes, R-Precision among the prompts, and similarity to the prompt."""
    judge, names = context.judge, context.data.classes
    classes = context.data.every(context.options.every)
    prompts = [sentence(names[index], context.options.template) for index in classes]
    images, _ = draw(context, prompts)
    scores, truth = judge.logits(images), torch.tensor(classes)
    found = captioned(judge, images, prompts)
    others, empty = by_imagenet(context, images, prompts)
    metrics = tops("recognised", scores, truth, judge.name)
    metrics |= {key: found[key] for key in ("r_precision", "similarity")} | others
    sheet = Sheet(images, prompts, judge.verdicts(scores), marks(scores, truth))
    notes = {"side": images.shape[-1], "classes": len(names), "empty": empty}
    return Measured(prompts, metrics, {"pictures": sheet}, notes)


@task("generator_free", "generator-free pictures", GeneratorFree, judged=True, reads=READS)
def generator_free(context: Context) -> Measured:
    """Main paper's generator-free synthesis: CLIPSIM, R-Precision, FID, KID and IS against the photographs."""
    options, prompts = context.options, _prompts(context)
    images, made = draw(context, prompts, frames=3 if options.trajectory else 0)
    sheets = {
        name: Sheet(torch.stack([each.frames[place] for each in made]), prompts)
        for place, name in enumerate(("start", "half way"))
        if options.trajectory
    }
    return _measured(context, prompts, images, options.sets, sheets)


@task("clipdraw", "CLIPDraw", Drawings, judged=True, reads=READS)
def clipdraw(context: Context) -> Measured:
    """Supplement 1.2: drawings with and without augmentations; aesthetics, similarity by two CLIPs, R-Precision."""
    prompts, augment = _prompts(context), context.options.augment
    return _measured(context, prompts, _each(context, "clipdraw", prompts, augment=augment, size=0))


@task("vqgan_clip", "VQGAN+CLIP", Codes, judged=True, reads=(*READS, "autoencoder"))
def vqgan_clip(context: Context) -> Measured:
    """Supplement 1.2: pictures of 100 captions through an autoencoder's codes; similarity by two CLIPs."""
    prompts, autoencoder = _prompts(context), context.options.autoencoder
    return _measured(
        context, prompts, _each(context, "vqgan_clip", prompts, autoencoder=autoencoder)
    )


@task("clipstyler", "CLIPStyler", Styles, judged=True, reads=READS)
def clipstyler(context: Context) -> Measured:
    """Supplement 1.2: photographs in the style of a text, with the style network or on bare pixels.
    Similarity to the style, and to the photograph, by the judge: a style that eats the picture wins only the first."""
    photos, judge = context.data.photos, context.judge
    rows = evenly(len(photos), context.options.photographs)
    contents = photos.pixels(rows)
    styles, places = zip(*itertools.product(_prompts(context), range(len(rows))))
    images = _each(context, "clipstyler", styles, contents[list(places)], mode=context.options.mode)
    looks = judge.features(judge.enlarged(images))
    kept = judge.features(judge.enlarged(contents))[list(places)]
    texts = judge.texts(styles).cpu()
    metrics = {
        key: Metric(f"similarity to the {what}", "cosine", judge.name, similarity(looks, other))
        for key, what, other in (("style", "style", texts), ("content", "photograph", kept))
    }
    keys = context.keys(rows[list(places)])
    items = [f"{key}: {style}" for key, style in zip(keys, styles)]
    drawn = {"photograph": keys, "style": list(styles)}
    sheets = {"pictures": Sheet(images, items)}
    return Measured(items, metrics, sheets, {"side": images.shape[-1]}, drawn)


def draw(
    context: Context, prompts: list[str], frames: int = 0, **settings: Any
) -> tuple[Tensor, list[Any]]:
    """A picture (N, 3, S, S), and a `Synthesis`, for each prompt. Each batch has a seed, and so a start, of its own.
    settings: of `synthesize`; without them those of the task's options. Guides are compared by the published loss;
    without the published settings by one rule, too."""
    options = context.options
    if not settings:
        names = ("preset", "views", "steps", "init", "contrast")
        settings = {name: getattr(options, name) for name in names}
        settings |= {} if options.preset == "paper" else {"optimizer": "adam"}
    made: list[Any] = []
    for number, start in enumerate(range(0, len(prompts), options.batch)):
        part = prompts[start : start + options.batch]

        def report(step: Step, done: int = start, count: int = len(part)) -> None:
            share = (step.index + 1) / settings["steps"]
            context.progress((done + count * share) / len(prompts))

        seed = context.seed * 1000 + number
        given = settings | {"callback": report, "frames": frames, "precision": "fp32"}
        made += synthesize(part, model=context.model, seed=seed, **given)
    return torch.stack([each.image for each in made]), made


def _each(
    context: Context, name: str, prompts: Sequence[str], contents: Any = None, **settings: Any
) -> Tensor:
    """One picture after another by a pipeline, as they make them; `settings` are options of its own."""
    options, pictures = context.options, []
    pipeline = getattr(pipelines, name)
    settings |= {"model": context.model, "preset": options.preset, "precision": "fp32"}
    settings |= {"steps": options.steps} if options.steps else {}
    for place, prompt in enumerate(prompts):
        given = (prompt,) if contents is None else (prompt, contents[place])
        made = pipeline(*given, seed=context.seed * 100_003 + place, **settings)
        pictures.append(made[0].image)
        context.progress((place + 1) / len(prompts))
    return torch.stack(pictures)


def _prompts(context: Context) -> list[str]:
    options = context.options
    found = read_prompts(options.prompts, options.count, context.seed, context.data.split)
    return [sentence(text, options.template) for text in found]


def by_imagenet(
    context: Context, images: Tensor, prompts: Sequence[str]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Recognition among ImageNet's 1,000 classes by a network that is no CLIP, or why there is none."""
    judge, what = context.resources.imagenet, "recognised by an ImageNet network"
    if isinstance(judge, str):
        return {}, {what: judge}
    families = bundled_vocabulary().names
    wanted = [
        class_named(next((names for names in families if own in names), (own,)), judge.names)
        for own in map(subject, prompts)
    ]
    if -1 in wanted:
        return {}, {what: f"{wanted.count(-1)} of {len(wanted)} prompts name none of its classes"}
    scores, truth = judge.logits(images), torch.tensor(wanted)
    logp = scores.log_softmax(dim=1).gather(1, truth[:, None])[:, 0]
    found = {"imagenet_logp": Metric("log-probability among 1,000", "nats", judge.name, logp)}
    for key, metric in tops("recognised among 1,000", scores, truth, judge.name).items():
        found[f"imagenet_{key}"] = metric
    return found, {}


def _measured(
    context: Context,
    prompts: list[str],
    images: Tensor,
    sets: bool = False,
    sheets: dict[str, Sheet] | None = None,
) -> Measured:
    """Similarity and R-Precision by the judge and by a second one, neither of which may have guided; recognition by an
    ImageNet network and the aesthetic score where there are these; sets: FID, KID and Inception Score, too."""
    options, judge = context.options, context.judge
    metrics = captioned(judge, judge.enlarged(images), prompts)
    found, empty = by_imagenet(context, images, prompts)
    metrics |= found
    if options.second:
        second = context.second_judge(options.second)
        found = captioned(second, second.enlarged(images), prompts, by=f" by {second.name}")
        metrics |= {f"second_{key}": metric for key, metric in found.items()}
    else:
        empty["similarity by a second CLIP"] = (
            "no second judge was named; set the entry's option second to a model that guides nothing"
        )
    predictor = context.resources.aesthetic
    if isinstance(predictor, str):
        empty[AESTHETIC] = predictor
    else:
        metrics["aesthetic"] = Metric(AESTHETIC, "score", predictor.name, predictor(images))
    remarks = [reading(judge, prompts)]
    if sets:
        found, floor = _sets(context, images)
        metrics, remarks = metrics | found, [*remarks, floor]
    seen = judge.verdicts(judge.logits(judge.enlarged(images)))
    notes = {"side": images.shape[-1], "empty": empty, "remarks": remarks}
    shown = (sheets or {}) | {"pictures": Sheet(images, prompts, seen)}
    return Measured(prompts, metrics, shown, notes)


def reading(judge: Judge, prompts: Sequence[str]) -> str:
    """Whether the judge reads the prompts it scores: how near their features lie to nonsense and to each other."""
    texts = judge.texts([*prompts, NONSENSE]).cpu()
    cosines = (texts @ texts.T).fill_diagonal_(-1)
    nonsense, others = cosines[-1, :-1], cosines[:-1, :-1]
    near, far = float(others.amax(1).mean()), float(nonsense.mean())
    return (
        f"{judge.name} reads {len(prompts)} prompts as {prompts[0]!r}: mean cosine to nonsense {far:.2f} "
        f"(at most {float(nonsense.max()):.2f}), to the nearest other prompt {near:.2f}"
    )


def captioned(judge: Judge, images: Tensor, prompts: list[str], by: str = "") -> dict[str, Metric]:
    """Similarity to the prompts, and R-Precision among them."""
    both = judge.features(images), judge.texts(prompts).cpu()
    near, first = f"similarity to the prompt{by}", f"R-Precision among {len(prompts)} prompts{by}"
    return {
        "similarity": Metric(near, "cosine", judge.name, similarity(*both)),
        "r_precision": Metric(first, "share", judge.name, r_precision(*both)),
    }


def _sets(context: Context, images: Tensor) -> tuple[dict[str, Metric], str]:
    """By torch-fidelity's Inception from the weight file, else in the judge's features and classes; and what FID is at
    this number of real photographs against the others: it depends on the number, and no picture gets below."""
    judge, count = context.judge, len(images)
    photos = context.data.photos.pixels(range(len(context.data.photos)))
    if context.options.inception:
        network = Inception(context.options.inception)
        by, where = network.name, "Inception v3"
        (made, logits), (real, _) = network(images), network(photos)
    else:
        by, where, shown = judge.name, f"the features of {judge.name}", judge.enlarged(images)
        made, logits = judge.features(shown), judge.logits(shown)
        real = judge.features(judge.enlarged(photos))
    # KID compares sets of one size: the photographs are taken at equal distances, not from the first classes.
    same = real[:: max(len(real) // count, 1)][:count]

    def thousand_kids(rows: Tensor) -> float:
        return 1000 * kid(made[rows], same[rows[rows < len(same)]])

    statistics: dict[str, tuple[str, str, Callable[[Tensor], float]]] = {
        "fid": ("FID", "distance", lambda rows: fid(made[rows], real)),
        "kid": ("KID x 1000", "distance", thousand_kids),
        "isc": ("Inception Score", "score", lambda rows: inception_score(logits[rows])),
    }
    metrics = {}
    for key, (title, unit, statistic) in statistics.items():
        values, blocks = jackknife(statistic, count)
        metrics[key] = Metric(f"{title}, {where}, n = {count}", unit, by, values, blocks=blocks)
    rest = torch.ones(len(real), dtype=torch.bool)
    rest[evenly(len(real), count)] = False
    floor = fid(real[~rest], real[rest]) if rest.sum() > 1 else float("nan")
    said = f"FID of {int((~rest).sum())} photographs against the others, its floor: {floor:.2f}"
    return metrics, said
