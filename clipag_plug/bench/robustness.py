"""Zero-shot accuracy under white-box attacks of several kinds, norms and radii."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attacks import pgd
from ..attacks.apgd import apgd_ce, apgd_targeted
from ..options.base import Options, option
from ..train.evaluate import PROMPTS
from .judge import Classifier
from .metrics import top
from .records import Metric
from .registry import Context, Measured, task
from .zeroshot import spread

ATTACKS = ("pgd", "apgd-ce", "apgd-t")
NAMES = {"pgd": "PGD", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T"}


@dataclass
class Robustness(Options):
    """Prompts, attacks and photographs."""

    attacks: list[str] = option(["pgd", "apgd-ce", "apgd-t"], "attacks to run", choices=ATTACKS)
    l2: list[float] = option([0.5, 1.5, 3.0], "L2 radii at the model's input resolution", low=0)
    linf: list[float] = option([1 / 255, 4 / 255], "Linf radii, in [0, 1] pixels", low=0)
    steps: int = option(100, "steps of an attack", low=1)
    restarts: int = option(1, "random starts of APGD", low=1)
    targets: int = option(9, "target classes of APGD-T", low=1)
    templates: list[str] = option(
        list(PROMPTS), "prompts of a class; their unit features are averaged"
    )
    count: int = option(0, "photographs, spread over the data; 0 for all", low=0)
    batch: int = option(32, "photographs at a time; random starts are drawn by batch", low=1)


@task("robustness", "accuracy under attack", Robustness, needs=("photos",))
def run(context: Context) -> Measured:
    """Zero-shot top-1, clean, under PGD (Madry et al. 2018), and under APGD-CE and APGD-T (Croce & Hein 2020).

    Every attack is white-box, on the measured model with its own prompts, normalisation inside. "All attacks" counts
    a photograph only where it is classified correctly under each of them.
    """
    options: Robustness = context.options
    photos, classifier = context.need_photos(), _classifier(context)
    side = int(context.model.visual.input_resolution)
    rows = spread(len(photos), options.count or len(photos))
    balls = [("l2", eps) for eps in options.l2] + [("linf", eps) for eps in options.linf]
    held: dict[tuple[str, str, float], list[Tensor]] = {}
    clean, jobs, done = [], len(balls) * len(options.attacks) * len(rows), 0
    for number, part in enumerate(rows.split(options.batch)):
        images = photos.pixels(part, side).to(context.device)
        labels = photos.labels[part].to(context.device)
        with torch.no_grad():
            clean.append(top(classifier.logits(images), labels, 1).cpu())
        for norm, eps in balls:
            for attack in options.attacks:
                generator = torch.Generator(context.device).manual_seed(
                    context.seed * 9973 + number
                )
                moved = attacked(classifier, images, labels, attack, norm, eps, options, generator)
                with torch.no_grad():
                    seen = top(classifier.logits(moved), labels, 1).cpu()
                held.setdefault((attack, norm, eps), []).append(seen)
                done += len(part)
                context.progress(done / jobs)
    before = torch.cat(clean)
    metrics = {"clean_top1": _metric("top-1, clean photographs", context, before)}
    for norm, eps in balls:
        radius = f"{'L2' if norm == 'l2' else 'Linf'} {_radius(norm, eps)}"
        stood = {name: before * torch.cat(held[name, norm, eps]) for name in options.attacks}
        for name, values in stood.items():
            title = f"top-1 under {NAMES[name]}-{options.steps}, {radius}"
            metrics[f"{name}_{norm}@{eps:.5g}"] = _metric(title, context, values, eps)
        if len(stood) > 1:
            worst = torch.stack(list(stood.values())).amin(0)
            metrics[f"all_{norm}@{eps:.5g}"] = _metric(
                f"top-1 under all attacks, {radius}", context, worst, eps
            )
    notes = {
        "side": side,
        "classes": len(context.classes),
        "attacks": {name: settings(name, options) for name in options.attacks},
    }
    return Measured([photos.keys[row] for row in rows], metrics, notes=notes)


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
    """The images within the ball that the attack found; those classified wrongly from the start stay as they are."""
    if attack == "pgd":

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(classifier.logits(x), labels, reduction="none")

        return pgd(loss, images, eps=eps, norm=norm, steps=options.steps, best=True)
    if attack == "apgd-ce":
        return apgd_ce(
            classifier.logits,
            images,
            labels,
            eps=eps,
            norm=norm,
            steps=options.steps,
            restarts=options.restarts,
            generator=generator,
        )
    return apgd_targeted(
        classifier.logits,
        images,
        labels,
        eps=eps,
        norm=norm,
        steps=options.steps,
        targets=min(options.targets, len(classifier.classes) - 1),
        restarts=options.restarts,
        generator=generator,
    )


def settings(attack: str, options: Robustness) -> dict[str, object]:
    """What decides an attack, for the record."""
    if attack == "pgd":
        return {
            "loss": "cross-entropy",
            "steps": options.steps,
            "step_size": "2.5 * eps / steps",
            "start": "the photograph",
            "kept": "highest loss",
        }
    chosen: dict[str, object] = {
        "loss": "cross-entropy" if attack == "apgd-ce" else "targeted DLR",
        "steps": options.steps,
        "restarts": options.restarts,
        "rho": 0.75,
        "start": "random",
    }
    return chosen | ({"targets": options.targets} if attack == "apgd-t" else {})


def _classifier(context: Context) -> Classifier:
    options: Robustness = context.options
    if tuple(options.templates) == tuple(PROMPTS):
        return context.classifier()
    return Classifier(context.model, context.classes, options.templates)


def _metric(title: str, context: Context, values: Tensor, at: float | None = None) -> Metric:
    return Metric(title, "share", context.name, values.tolist(), at=at)


def _radius(norm: str, eps: float) -> str:
    return f"{eps:g}" if norm == "l2" else f"{255 * eps:.3g}/255"
