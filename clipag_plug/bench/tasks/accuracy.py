"""Zero-shot classification and retrieval of photographs, clean and under white-box attacks on the measured model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attacks import pgd
from ...attacks.apgd import apgd_ce, apgd_targeted
from ...options.base import Options, option
from ...vocabulary import PROMPTS
from ..judges import Classifier
from ..metrics import recall, top
from ..records import Metric
from . import Context, Measured, task

OURS = {"pgd": "PGD", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T"}
ATTACKS = {**OURS, "fab-t": "FAB-T", "square": "Square"}
NORMS = {"l2": "L2", "linf": "Linf"}


@dataclass
class ZeroShot(Options):
    """Settings of the attack and of its batches."""

    eps: float = option(1.5, "radius at the model's input resolution, in [0, 1] pixels", low=0)
    norm: str = option("l2", "ball of the attack", choices=tuple(NORMS))
    steps: int = option(20, "PGD steps of size 2.5 * eps / steps", low=1)
    count: int = option(0, "photographs, spread over the classes; 0 for all", low=0)
    batch: int = option(32, "photographs at a time; more leave the cache of a CPU", low=1)


@dataclass
class Retrieval(ZeroShot):
    """Depths and the attack; a radius of 0 for none."""

    depths: list[int] = option([1, 5, 10], "k of recall at k", low=1)


@dataclass
class Robustness(Options):
    """Prompts, attacks and photographs."""

    attacks: list[str] = option(list(OURS), "attacks to run", choices=tuple(ATTACKS))
    l2: list[float] = option([0.5, 1.5, 3.0], "L2 radii at the model's input resolution", low=0)
    linf: list[float] = option([1 / 255, 4 / 255], "Linf radii, in [0, 1] pixels", low=0)
    steps: int = option(100, "steps of an attack", low=1)
    restarts: int = option(1, "random starts of APGD", low=1)
    targets: int = option(9, "target classes of APGD-T and FAB-T", low=1)
    queries: int = option(5000, "pictures that Square may try", low=1)
    templates: list[str] = option(list(PROMPTS), "prompts whose unit features are averaged")
    count: int = option(0, "photographs, spread over the classes; 0 for all", low=0)
    batch: int = option(32, "photographs at a time; random starts are drawn by batch", low=1)


@task("zeroshot", "zero-shot classification of photographs", ZeroShot)
def zeroshot(context: Context) -> Measured:
    """Top-1 and top-5 among all classes, clean and under PGD (Madry et al. 2018) on the cross-entropy."""
    options: ZeroShot = context.options
    classifier, rows = context.classifier, context.rows(options.count)
    labels = context.data.photos.labels[rows]
    clean, moved = _features(context, classifier.prompts, rows, labels)
    ball = f"{NORMS[options.norm]} {options.eps:g}"
    metrics: dict[str, Metric] = {}
    for key, features, state in (
        ("clean", clean, "clean photographs"),
        ("robust", moved, f"under PGD-{options.steps} {ball}"),
    ):
        scores = classifier.scale * features @ classifier.prompts.cpu().T
        for k in (1, 5):
            title = f"top-{k}, {state}" if key == "clean" else f"top-{k} {state}"
            metrics[f"{key}_top{k}"] = _share(title, context, top(scores, labels, k))
    return Measured(context.keys(rows), metrics, notes={"side": context.side})


@task("retrieval", "retrieval of captions and photographs", Retrieval)
def retrieval(context: Context) -> Measured:
    """Recall at k from photograph to caption and back, over all captions that differ (CLIP_benchmark's convention).

    A photograph's query succeeds where its caption is among the first k; a caption's, counted once for each photograph
    that it belongs to, where any photograph with this caption is. The attack (PGD) raises the cross-entropy of a
    photograph's own caption among all of them; captions then search among attacked photographs.
    """
    options: Retrieval = context.options
    classifier, rows = context.classifier, context.rows(options.count)
    said = [context.data.captions[int(row)] for row in rows]
    captions = list(dict.fromkeys(said))
    own = torch.tensor([captions.index(text) for text in said])
    texts = classifier.texts(captions)
    clean, moved = _features(context, texts, rows, own)
    relevant = F.one_hot(own, len(captions)).bool()
    metrics: dict[str, Metric] = {}
    for state, features in (("clean", clean), ("attacked", moved)):
        scores = features @ texts.cpu().T
        for k in options.depths if options.eps or state == "clean" else ():
            found = {
                "caption": recall(scores, relevant, k),
                "photo": recall(scores.T, relevant.T, k)[own],
            }
            for key, values in found.items():
                title = f"R@{k} of the {'photograph' if key == 'photo' else key}, {state}"
                metrics[f"{state}_{key}_r{k}"] = _share(title, context, values)
    notes = {"side": context.side, "captions": len(captions), "attack": f"PGD-{options.steps}"}
    return Measured(context.keys(rows), metrics, notes=notes)


def _features(context: Context, texts: Tensor, rows: Tensor, own: Tensor) -> list[Tensor]:
    """Unit features (N, D) of photographs, clean and after PGD against their own of the texts (M, D).

    From the photograph itself: no random start, so that the numbers are the same in every run.
    """
    options: ZeroShot = context.options
    classifier = context.classifier
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part, wanted in zip(rows.split(options.batch), own.split(options.batch)):
        images = context.data.photos.pixels(part, context.side).to(context.resources.device)
        aim = wanted.to(context.resources.device)

        def loss(x: Tensor, y: Tensor = aim) -> Tensor:
            logits = classifier.scale * classifier.features(x) @ texts.T
            return F.cross_entropy(logits, y, reduction="none")

        moved = pgd(loss, images, eps=options.eps, norm=options.norm, steps=options.steps)
        with torch.no_grad():
            for kept, each in zip(found, (images, moved)):
                kept.append(classifier.features(each).cpu())
        context.progress(sum(map(len, found[0])) / len(rows))
    return [torch.cat(parts) for parts in found]


@task("robustness", "accuracy under attack", Robustness)
def robustness(context: Context) -> Measured:
    """Zero-shot top-1, clean, under PGD (Madry et al. 2018), and under APGD-CE and APGD-T (Croce & Hein 2020);
    with FAB-T and Square, which are their authors' own, AutoAttack whole.

    Every attack is white-box, on the measured model with its own prompts, normalisation inside. "All attacks" counts
    a photograph only where it is classified correctly under each of them.
    """
    options: Robustness = context.options
    rows = context.rows(options.count)
    usual = tuple(options.templates) == tuple(PROMPTS)
    classifier = context.classifier
    if not usual:
        classifier = Classifier(context.model, context.data.classes, options.templates)
    balls = [("l2", eps) for eps in options.l2] + [("linf", eps) for eps in options.linf]
    held: dict[tuple[str, str, float], list[Tensor]] = {}
    clean, jobs, done = [], len(balls) * len(options.attacks) * len(rows), 0
    for number, part in enumerate(rows.split(options.batch)):
        images = context.data.photos.pixels(part, context.side).to(context.resources.device)
        labels = context.data.photos.labels[part].to(context.resources.device)
        with torch.no_grad():
            clean.append(top(classifier.logits(images), labels, 1).cpu())
        for norm, eps in balls:
            for attack in options.attacks:
                seed = context.seed * 9973 + number
                generator = torch.Generator(context.resources.device).manual_seed(seed)
                moved = attacked(classifier, images, labels, attack, norm, eps, options, generator)
                with torch.no_grad():
                    seen = top(classifier.logits(moved), labels, 1).cpu()
                held.setdefault((attack, norm, eps), []).append(seen)
                done += len(part)
                context.progress(done / jobs)
    before = torch.cat(clean)
    metrics = {"clean_top1": _share("top-1, clean photographs", context, before)}
    for norm, eps in balls:
        radius = f"{NORMS[norm]} " + (f"{eps:g}" if norm == "l2" else f"{255 * eps:.3g}/255")
        stood = {name: before * torch.cat(held[name, norm, eps]) for name in options.attacks}
        titles = {name: f"{ATTACKS[name]}-{options.steps}" for name in stood}
        if len(stood) > 1:
            stood["all"] = torch.stack(list(stood.values())).amin(0)
        for name, values in stood.items():
            title = f"top-1 under {titles.get(name, 'all attacks')}, {radius}"
            metrics[f"{name}_{norm}@{eps:.5g}"] = _share(title, context, values, eps)
    notes = {"side": context.side, "classes": len(context.data.classes)}
    return Measured(context.keys(rows), metrics, notes=notes)


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    attack: str,
    norm: str,
    eps: float,
    options: Robustness,
    generator: torch.Generator,
) -> Tensor:
    """The images within the ball that the attack found; those classified wrongly from the start stay as they are.

    PGD starts at the photograph, takes steps of 2.5 * eps / steps, and keeps the highest loss.
    """
    ball = {"eps": eps, "norm": norm, "steps": options.steps}
    if attack == "pgd":

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(classifier.logits(x), labels, reduction="none")

        return pgd(loss, images, best=True, **ball)  # type: ignore[arg-type]
    if attack not in OURS:
        return _authors(classifier, images, labels, attack, norm, eps, options, generator)
    ball |= {"restarts": options.restarts, "generator": generator}
    if attack == "apgd-ce":
        return apgd_ce(classifier.logits, images, labels, **ball)  # type: ignore[arg-type]
    ball["targets"] = min(options.targets, len(classifier.classes) - 1)
    return apgd_targeted(classifier.logits, images, labels, **ball)  # type: ignore[arg-type]


def _authors(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    attack: str,
    norm: str,
    eps: float,
    options: Robustness,
    generator: torch.Generator,
) -> Tensor:
    """FAB-T (Croce & Hein 2020) and Square (Andriushchenko et al. 2020) by AutoAttack's own code."""
    try:
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack
    except ImportError as error:
        raise ImportError(
            "FAB-T and Square need pyautoattack: pip install 'clipag_plug[bench]'"
        ) from error
    shared = {"norm": NORMS[norm], "eps": eps, "device": images.device}
    shared |= {"seed": generator.initial_seed(), "n_restarts": options.restarts}
    if attack == "square":
        found = SquareAttack(classifier.logits, n_queries=options.queries, **shared)
    else:
        count = min(options.targets, len(classifier.classes) - 1)
        shared |= {"n_iter": options.steps, "targeted": True, "n_target_classes": count}
        found = FABAttack_PT(classifier.logits, **shared)
    moved: Tensor = found.perturb(images, labels).detach()
    return moved


def _share(title: str, context: Context, values: Tensor, at: float | None = None) -> Metric:
    return Metric(title, "share", context.name, values.tolist(), at=at)
