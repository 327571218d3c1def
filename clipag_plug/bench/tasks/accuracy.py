"""Zero-shot classification and retrieval of photographs, clean and under white-box attacks on the measured model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attacks import pgd
from ...attacks.apgd import apgd_ce, apgd_targeted
from ...losses.margins import ce
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
    options, classifier, rows = context.options, context.classifier, context.rows()
    labels = context.data.photos.labels[rows]
    ball = f"{NORMS[options.norm]} {options.eps:g}"
    titles = {"clean": ", clean photographs", "robust": f" under PGD-{options.steps} {ball}"}
    metrics: dict[str, Metric] = {}
    found = _features(context, classifier.prompts, rows, labels)
    for (key, title), features in zip(titles.items(), found):
        scores = classifier.scale * features @ classifier.prompts.cpu().T
        for k in (1, 5):
            seen = top(scores, labels, k)
            metrics[f"{key}_top{k}"] = Metric(f"top-{k}{title}", "share", context.name, seen)
    return Measured(context.keys(rows), metrics, notes={"side": context.side})


@task("retrieval", "retrieval of captions and photographs", Retrieval)
def retrieval(context: Context) -> Measured:
    """Recall at k from photograph to caption and back, over all captions that differ (CLIP_benchmark's convention).
    A photograph's query succeeds where its caption is among the first k; a caption's, counted once for each
    photograph that it belongs to, where any photograph with this caption is. The attack (PGD) raises the cross-
    entropy of a photograph's own caption among all of them; captions then search among attacked photographs."""
    options, rows = context.options, context.rows()
    said = [context.data.captions[int(row)] for row in rows]
    captions = list(dict.fromkeys(said))
    own = torch.tensor([captions.index(text) for text in said])
    texts = context.classifier.texts(captions)
    relevant = F.one_hot(own, len(captions)).bool()
    metrics: dict[str, Metric] = {}
    for state, features in zip(("clean", "attacked"), _features(context, texts, rows, own)):
        scores = features @ texts.cpu().T
        for k in options.depths if options.eps or state == "clean" else ():
            for key, what, values in (
                ("caption", "caption", recall(scores, relevant, k)),
                ("photo", "photograph", recall(scores.T, relevant.T, k)[own]),
            ):
                title = f"R@{k} of the {what}, {state}"
                metrics[f"{state}_{key}_r{k}"] = Metric(title, "share", context.name, values)
    notes = {"side": context.side, "captions": len(captions), "attack": f"PGD-{options.steps}"}
    return Measured(context.keys(rows), metrics, notes=notes)


def _features(context: Context, texts: Tensor, rows: Tensor, own: Tensor) -> list[Tensor]:
    """Unit features (N, D) of photographs, clean and after PGD against their own of the texts (M, D).
    From the photograph itself: no random start, so that the numbers are the same in every run."""
    options, classifier = context.options, context.classifier
    ball = {"eps": options.eps, "norm": options.norm, "steps": options.steps}
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part, wanted in zip(rows.split(options.batch), own.split(options.batch)):
        images, aim = context.pixels(part), wanted.to(context.resources.device)

        def loss(x: Tensor, y: Tensor = aim) -> Tensor:
            return ce(classifier.scale * classifier.features(x) @ texts.T, y)

        moved = pgd(loss, images, **ball)
        with torch.no_grad():
            for kept, each in zip(found, (images, moved)):
                kept.append(classifier.features(each).cpu())
        context.progress(sum(map(len, found[0])) / len(rows))
    return [torch.cat(parts) for parts in found]


@task("robustness", "accuracy under attack", Robustness)
def robustness(context: Context) -> Measured:
    """Zero-shot top-1, clean, under PGD (Madry et al. 2018), and under APGD-CE and APGD-T (Croce & Hein 2020); with
    FAB-T and Square, which are their authors' own, AutoAttack whole.
    Every attack is white-box, on the measured model with its own prompts, normalisation inside. "All attacks" counts a
    photograph only where it is classified correctly under each of them."""
    options: Robustness = context.options
    rows, classifier = context.rows(), context.classifier
    if options.templates != list(PROMPTS):
        classifier = Classifier(context.model, context.data.classes, options.templates)
    balls = [("l2", eps) for eps in options.l2] + [("linf", eps) for eps in options.linf]
    runs = [(attack, norm, eps) for norm, eps in balls for attack in options.attacks]
    right: dict[Any, list[Tensor]] = {run: [] for run in ("clean", *runs)}
    done = 0
    for number, part in enumerate(rows.split(options.batch)):
        images = context.pixels(part)
        labels = context.data.photos.labels[part].to(images.device)
        for run, seen in right.items():
            moved = images
            if run != "clean":
                generator = torch.Generator(images.device)
                generator.manual_seed(context.seed * 9973 + number)
                moved = attacked(classifier, images, labels, run, options, generator)
                done += len(part)
                context.progress(done / (len(runs) * len(rows)))
            with torch.no_grad():
                seen.append(top(classifier.logits(moved), labels, 1).cpu())
    found = {run: torch.cat(parts) for run, parts in right.items()}
    title, clean = "top-1, clean photographs", found["clean"]
    metrics = {"clean_top1": Metric(title, "share", context.name, clean)}
    for norm, eps in balls:
        radius = f"{NORMS[norm]} " + (f"{eps:g}" if norm == "l2" else f"{255 * eps:.3g}/255")
        stood = {name: clean * found[name, norm, eps] for name in options.attacks}
        titles = {name: f"{ATTACKS[name]}-{options.steps}" for name in stood}
        if len(stood) > 1:
            stood["all"] = torch.stack(list(stood.values())).amin(0)
        for name, values in stood.items():
            title = f"top-1 under {titles.get(name, 'all attacks')}, {radius}"
            key = f"{name}_{norm}@{eps:.5g}"
            metrics[key] = Metric(title, "share", context.name, values, at=eps)
    notes = {"side": context.side, "classes": len(context.data.classes)}
    return Measured(context.keys(rows), metrics, notes=notes)


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    run: tuple[str, str, float],
    options: Robustness,
    generator: torch.Generator,
) -> Tensor:
    """The images within the ball that an attack found; those classified wrongly from the start stay as they are.
    PGD starts at the photograph, takes steps of 2.5 * eps / steps, and keeps the highest loss. FAB-T (Croce & Hein
    2020) and Square (Andriushchenko et al. 2020) are AutoAttack's own code.
    run: the attack, of `ATTACKS`, the norm and the radius of its ball."""
    attack, norm, eps = run
    ball: dict[str, Any] = {"eps": eps, "norm": norm, "steps": options.steps}
    if attack == "pgd":
        return pgd(lambda x: ce(classifier.logits(x), labels), images, best=True, **ball)
    targets = min(options.targets, len(classifier.classes) - 1)
    if attack in OURS:
        ball |= {"restarts": options.restarts, "generator": generator}
        given = classifier.logits, images, labels
        return (
            apgd_ce(*given, **ball)
            if attack == "apgd-ce"
            else apgd_targeted(*given, **ball, targets=targets)
        )
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
        shared |= {"n_iter": options.steps, "targeted": True, "n_target_classes": targets}
        found = FABAttack_PT(classifier.logits, **shared)
    return found.perturb(images, labels).detach()
